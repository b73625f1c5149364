"""Arrays, gradients, layers: what every neural network needs. Knows nothing of diffusion."""
