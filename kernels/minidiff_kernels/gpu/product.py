"""Tile constants of the matrix products (product.cu), and split-K: the sum divided among thread blocks.

Shared by the kernels; in the reference, NumPy's @ is in its place.
"""

from .launch import ceil_div, launch

DEPTH = 16  # terms of a sum in one step
THREADS = 128
TARGET_BLOCKS = 264  # thread blocks of 128 x 128 tiles that fill a large GPU: two on each of 132 multiprocessors
MAX_STEPS = 144  # of DEPTH terms in one float32 sum, which bounds its rounding error
MIN_STEPS = 8  # below that a split is not worth a thread block
STAGES = {"float32": 3, "tf32": 6}  # strips of each matrix in shared memory, as STAGES x STRIPS in product.cu
SUFFIX = {"float32": "", "tf32": "_tf32"}


def split_count(blocks, steps, side):
    """The splits of a sum of `steps` steps: enough thread blocks to fill the GPU, MIN_STEPS to MAX_STEPS each.

    It depends on the shapes alone, so that every GPU adds the same terms in the same order.
    """
    slots = TARGET_BLOCKS * 128 // side
    return max(1, min(slots // max(blocks, 1), steps // MIN_STEPS), ceil_div(steps, MAX_STEPS))


def shared(side, precision="float32"):
    """Bytes of shared memory for the strips of all stages of a tile of 128 x side."""
    return STAGES[precision] * (128 + side) * DEPTH * 4


def sum_splits(parts, bias, add, y):
    """y = the sum of the parts, plus bias and add. Without splits `parts` is y, which is complete."""
    if parts is not y:
        add_per_image = add is not None and add.shape != y.shape
        image = y[0].size if add_per_image else 0
        size, splits, O = y.size, len(parts), y.shape[-1]
        launch("conv", "sum_splits", ceil_div(size, 256), 256, parts, bias, add, y, size, O, splits, image)
    return y
