"""Stores past the caches, for results that are too large to be found in a cache by the next kernel.

A plain store first reads the cache line that it writes: a copy moves three bytes for each two that it needs. A
non-temporal store writes the line to memory without reading it; the next reader then fetches it from there.

Shared by the kernels; in the reference, NumPy stores as it does everywhere.
"""

from llvmlite import ir
from numba import types
from numba.extending import overload

from .memory import MIN_POOLED
from .simd import LANES, VECTOR_TYPE, address, as_vector, store, store_value, typed_intrinsic

# Bytes, three quarters of a last-level cache of 32 MB. Measured with a reader after the kernel: above it the reader has
# to fetch plain stores from memory too, below it finds them in the cache.
PAST_CACHES = 24 << 20


def exceed_caches(*arrays) -> bool:
    """Whether a kernel that reads and writes these arrays, the written ones from `empty`, should store past the caches.

    Together they are larger than a cache, and each is large enough to be in the pool, so aligned.
    """
    sizes = [a.nbytes for a in arrays]
    return sum(sizes) >= PAST_CACHES and min(sizes) >= MIN_POOLED


@typed_intrinsic
def _store_past_caches(typingctx, array, i, vector):
    """array[i : i + LANES] = vector; array[i] is aligned to a vector."""
    signature = types.void(array, i, vector)

    def generate(context, builder, signature, arguments):
        array, i, vector = arguments
        place = address(context, builder, signature.args[0], array, i)
        instruction = builder.store(vector, as_vector(builder, place), align=4 * LANES)
        one = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        instruction.set_metadata("nontemporal", one)
        return context.get_dummy_value()

    return signature, generate


def store_result(array, i, value, past_caches) -> None:
    """array[i] = value, or array[i : i + LANES] = value if that is a vector; then past the caches if `past_caches`."""


@overload(store_result)
def _store_result(array, i, value, past_caches):
    if value != VECTOR_TYPE:
        return lambda array, i, value, past_caches: store_value(array, i, value)

    def store_vector(array, i, value, past_caches):
        if past_caches:
            _store_past_caches(array, i, value)
        else:
            store(array, i, value)

    return store_vector
