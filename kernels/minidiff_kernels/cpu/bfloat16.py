"""Vectors of pairs of bfloat16, the upper 16 bits of a float32: rounding, and the product of two vectors of pairs.

A pair fills the 32 bits of a float32, its even number in the lower half. Pairs are kept in float32 arrays, so that all
of simd.py moves them; as numbers those floats mean nothing.

Accelerates reference/bfloat16.py. Processors with AVX512_BF16 have an instruction for each function; it takes subnormal
numbers, below 1.2e-38, for zero. Elsewhere the numbers are rounded as integers, and widened to be multiplied.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from .exponential import exp
from .jit import helper, target
from .simd import LANES, VECTOR, VECTOR_TYPE, typed_intrinsic

HAS_DOT = "+avx512bf16" in target()[2].split(",") and LANES == 16

_I16, _I32 = ir.IntType(16), ir.IntType(32)
INTEGERS = ir.VectorType(_I32, LANES)


def _call(builder, name: str, result, *arguments) -> Any:
    """Call an LLVM intrinsic."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _all(n: int) -> ir.Constant:
    """The integer in every lane."""
    return ir.Constant(INTEGERS, [n] * LANES)


def _rounded(builder, vector):
    """float32 vector -> the bits of bfloat16 in the upper half of each lane, rounded to nearest, ties to even.

    Half of the last place is added, less one unless that place is odd. NaN, which the sum could turn into another
    number, stays NaN.
    """
    bits = builder.bitcast(vector, INTEGERS)
    odd = builder.and_(builder.lshr(bits, _all(16)), _all(1))
    nearest = builder.add(builder.add(bits, _all(0x7FFF)), odd)
    is_nan = builder.fcmp_unordered("uno", vector, vector)
    return builder.select(is_nan, builder.or_(bits, _all(1 << 22)), nearest)


@typed_intrinsic
def round_pairs(typingctx, even, odd):
    """Two vectors -> the pairs (even[lane], odd[lane])."""

    def generate(context, builder, signature, arguments):
        if HAS_DOT:
            halves = (_call(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", _HALF, a) for a in arguments)
            low, high = (builder.zext(builder.bitcast(half, ir.VectorType(_I16, LANES)), INTEGERS) for half in halves)
            high = builder.shl(high, _all(16))
        else:
            low, high = (_rounded(builder, vector) for vector in arguments)
            low, high = builder.lshr(low, _all(16)), builder.and_(high, _all(0xFFFF0000))
        return builder.bitcast(builder.or_(low, high), VECTOR)

    return VECTOR_TYPE(even, odd), generate


@typed_intrinsic
def round_adjacent(typingctx, first, second):
    """Two vectors -> pairs of adjacent lanes: (first[0], first[1]), ... (second[0], second[1]), ..."""

    def generate(context, builder, signature, arguments):
        first, second = arguments
        if HAS_DOT:
            both = _call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", _PAIRS, second, first)
            return builder.bitcast(both, VECTOR)
        halves = (builder.lshr(_rounded(builder, vector), _all(16)) for vector in arguments)
        low, high = (builder.trunc(half, ir.VectorType(_I16, LANES)) for half in halves)
        order = ir.Constant(ir.VectorType(_I32, 2 * LANES), list(range(2 * LANES)))
        return builder.bitcast(builder.shuffle_vector(low, high, order), VECTOR)

    return VECTOR_TYPE(first, second), generate


@typed_intrinsic
def _fraction(typingctx, x):
    """x - floor(x) of a vector; 0 for infinity."""

    def generate(context, builder, signature, arguments):
        (x,), floor = arguments, ir.Constant(_I32, 1)
        return _call(builder, "llvm.x86.avx512.mask.reduce.ps.512", VECTOR, x, floor, x, *_UNMASKED)

    return x(x), generate


@typed_intrinsic
def _times_power_of_two(typingctx, x, y):
    """x 2^floor(y) of two vectors."""

    def generate(context, builder, signature, arguments):
        x, y = arguments
        return _call(builder, "llvm.x86.avx512.mask.scalef.ps.512", VECTOR, x, y, x, *_UNMASKED)

    return x(x, y), generate


_UNMASKED = ir.Constant(_I16, -1), ir.Constant(_I32, 4)  # all lanes; the current rounding


@helper
def exp2(x):
    """2^x of a vector, to 2e-7 relative; NaN for NaN. With AVX-512's instructions half the operations of exp."""
    if not HAS_DOT:
        return exp(x * np.float32(np.log(2)))
    r, f = _fraction(x), np.float32
    p = r * f(1.8775720e-3) + f(8.9893509e-3)  # of 2^r, fitted to a relative error of 8e-8
    for c in (f(5.5826310e-2), f(0.24015363), f(0.69315308), f(0.99999994)):
        p = p * r + c
    return _times_power_of_two(p, x)


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not have."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, _BFloat)

    def __hash__(self):
        return hash(_BFloat)


_HALF, _PAIRS = (ir.VectorType(_BFloat(), n) for n in (LANES, 2 * LANES))


def emit_dot(builder, total, a, b):
    """total + the products of two vectors of pairs; a and b as integers."""
    if HAS_DOT:
        a, b = (builder.bitcast(pairs, _PAIRS) for pairs in (a, b))
        return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", VECTOR, total, a, b)
    for half in (_odd, _even):
        factors = (builder.bitcast(half(builder, pairs), VECTOR) for pairs in (a, b))
        total = _call(builder, f"llvm.fmuladd.v{LANES}f32", VECTOR, *factors, total)
    return total


def _odd(builder, pairs):
    return builder.and_(pairs, _all(0xFFFF0000))


def _even(builder, pairs):
    return builder.shl(pairs, _all(16))
