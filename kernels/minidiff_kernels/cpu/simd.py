"""What has to be said to LLVM itself: a register-tiled matrix product, vectors as values, block copies, exp.

Numba turns a plain loop into vector code, but it cannot be told to hold a tile of results in registers, and
that is what a fast matrix product is. So the innermost product is built as LLVM instructions here. Every
product in this package, in convolution, linear layers and attention, is made of it.
"""

import operator
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from .jit import config, helper


def _lanes() -> int:
    """float32 numbers in a vector register: 16 with AVX-512, 8 with AVX, otherwise 4."""
    if config.CPU_NAME:  # compiling for a named processor, not for this one
        wide, middle = ("avx512", "znver4", "znver5"), ("haswell", "broadwell", "skylake", "znver")
        name = config.CPU_NAME + (config.CPU_FEATURES or "")
        return 16 if any(w in name for w in wide) else 8 if any(m in name for m in middle) else 4
    features = llvm.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx") else 4


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


def _tile(vectors: int) -> Any:
    """The product of ROWS rows of A with `vectors` vectors of columns of B, to C if it is fresh, else added to it.

        c[m, v] (+)= sum over k of  a[a0 + m am + k ak]  *  b[b0 + v bv + k bk ...]

    where [v] stands for LANES neighbouring numbers. All ROWS x vectors sums stay in registers while k runs;
    each step loads `vectors` vectors of B, and ROWS numbers of A that are broadcast.
    """

    @intrinsic
    def tile(typingctx, a, a0, am, ak, b, b0, bv, bk, c, c0, cm, K, fresh):
        signature = types.void(a, a0, am, ak, b, b0, bv, bk, c, c0, cm, K, fresh)

        def generate(context, builder, signature, arguments):
            a, a0, am, ak, b, b0, bv, bk, c, c0, cm, K, fresh = arguments
            multiply_add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fmuladd.v{LANES}f32"
            )  # one instruction where the machine has it, two where not; llvm.fma would call libm there
            a = cgutils.alloca_once_value(builder, _pointer(context, builder, signature.args[0], a, a0))
            b = cgutils.alloca_once_value(builder, _pointer(context, builder, signature.args[4], b, b0))
            c = _pointer(context, builder, signature.args[8], c, c0)
            cells = [(m, v) for m in range(ROWS) for v in range(vectors)]
            sums = {cell: cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * LANES)) for cell in cells}
            with cgutils.for_range(builder, K):
                b_k, a_mk = builder.load(b), builder.load(a)
                columns = []
                for v in range(vectors):
                    at = builder.gep(b_k, [builder.mul(bv, ir.Constant(_I64, v))])
                    columns.append(builder.load(_vector_at(builder, at), align=4))
                for m in range(ROWS):
                    row = _splat(builder, builder.load(a_mk))
                    for v in range(vectors):
                        builder.store(
                            builder.call(multiply_add, [row, columns[v], builder.load(sums[m, v])]),
                            sums[m, v],
                        )
                    a_mk = builder.gep(a_mk, [am])
                builder.store(builder.gep(builder.load(a), [ak]), a)
                builder.store(builder.gep(b_k, [bk]), b)
            places = {}
            for m, v in cells:
                offset = builder.add(builder.mul(cm, ir.Constant(_I64, m)), ir.Constant(_I64, v * LANES))
                places[m, v] = _vector_at(builder, builder.gep(c, [offset]))
            with builder.if_else(context.is_true(builder, types.boolean, fresh)) as (put, add):
                with put:
                    for cell, at in places.items():
                        builder.store(builder.load(sums[cell]), at, align=4)
                with add:
                    for cell, at in places.items():
                        builder.store(builder.fadd(builder.load(at, align=4), builder.load(sums[cell])), at, align=4)
            return context.get_dummy_value()

        return signature, generate

    return tile


def round_up(n: int, multiple: int = LANES) -> int:
    """The least multiple of `multiple` that is not below n: scratch is laid out in whole vectors and tiles."""
    return -(-n // multiple) * multiple


_tile1, _tile2, _tile3 = _tile(1), _tile(2), _tile(3)


@helper
def _product(a, a0, am, ak, b, b0, bv, bk, c, c0, cm, M, V, K, fresh):
    for k in range(0, K, K_CHUNK):
        terms, first = min(K_CHUNK, K - k), fresh and k == 0
        v = 0
        while v < V:
            width = 1 if V - v == 1 else 2 if V - v in (2, 4) else 3
            for m in range(0, M, ROWS):
                i, j, o = a0 + m * am + k * ak, b0 + v * bv + k * bk, c0 + m * cm + v * LANES
                if width == 3:
                    _tile3(a, i, am, ak, b, j, bv, bk, c, o, cm, terms, first)
                elif width == 2:
                    _tile2(a, i, am, ak, b, j, bv, bk, c, o, cm, terms, first)
                else:
                    _tile1(a, i, am, ak, b, j, bv, bk, c, o, cm, terms, first)
            v += width


@helper
def set_product(a, a0, am, ak, b, b0, bv, bk, c, c0, cm, M, V, K):
    """c[m, v] = sum over k of a[m, k] b[k, v] for M rows (a multiple of ROWS), V vectors of columns and K > 0 terms.

    a, b, c are flat arrays; a0, b0, c0 where the matrices begin; am, ak, bk, cm how far it is to the next row
    or column, and bv to the next vector of B. Neighbouring vectors of C lie side by side.
    K_CHUNK terms are summed at a time and then added: rounding errors grow with the number of chunks, not of
    terms, and a strip of B three vectors wide stays in the first-level cache while all rows pass by.
    """
    _product(a, a0, am, ak, b, b0, bv, bk, c, c0, cm, M, V, K, True)


@helper
def add_product(a, a0, am, ak, b, b0, bv, bk, c, c0, cm, M, V, K):
    """c[m, v] += the same sum."""
    _product(a, a0, am, ak, b, b0, bv, bk, c, c0, cm, M, V, K, False)


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
        pointer = builder.bitcast(_pointer(context, builder, signature.args[0], *arguments), _BYTE.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), *[ir.IntType(32)] * 3])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        write, soon, data = 1, 3, 1
        builder.call(fetch, [pointer, *(ir.Constant(ir.IntType(32), n) for n in (write, soon, data))])
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


@helper
def exp(x):
    """e^x for x <= 0, to 1e-7 relative; 0 below -87, NaN for NaN. A polynomial, so that loops over it vectorise.

    x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series, times 2^n put together from bits.
    """
    f = np.float32
    n = np.floor(x * f(1.4426950408889634) + f(0.5))
    r = x - n * f(0.693145751953125) - n * f(1.428606765330187e-06)  # ln 2 in two parts: n r stays exact
    p = f(1 / 5040)
    for c in (f(1 / 720), f(1 / 120), f(1 / 24), f(1 / 6), f(0.5), f(1), f(1)):
        p = p * r + c
    power = np.int32((np.int32(max(n, f(-126))) + np.int32(127)) << np.int32(23)).view(np.float32)
    return f(0) if x < f(-87) else p * power


@helper
def sigmoid(x):
    """1 / (1 + e^-x), without overflow on either side."""
    f = np.float32
    z = exp(-abs(x))
    return (f(1) if x >= f(0) else z) / (f(1) + z)
