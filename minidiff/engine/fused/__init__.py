"""Two operations as one node of the tape, which keeps or stores less than the two would.

Normalisation and convolution (norm_conv.py), upsampling and convolution (upsample_conv.py), GEGLU and a linear layer
(geglu_linear.py); convolutions of large images in bands of rows (bands.py).
"""
