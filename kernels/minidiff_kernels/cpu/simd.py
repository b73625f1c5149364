"""SIMD vectors as values, software prefetch, block copies and transposes, as LLVM instructions.

Numba vectorises plain loops where it can. Where it cannot, kernels use vectors from here: LANES float32 that are
loaded, stored, added, multiplied or divided by one instruction. LANES depends on the processor: 4, 8 or 16.

Shared by the kernels; in the reference, NumPy's operations on whole arrays are in its place.
"""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from .jit import FAST, helper, target


def _lanes() -> int:
    """The number of float32 in a vector register: 16 with AVX-512, 8 with AVX, otherwise 4."""
    features = target()[2].split(",")
    return 16 if "+avx512f" in features else 8 if "+avx" in features else 4


typed_intrinsic: Any = intrinsic  # for type checkers: callers do not pass `typingctx`
LANES = _lanes()

_F32, _I32, _I64, _BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8)
VECTOR = ir.VectorType(_F32, LANES)
READABLE = types.float32, types.uint16  # uint16: the bits of float16, which Numba does not have on a CPU


def address(context, builder, array_type, array, offset, dtypes=(types.float32,)):
    """The address of element `offset` of a flat array of one of these types. Raises TypeError for any other array."""
    if array_type.dtype not in dtypes or (array_type.ndim, array_type.layout) != (1, "C"):
        raise TypeError(f"{array_type}: a kernel takes flat, contiguous {dtypes[0]} arrays here")
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


def as_vector(builder, place):
    """A float pointer as a pointer to the vector that starts there."""
    return builder.bitcast(place, VECTOR.as_pointer())


def splat(builder, scalar):
    """A vector whose every lane is the scalar."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


def emit_prefetch(builder, place, write: int, level: int) -> None:
    """Prefetch the cache line at an address into L1 (level 3) or L2 (level 2), for a read (write 0) or a write (1)."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), *[_I32] * 3])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    is_data = 1
    hints = (ir.Constant(_I32, n) for n in (write, level, is_data))
    builder.call(function, [builder.bitcast(place, _BYTE.as_pointer()), *hints])


def round_up(n: int, multiple: int = LANES) -> int:
    """The least multiple of `multiple` that is at least n: scratch is laid out in whole vectors and tiles."""
    return -(-n // multiple) * multiple


class Vector(types.Type):
    """LANES float32 as one value, from `load`. +, -, * and / take two vectors, or a vector and a scalar."""

    def __init__(self):
        super().__init__(f"float32x{LANES}")


VECTOR_TYPE = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, VECTOR)


def _widened(builder, half, lanes: int):
    """float16 -> float32 of `lanes` values, given as integers: sign, exponent and fraction move to float32's places.

    The factor is for exponents: they are stored with an offset of 15 in float16, of 127 in float32.
    """
    integers, floats = ir.VectorType(_I32, lanes), ir.VectorType(_F32, lanes)
    bits = builder.zext(half, integers)
    sign, rest = (builder.and_(bits, integers([mask] * lanes)) for mask in (0x8000, 0x7FFF))
    moved = builder.or_(builder.shl(sign, integers([16] * lanes)), builder.shl(rest, integers([13] * lanes)))
    infinite = builder.icmp_unsigned(">=", rest, integers([0x7C00] * lanes))  # or NaN
    moved = builder.select(infinite, builder.or_(moved, integers([0x7F800000] * lanes)), moved)
    return builder.fmul(builder.bitcast(moved, floats), floats([2.0**112] * lanes))  # exact, below the normal range too


