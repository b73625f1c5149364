"""How a product of matrices is cut into tiles, and its sums into parts; what a block does stands in product.cu."""

from .launch import blocks_of, launch

DEPTH = 16  # numbers of a sum that come into shared memory at once
THREADS = 128
ENOUGH = 264  # blocks with the large tile that keep a large GPU busy: two for each of 132 multiprocessors
LONGEST = 144  # steps of DEPTH that a sum in float32 takes before its rounding errors show
SHORTEST = 8  # and those that are worth a block of their own
STAGES = {"float32": 3, "tf32": 6}  # strips of each matrix that are in shared memory, or under way
SUFFIX = {"float32": "", "tf32": "_tf32"}


def splits_of(blocks, steps, side):
    """Into how many parts to cut sums of so many steps: enough blocks to fill the GPU, no sum too long, none too short.

    It follows from shapes alone, so that the same numbers are added in the same order everywhere.
    """
    slots = ENOUGH * 128 // side
    return max(1, min(slots // max(blocks, 1), steps // SHORTEST), blocks_of(steps, LONGEST))


def shared(side, precision="float32"):
    """Bytes of shared memory: the strips of all stages for a tile of 128 by side."""
    return STAGES[precision] * (128 + side) * DEPTH * 4


def added(parts, bias, add, y):
    """y = the sum of the parts, bias and add, unless y is itself the only part."""
    if parts is not y:
        by_picture = add is not None and add.shape != y.shape
        picture = y[0].size if by_picture else 0
        size, splits, O = y.size, len(parts), y.shape[-1]
        launch("conv", "add_parts", blocks_of(size, 256), 256, parts, bias, add, y, size, O, splits, picture)
    return y
