"""Average pooling: 2 x 2, and global."""

from minidiff.engine.tensor import Function, Tensor


class AvgPool(Function):
    def forward(self, x):
        return 0.25 * self.backend.upsample_nearest_backward(x)

    def backward(self, dy):
        return (0.25 * self.backend.upsample_nearest(dy),)


def avg_pool(x: Tensor) -> Tensor:
    """2 x 2 average pooling: (N, H, W, C) -> (N, H/2, W/2, C). Raises ValueError if H or W is odd."""
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"avg_pool: {x.shape[1]}x{x.shape[2]} pixels: height and width must be even")
    return AvgPool()(x)


class GlobalAvgPool(Function):
    def forward(self, x):
        self.x_shape = x.shape
        return x.mean((1, 2))

    def backward(self, dy):
        dx = dy[:, None, None] / (self.x_shape[1] * self.x_shape[2])  # (N, 1, 1, C)
        return (self.backend.xp.broadcast_to(dx, self.x_shape).copy(),)


def global_avg_pool(x: Tensor) -> Tensor:
    """Global average pooling: (N, H, W, C) -> (N, C)."""
    return GlobalAvgPool()(x)