def _load_lanes(context, builder, array_type, array, i, lanes: int):
    """`lanes` values from array[i] on, as a vector of float32; see `load`."""
    start = address(context, builder, array_type, array, i, dtypes=READABLE)
    vectors = ir.VectorType(start.type.pointee, lanes).as_pointer()
    values = builder.load(builder.bitcast(start, vectors), align=array_type.dtype.bitwidth // 8)
    return _widened(builder, values, lanes) if array_type.dtype == types.uint16 else values


@typed_intrinsic
def load(typingctx, array, i):
    """array[i : i + LANES] of a flat float32 array, as a vector; of float16, whose bits the array holds as uint16."""

    def generate(context, builder, signature, arguments):
        return _load_lanes(context, builder, signature.args[0], *arguments, lanes=LANES)

    return VECTOR_TYPE(array, i), generate


@typed_intrinsic
def load_one(typingctx, array, i):
    """array[i] of a flat array of float32, or of float16's bits as uint16, as a float32."""

    def generate(context, builder, signature, arguments):
        vector = _load_lanes(context, builder, signature.args[0], *arguments, lanes=1)
        return builder.extract_element(vector, _I32(0))

    return types.float32(array, i), generate


@typed_intrinsic
def store(typingctx, array, i, vector):
    """array[i : i + LANES] = vector."""
    signature = types.void(array, i, vector)

    def generate(context, builder, signature, arguments):
        array, i, vector = arguments
        place = address(context, builder, signature.args[0], array, i)
        builder.store(vector, as_vector(builder, place), align=4)
        return context.get_dummy_value()

    return signature, generate


@typed_intrinsic
def zeros(typingctx):
    """A vector of zeros."""
    return VECTOR_TYPE(), lambda context, builder, signature, arguments: ir.Constant(VECTOR, [0.0] * LANES)


@typed_intrinsic
def sum_lanes(typingctx, vector):
    """The sum of a vector's lanes: its two halves are added, log2 LANES times."""

    def generate(context, builder, signature, arguments):
        (vector,), n = arguments, LANES
        while n > 1:
            n //= 2
            low, high = (ir.Constant(ir.VectorType(_I32, n), list(range(i, i + n))) for i in (0, n))
            low, high = (builder.shuffle_vector(vector, vector, half) for half in (low, high))
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, ir.Constant(_I32, 0))

    return types.float32(vector), generate


def load_like(array, i, like) -> Any:
    """array[i : i + LANES] as a vector if `like` is one, else array[i]: one loop body for vectors and remainders."""


@overload(load_like)
def _load_like(array, i, like):
    return (lambda array, i, like: load(array, i)) if like == VECTOR_TYPE else (lambda array, i, like: array[i])


def store_value(array, i, value) -> None:
    """array[i] = value, or array[i : i + LANES] = value if that is a vector."""


@overload(store_value)
def _store_value(array, i, value):
    if value == VECTOR_TYPE:
        return lambda array, i, value: store(array, i, value)

    def store_scalar(array, i, value):
        array[i] = value

    return store_scalar


@typed_intrinsic
def prefetch_read(typingctx, array, i):
    """Prefetch the cache line of array[i] into L2, for a read."""
    signature = types.void(array, i)

    def generate(context, builder, signature, arguments):
        place = address(context, builder, signature.args[0], *arguments, dtypes=READABLE)
        emit_prefetch(builder, place, write=0, level=2)
        return context.get_dummy_value()

    return signature, generate


@typed_intrinsic
def prefetch_write(typingctx, array, i):
    """Prefetch the cache line of array[i] into L1, for a write."""
    signature = types.void(array, i)

    def generate(context, builder, signature, arguments):
        emit_prefetch(builder, address(context, builder, signature.args[0], *arguments), write=1, level=3)
        return context.get_dummy_value()

    return signature, generate


def _arithmetic(operation, instruction: str) -> None:
    """Define an operator on vectors; a scalar on either side is broadcast to all lanes."""

    @typed_intrinsic
    def compute(typingctx, a, b):
        def generate(context, builder, signature, arguments):
            a, b = (
                value if kind == VECTOR_TYPE else splat(builder, context.cast(builder, value, kind, types.float32))
                for value, kind in zip(arguments, signature.args, strict=True)
            )
            return getattr(builder, instruction)(a, b, flags=sorted(FAST))

        return VECTOR_TYPE(a, b), generate

    @overload(operation)
    def typed(a, b):
        if VECTOR_TYPE in (a, b) and all(kind == VECTOR_TYPE or isinstance(kind, types.Float) for kind in (a, b)):
            return lambda a, b: compute(a, b)


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


