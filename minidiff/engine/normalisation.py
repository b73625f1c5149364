"""Group and layer normalisation as operations of the tape, which do not keep their outputs: x is kept anyway."""

from minidiff.engine.tensor import Function, Tensor


class GroupNorm(Function):
    """One use of `group_norm`."""

    keeps = (0, 1, 2)
    recomputes = True
    totals = (0,)

    def __init__(self, groups, eps, silu):
        self.groups, self.eps, self.silu = groups, eps, silu

    def forward(self, x, weight, bias):
        y, mean, rstd = self.backend.group_norm(x, weight, bias, self.groups, self.eps, self.silu)
        self.statistics = mean, rstd
        return y

    def again(self, x, weight, bias):
        return self.backend.normalise(x, weight, bias, *self.statistics, self.silu)

    def backward(self, dy):
        (x, weight, bias), (mean, rstd) = map(self.input, self.keeps), self.statistics
        add = self.so_far(0)
        return self.backend.group_norm_backward(dy, x, weight, bias, mean, rstd, self.silu, add=add)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = False) -> Tensor:
    """Group normalisation (Wu & He 2018) of x (N, ..., C): over all positions and the C / groups channels of a group.

    weight, bias (C,). silu: SiLU of the result, in the same pass. Raises ValueError if the shapes do not match.
    """
    C = x.shape[-1]
    if C % groups:
        raise ValueError(f"group_norm: {C} channels are not divisible into {groups} groups")
    _check_norm("group_norm", x, weight, bias)
    return GroupNorm(groups, eps, silu)(x, weight, bias)


def _check_norm(name: str, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Raises ValueError unless there are a weight and a bias for every channel."""
    C = x.shape[-1]
    if weight.shape != (C,) or bias.shape != (C,):
        raise ValueError(f"{name}: weight {weight.shape} and bias {bias.shape} for {C} channels")


class LayerNorm(Function):
    """One use of `layer_norm`."""

    keeps = (0, 1, 2)
    recomputes = True
    totals = (0,)

    def __init__(self, eps):
        self.eps = eps

    def forward(self, x, weight, bias):
        y, mean, rstd = self.backend.group_norm(_positions(x), weight, bias, 1, self.eps)
        self.statistics = mean, rstd
        return y.reshape(x.shape)

    def backward(self, dy):
        (x, weight, bias), (mean, rstd), add = map(self.input, self.keeps), self.statistics, self.so_far(0)
        dx, dweight, dbias = self.backend.group_norm_backward(
            _positions(dy), _positions(x), weight, bias, mean, rstd, add=None if add is None else _positions(add)
        )
        return dx.reshape(x.shape), dweight, dbias


def _positions(x):
    """(..., C) as images of one position, (M, 1, C)."""
    return x.reshape(-1, 1, x.shape[-1])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation (Ba et al. 2016) over the last axis of x (..., C): group norm of one position, one group.

    Raises ValueError if the shapes do not match.
    """
    _check_norm("layer_norm", x, weight, bias)
    return LayerNorm(eps)(x, weight, bias)
