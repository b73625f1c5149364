"""GEGLU and a linear layer as one node of the tape, which does not keep the linear layer's input.

As in norm_conv.py: the gradient of GEGLU, whose input is kept, computes its output on the way, and the gradient of the
linear layer by its weight comes last.
"""

from minidiff.engine.functional import Linear, check_linear
from minidiff.engine.tensor import Tensor


class GegluLinear(Linear):
    """One use of `geglu_linear`."""

    def forward(self, x, w, bias, add):
        return super().forward(self.backend.geglu(x), w, bias, add)

    def backward(self, dy):
        x, w = map(self.input, self.keeps)
        h = self.backend.xp.empty((*x.shape[:-1], x.shape[-1] // 2), x.dtype)  # of which only the shape matters
        dh, _, _ = self.gradients(dy, h, w, True, False)
        dx = self.backend.geglu_backward(dh, x, dh)  # dh becomes h
        _, dw, dbias = self.gradients(dy, dh, w, False, self.needs(1) or self.needs(2))
        return dx, dw, dbias, dy


def geglu_linear(x: Tensor, w: Tensor, bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
    """linear(geglu(x), w, bias, add): x (..., 2 C), w (O, C) -> (..., O). Raises ValueError if shapes do not match."""
    check_linear((*x.shape[:-1], x.shape[-1] // 2), w, bias, add)
    return GegluLinear()(x, w, bias, add)