@typed_intrinsic
def copy(typingctx, to, to0, source, source0, n):
    """to[to0 : to0 + n] = source[source0 : source0 + n], for flat float32 arrays that do not overlap."""
    signature = types.void(to, to0, source, source0, n)

    def generate(context, builder, signature, arguments):
        to, to0, source, source0, n = arguments
        destination = address(context, builder, signature.args[0], to, to0)
        origin = address(context, builder, signature.args[2], source, source0)
        cgutils.raw_memcpy(builder, destination, origin, n, 4)
        return context.get_dummy_value()

    return signature, generate


@typed_intrinsic
def clear(typingctx, to, to0, n):
    """to[to0 : to0 + n] = 0, for a flat float32 array."""
    signature = types.void(to, to0, n)

    def generate(context, builder, signature, arguments):
        to, to0, n = arguments
        destination = address(context, builder, signature.args[0], to, to0)
        cgutils.memset(builder, destination, builder.mul(n, ir.Constant(_I64, 4)), 0)
        return context.get_dummy_value()

    return signature, generate


@typed_intrinsic
def _transpose_square(typingctx, source, s, row, to, t, to_row):
    """to[t + j to_row + i] = source[s + i row + j], for i, j < LANES.

    Each round interleaves the lanes of rows i and i + LANES / 2 (a perfect shuffle of the rows); after log2 LANES
    rounds the rows are the columns.
    """
    signature = types.void(source, s, row, to, t, to_row)

    def generate(context, builder, signature, arguments):
        source, s, row, to, t, to_row = arguments
        end = address(context, builder, signature.args[3], to, t)

        def interleave(a, b, first):
            order = [lane + half * LANES for lane in range(first, first + LANES // 2) for half in (0, 1)]
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, LANES), order))

        places = (builder.add(s, builder.mul(row, _I64(i))) for i in range(LANES))
        rows = [_load_lanes(context, builder, signature.args[0], source, place, LANES) for place in places]
        for _ in range(LANES.bit_length() - 1):
            pairs = zip(rows[: LANES // 2], rows[LANES // 2 :], strict=True)
            rows = [interleave(a, b, first) for a, b in pairs for first in (0, LANES // 2)]
        for i, vector in enumerate(rows):
            place = builder.gep(end, [builder.mul(to_row, _I64(i))])
            builder.store(vector, as_vector(builder, place), align=4)
        return context.get_dummy_value()

    return signature, generate


@helper
def transpose_to_panels(source, s, row, rows, columns, to, t, panel):
    """Transpose into packed panels: to[t + i // LANES panel + j LANES + i % LANES] = source[s + i row + j]."""
    for i in range(0, rows, LANES):
        whole = columns // LANES * LANES if i + LANES <= rows else 0
        here, there = s + i * row, t + i // LANES * panel
        for j in range(0, whole, LANES):
            _transpose_square(source, here + j, row, to, there + j * LANES, LANES)
        for j in range(whole, columns):
            for lane in range(min(LANES, rows - i)):
                to[there + j * LANES + lane] = load_one(source, here + lane * row + j)


@helper
def transpose_from_panels(source, s, panel, rows, columns, to, t, row):
    """The inverse of transpose_to_panels: to[t + i row + j] = source[s + i // LANES panel + j LANES + i % LANES]."""
    for i in range(0, rows, LANES):
        whole = columns // LANES * LANES if i + LANES <= rows else 0
        here, there = s + i // LANES * panel, t + i * row
        for j in range(0, whole, LANES):
            _transpose_square(source, here + j * LANES, LANES, to, there + j, row)
        for j in range(whole, columns):
            for lane in range(min(LANES, rows - i)):
                to[there + lane * row + j] = source[here + j * LANES + lane]
