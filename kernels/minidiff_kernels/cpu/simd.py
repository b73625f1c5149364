"""What has to be said to LLVM itself: a register-tiled matrix product, vectors as values, block copies, exp.

Numba turns a plain loop into vector code, but it cannot be told to hold a tile of results in registers, and
that is what a fast matrix product is. So the innermost product is built as LLVM instructions here. Every
product in this package, in convolution, linear layers and attention, is made of it.
"""

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from .jit import helper, target


def _lanes() -> int:
    """float32 numbers in a vector register: 16 with AVX-512, 8 with AVX, otherwise 4."""
    features = target()[2].split(",")
    return 16 if "+avx512f" in features else 8 if "+avx" in features else 4


_intrinsic: Any = intrinsic  # its result is called with one argument less than it is written with
LANES = _lanes()
ROWS = 8 if LANES == 16 else 4  # a tile is ROWS x up to 3 vectors: 24 of 32 registers, or 12 of 16
K_CHUNK = 128  # terms summed in registers at a time

_F32, _I64, _BYTE = ir.FloatType(), ir.IntType(64), ir.IntType(8)
_VECTOR = ir.VectorType(_F32, LANES)


def _pointer(context, builder, array_type, array, offset):
    """The address of element `offset` of a flat float32 array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


def _vector_at(builder, pointer):
    return builder.bitcast(pointer, _VECTOR.as_pointer())


def _splat(builder, scalar):
    """A vector whose every lane is the scalar."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _fetch(builder, pointer, write: int, level: int) -> None:
    """Ask a cache (3: the first, 2: the second) for the line at an address, to read it soon or to write it."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), *[ir.IntType(32)] * 3])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    is_data = 1
    hints = (ir.Constant(ir.IntType(32), n) for n in (write, level, is_data))
    builder.call(fetch, [builder.bitcast(pointer, _BYTE.as_pointer()), *hints])


def _tile(vectors: int, transposed: bool) -> Any:
    """ROWS rows of a product in panels, `vectors` vectors wide; see `_product_of`. Put into C if fresh, else added.

    All ROWS x vectors sums stay in registers while k runs. Each step loads `vectors` vectors of B, and ROWS numbers
    of A that are broadcast; since a row or a column of a panel is a fixed distance away, no address is computed.
    """

    @intrinsic
    def tile(typingctx, a, a0, a_panel, b, b0, b_panel, c, c0, c_panel, K, fresh, ahead):
        signature = types.void(a, a0, a_panel, b, b0, b_panel, c, c0, c_panel, K, fresh, ahead)
        row, step = (1, LANES) if transposed else (LANES, 1)  # from one row of A to the next, and from k to k + 1

        def generate(context, builder, signature, arguments):
            a, a0, a_panel, b, b0, b_panel, c, c0, c_panel, K, fresh, ahead = arguments
            a = cgutils.alloca_once_value(builder, _pointer(context, builder, signature.args[0], a, a0))
            b = cgutils.alloca_once_value(builder, _pointer(context, builder, signature.args[3], b, b0))
            c = _pointer(context, builder, signature.args[6], c, c0)
            multiply_add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fmuladd.v{LANES}f32"
            )  # one instruction where the machine has it, two where not; llvm.fma would call libm there
            cells = [(m, v) for m in range(ROWS) for v in range(vectors)]
            sums = {cell: cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * LANES)) for cell in cells}

            def at(pointer, v, panel, offset):
                """The vector `offset` numbers on, in the v-th panel from here."""
                along = builder.add(builder.mul(panel, ir.Constant(_I64, v)), ir.Constant(_I64, offset))
                return _vector_at(builder, builder.gep(pointer, [along]))

            def add_terms(count):
                with cgutils.for_range(builder, count):
                    a_k, b_k = builder.load(a), builder.load(b)
                    columns = [builder.load(at(b_k, v, b_panel, 0), align=4) for v in range(vectors)]
                    _fetch(builder, builder.gep(b_k, [ahead]), write=0, level=2)
                    for m in range(ROWS):
                        number = _splat(builder, builder.load(builder.gep(a_k, [ir.Constant(_I64, m * row)])))
                        for v in range(vectors):
                            total = builder.call(multiply_add, [number, columns[v], builder.load(sums[m, v])])
                            builder.store(total, sums[m, v])
                    builder.store(builder.gep(a_k, [ir.Constant(_I64, step)]), a)
                    builder.store(builder.gep(b_k, [ir.Constant(_I64, LANES)]), b)

            lanes = ir.Constant(_I64, LANES)
            if transposed:
                add_terms(K)
            else:
                to_next = builder.sub(a_panel, lanes)
                with cgutils.for_range(builder, builder.sdiv(K, lanes)):
                    add_terms(lanes)
                    builder.store(builder.gep(builder.load(a), [to_next]), a)
                add_terms(builder.srem(K, lanes))
            places = {(m, v): at(c, v, c_panel, m * LANES) for m, v in cells}
            with builder.if_else(context.is_true(builder, types.boolean, fresh)) as (put, add):
                with put:
                    for cell, place in places.items():
                        builder.store(builder.load(sums[cell]), place, align=4)
                with add:
                    for cell, place in places.items():
                        total = builder.fadd(builder.load(place, align=4), builder.load(sums[cell]))
                        builder.store(total, place, align=4)
            return context.get_dummy_value()

        return signature, generate

    return tile


def round_up(n: int, multiple: int = LANES) -> int:
    """The least multiple of `multiple` that is not below n: scratch is laid out in whole vectors and tiles."""
    return -(-n // multiple) * multiple


def _product_of(transposed: bool):
    tile1, tile2, tile3 = (_tile(vectors, transposed) for vectors in (1, 2, 3))

    @helper
    def product(a, a0, a_panel, b, b0, b_panel, c, c0, c_panel, M, V, K, fresh):
        for k in range(0, K, K_CHUNK):
            terms, first = min(K_CHUNK, K - k), fresh and k == 0
            v = 0
            while v < V:
                width = 1 if V - v == 1 else 2 if V - v in (2, 4) else 3
                for m in range(0, M, ROWS):
                    if transposed:
                        i = a0 + m // LANES * a_panel + m % LANES + k * LANES
                    else:
                        i = a0 + k // LANES * a_panel + m * LANES
                    j, o = b0 + v * b_panel + k * LANES, c0 + v * c_panel + m * LANES
                    ahead = (width + m // ROWS) * b_panel if m // ROWS < width else 0
                    if width == 3:
                        tile3(a, i, a_panel, b, j, b_panel, c, o, c_panel, terms, first, ahead)
                    elif width == 2:
                        tile2(a, i, a_panel, b, j, b_panel, c, o, c_panel, terms, first, ahead)
                    else:
                        tile1(a, i, a_panel, b, j, b_panel, c, o, c_panel, terms, first, ahead)
                v += width

    return product


# C = A B, or A^T B, or added to what C holds (fresh = False). A matrix of R rows lies in panels, LANES columns wide:
# (columns / LANES, R, LANES), so that a vector of columns is one load and the rows of a panel follow each other.
#
#     product(a, a0, a_panel, b, b0, b_panel, c, c0, c_panel, M, V, K, fresh)
#
# a, b, c are flat arrays; a0, b0, c0 where the matrices begin; a_panel, b_panel, c_panel how far it is from one panel
# to the next. M: rows of C, a multiple of ROWS; V: panels of C; K: terms of the sum. A is (M, K), transposed (K, M).
# K_CHUNK terms are summed at a time and then added: rounding errors grow with the number of chunks, not of terms,
# and a strip of B three vectors wide stays in the first-level cache while all rows pass by.
product = _product_of(transposed=False)
product_transposed = _product_of(transposed=True)


class Vector(types.Type):
    """LANES float32 numbers as one value: `load` gives one; +, - and * work on two, or on one and a number."""

    def __init__(self):
        super().__init__(f"float32x{LANES}")


_vector_type = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, _VECTOR)


@_intrinsic
def load(typingctx, array, i):
    """array[i : i + LANES] of a flat float32 array, as a vector."""
    signature = _vector_type(array, i)

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        return builder.load(_vector_at(builder, pointer), align=4)

    return signature, generate


@_intrinsic
def store(typingctx, array, i, vector):
    """array[i : i + LANES] = vector."""
    signature = types.void(array, i, vector)

    def generate(context, builder, signature, arguments):
        array, i, vector = arguments
        pointer = _pointer(context, builder, signature.args[0], array, i)
        builder.store(vector, _vector_at(builder, pointer), align=4)
        return context.get_dummy_value()

    return signature, generate


@_intrinsic
def prepare(typingctx, array, i):
    """Ask the first-level cache for the line of array[i], soon to be written."""
    signature = types.void(array, i)

    def generate(context, builder, signature, arguments):
        _fetch(builder, _pointer(context, builder, signature.args[0], *arguments), write=1, level=3)
        return context.get_dummy_value()

    return signature, generate


def _arithmetic(operation, instruction: str) -> None:
    """Teach Numba one operator on vectors; a number on either side stands for a vector full of it."""

    @_intrinsic
    def compute(typingctx, a, b):
        def generate(context, builder, signature, arguments):
            a, b = (
                value if kind == _vector_type else _splat(builder, context.cast(builder, value, kind, types.float32))
                for value, kind in zip(arguments, signature.args, strict=True)
            )
            return getattr(builder, instruction)(a, b, flags=("reassoc", "contract", "arcp", "nsz"))

        return _vector_type(a, b), generate

    @overload(operation)
    def typed(a, b):
        if _vector_type in (a, b) and all(kind == _vector_type or isinstance(kind, types.Float) for kind in (a, b)):
            return lambda a, b: compute(a, b)


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


@_intrinsic
def copy(typingctx, to, to0, source, source0, n):
    """to[to0 : to0 + n] = source[source0 : source0 + n], for flat float32 arrays that do not overlap."""
    signature = types.void(to, to0, source, source0, n)

    def generate(context, builder, signature, arguments):
        to, to0, source, source0, n = arguments
        destination = _pointer(context, builder, signature.args[0], to, to0)
        origin = _pointer(context, builder, signature.args[2], source, source0)
        cgutils.raw_memcpy(builder, destination, origin, n, 4)
        return context.get_dummy_value()

    return signature, generate


@_intrinsic
def clear(typingctx, to, to0, n):
    """to[to0 : to0 + n] = 0, for a flat float32 array."""
    signature = types.void(to, to0, n)

    def generate(context, builder, signature, arguments):
        to, to0, n = arguments
        destination = _pointer(context, builder, signature.args[0], to, to0)
        cgutils.memset(builder, destination, builder.mul(n, ir.Constant(_I64, 4)), 0)
        return context.get_dummy_value()

    return signature, generate


def _like(kind) -> ir.Type:
    """The LLVM type of a Vector or of a float32."""
    return _VECTOR if kind == _vector_type else _F32


def _constant(kind, value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * LANES) if kind == _vector_type else ir.Constant(_F32, value)


@_intrinsic
def _floor(typingctx, x):
    def generate(context, builder, signature, arguments):
        kind = _like(signature.args[0])
        name = f"llvm.floor.v{LANES}f32" if kind == _VECTOR else "llvm.floor.f32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
        return builder.call(function, arguments)

    return x(x), generate


@_intrinsic
def _times_power_of_two(typingctx, p, n):
    """p 2^n for whole n <= 0, put together from bits; 0 where n is below -126."""

    def generate(context, builder, signature, arguments):
        (p, n), kind = arguments, signature.args[0]
        whole = ir.VectorType(ir.IntType(32), LANES) if kind == _vector_type else ir.IntType(32)
        bias, place = (ir.Constant(whole, [i] * LANES if kind == _vector_type else i) for i in (127, 23))
        bits = builder.shl(builder.add(builder.fptosi(n, whole), bias), place)
        power = builder.bitcast(bits, _like(kind))
        tiny = builder.fcmp_ordered("<", n, _constant(kind, -126.0))
        return builder.select(tiny, _constant(kind, 0.0), builder.fmul(p, power))

    return p(p, n), generate


@_intrinsic
def maximum(typingctx, a, b):
    """The larger of two vectors, lane by lane; a where one is NaN."""

    def generate(context, builder, signature, arguments):
        a, b = arguments
        return builder.select(builder.fcmp_ordered("<", a, b), b, a)

    return a(a, b), generate


@helper
def exp(x):
    """e^x for x <= 0, a float32 or a vector, to 1e-7 relative; 0 below -87, NaN for NaN.

    x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series, times 2^n. A polynomial: loops over it vectorise.
    """
    f = np.float32
    n = _floor(x * f(1.4426950408889634) + f(0.5))
    r = x - n * f(0.693145751953125) - n * f(1.428606765330187e-06)  # ln 2 in two parts: n r stays exact
    p = r * f(1 / 5040) + f(1 / 720)
    for c in (f(1 / 120), f(1 / 24), f(1 / 6), f(0.5), f(1), f(1)):
        p = p * r + c
    return _times_power_of_two(p, n)


@helper
def sigmoid(x):
    """1 / (1 + e^-x), without overflow on either side."""
    f = np.float32
    z = exp(-abs(x))
    return (f(1) if x >= f(0) else z) / (f(1) + z)
