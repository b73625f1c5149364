"""exp, sigmoid and the normal distribution function for float32 or vectors; the maximum of two vectors.

Accelerates reference/elementwise.py: its sigmoid and normal_cdf, within the loops of all kernels that need them.
"""

import numpy as np
from llvmlite import ir

from .jit import helper
from .simd import LANES, VECTOR, VECTOR_TYPE, typed_intrinsic

NEAREST = np.float32(1.5 * 2**23)  # floats of this size are the integers: adding it rounds to the nearest


def _like(kind) -> ir.Type:
    """The LLVM type of a Vector or of a float32."""
    return VECTOR if kind == VECTOR_TYPE else ir.FloatType()


def _constant(kind, value: float) -> ir.Constant:
    return ir.Constant(VECTOR, [value] * LANES) if kind == VECTOR_TYPE else ir.Constant(ir.FloatType(), value)


@typed_intrinsic
def _bounded(typingctx, x):
    """x between -88.2, where e^x is 0 here, and 88.9, where it is infinite; NaN for NaN."""

    def generate(context, builder, signature, arguments):
        (x,), kind = arguments, signature.args[0]
        for comparison, bound in (("<", -88.2), (">", 88.9)):
            bound = _constant(kind, bound)
            x = builder.select(builder.fcmp_ordered(comparison, x, bound), bound, x)
        return x

    return x(x), generate


@typed_intrinsic
def _power_of_two(typingctx, x):
    """2^n from x = NEAREST + n, -127 <= n <= 128, whose low bits are n: they become the exponent; 0 for n = -127."""

    def generate(context, builder, signature, arguments):
        (x,), kind = arguments, signature.args[0]
        integer = ir.VectorType(ir.IntType(32), LANES) if kind == VECTOR_TYPE else ir.IntType(32)
        shift, bias = (ir.Constant(integer, [i] * LANES if kind == VECTOR_TYPE else i) for i in (23, 127 << 23))
        bits = builder.add(builder.shl(builder.bitcast(x, integer), shift), bias)
        return builder.bitcast(bits, _like(kind))

    return x(x), generate


@typed_intrinsic
def maximum(typingctx, a, b):
    """The elementwise maximum of two vectors; a where either is NaN."""

    def generate(context, builder, signature, arguments):
        a, b = arguments
        return builder.select(builder.fcmp_ordered("<", a, b), b, a)

    return a(a, b), generate


@helper
def exp(x):
    """e^x of a float32 or a vector, to 1e-7 relative; 0 below -87, infinite above 88, NaN for NaN.

    x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a polynomial fitted to 2e-9, times 2^n. Loops over it vectorise.
    """
    f = np.float32
    x = _bounded(x)
    shifted = x * f(1.4426950408889634) + NEAREST
    n = shifted - NEAREST
    r = x - n * f(0.693145751953125) - n * f(1.428606765330187e-06)  # ln 2 in two parts: n r stays exact
    r2 = r * r
    high = (
        f(0.041668002) + r * f(8.37415534e-3) + r2 * f(1.38436536e-3)
    )  # short chains of operations, not Horner's rule
    p = f(1) + r + r2 * (f(0.499999942) + r * f(0.166664313) + r2 * high)
    return p * _power_of_two(shifted)


@helper
def sigmoid(x):
    """1 / (1 + e^-x)."""
    one = np.float32(1)
    return one / (one + exp(np.float32(0) - x))


@helper
def silu(x):
    """x / (1 + e^-x)."""
    return x / (np.float32(1) + exp(np.float32(0) - x))


@helper
def normal_cdf(x, gaussian):
    """The standard normal distribution function Phi of a float32 x, to 3e-7; gaussian = e^(-x^2 / 2), from the caller.

    1 - Phi(|x|) = gaussian p(t), p a polynomial in t = 1 / (1 + 0.29 |x|) without constant term, fitted to a relative
    error below 1.3e-8 for |x| <= 6.5, where gaussian is 7e-10. Loops over it vectorise; loops over math.erf do not.
    """
    f = np.float32
    t = f(1) / (f(1) + f(0.29) * abs(x))
    p = t * f(0.0393551076) + f(-0.192417487)
    for c in (f(0.303882857), f(-0.146665898), f(0.180822095), f(0.0798671692), f(0.119731723), f(0.115424434)):
        p = p * t + c
    tail = p * t * gaussian
    return tail if x < f(0) else f(1) - tail
