"""exp, log, sigmoid and the normal distribution function for float32 or vectors; the maximum of two vectors.

Accelerates reference/elementwise.py: its sigmoid and normal_cdf, within the loops of all kernels that need them. exp
and log are NumPy's in the reference.
"""

import numpy as np
from llvmlite import ir

from .jit import helper
from .simd import LANES, VECTOR, VECTOR_TYPE, typed_intrinsic

LOWEST, HIGHEST = -88.0, 89.0  # of x in e^x, which is 0 or infinite there: its exponent n is -127 or 128
TO_INTEGER = 1.5 * 2**23 + 127  # float32 of this size are integers, so adding it rounds to one


def _like(kind) -> ir.Type:
    """The LLVM type of a Vector or of a float32."""
    return VECTOR if kind == VECTOR_TYPE else ir.FloatType()


def _constant(kind, value: float) -> ir.Constant:
    return ir.Constant(VECTOR, [value] * LANES) if kind == VECTOR_TYPE else ir.Constant(ir.FloatType(), value)


@typed_intrinsic
def _clamped(typingctx, x):
    """x within [LOWEST, HIGHEST]; NaN for NaN."""

    def generate(context, builder, signature, arguments):
        (x,), kind = arguments, signature.args[0]
        for relation, bound in (("<", LOWEST), (">", HIGHEST)):
            limit = _constant(kind, bound)
            x = builder.select(builder.fcmp_ordered(relation, x, limit), limit, x)
        return x

    return x(x), generate


@typed_intrinsic
def _power_of_two(typingctx, shifted):
    """2^n of shifted = n + TO_INTEGER: the last 8 bits of its fraction, n + 127, become the exponent's."""

    def generate(context, builder, signature, arguments):
        kind = signature.args[0]
        integer = ir.VectorType(ir.IntType(32), LANES) if kind == VECTOR_TYPE else ir.IntType(32)
        fraction_bits = ir.Constant(integer, [23] * LANES if kind == VECTOR_TYPE else 23)
        bits = builder.shl(builder.bitcast(arguments[0], integer), fraction_bits)
        return builder.bitcast(bits, _like(kind))

    return shifted(shifted), generate


@typed_intrinsic
def maximum(typingctx, a, b):
    """The elementwise maximum of two vectors; a where either is NaN."""

    def generate(context, builder, signature, arguments):
        a, b = arguments
        return builder.select(builder.fcmp_ordered("<", a, b), b, a)

    return a(a, b), generate


@helper
def exp(x):
    """e^x of a float32 or a vector, to 1e-7 relative; 0 below -88, infinite above 88.4, NaN for NaN.

    x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a polynomial fitted to a relative error of 2e-9, times 2^n. Loops over
    it vectorise.
    """
    f = np.float32
    x = _clamped(x)
    shifted = x * f(1.4426950408889634) + f(TO_INTEGER)
    n = shifted - f(TO_INTEGER)
    r = x - n * f(0.693145751953125) - n * f(1.428606765330187e-06)  # ln 2 in two parts: n r stays exact
    r2 = r * r  # short chains of operations in the place of Horner's rule
    high = f(0.041668002) + r * f(8.37415534e-3) + r2 * f(1.38436536e-3)
    p = f(1) + r + r2 * (f(0.499999942) + r * f(0.166664313) + r2 * high)
    return p * _power_of_two(shifted)


@typed_intrinsic
def _as_integer(typingctx, x):
    """The bits of x as an integer, converted to float: nearly linear in log2 x."""

    def generate(context, builder, signature, arguments):
        kind = _like(signature.args[0])
        integer = ir.VectorType(ir.IntType(32), LANES) if kind == VECTOR else ir.IntType(32)
        return builder.sitofp(builder.bitcast(arguments[0], integer), kind)

    return x(x), generate


@helper
def log(x):
    """The natural logarithm of a positive float32 or vector, to 1e-7 absolute; NaN for NaN.

    Two steps of Halley's method on e^y = x, from an estimate that is off by at most 0.03.
    """
    f = np.float32
    y = _as_integer(x) * f(np.log(2) / 2**23) - f(126.957 * np.log(2))
    for _ in range(2):
        e = exp(y)
        y = y + f(2) * (x - e) / (x + e)
    return y


@helper
def sigmoid(x):
    """1 / (1 + e^-x)."""
    one = np.float32(1)
    return one / (one + exp(np.float32(0) - x))


@helper
def silu(x):
    """x / (1 + e^-x)."""
    return x / (np.float32(1) + exp(np.float32(0) - x))


@typed_intrinsic
def _if_negative(typingctx, x, a, b):
    """Elementwise a where x < 0, else b."""

    def generate(context, builder, signature, arguments):
        x, a, b = arguments
        return builder.select(builder.fcmp_ordered("<", x, _constant(signature.args[0], 0.0)), a, b)

    return x(x, a, b), generate


@helper
def normal_cdf(x, gaussian):
    """The standard normal distribution function Phi of x, to 3e-7; gaussian = e^(-x^2 / 2), from the caller.

    1 - Phi(|x|) = gaussian p(t), p a polynomial in t = 1 / (1 + 0.29 |x|) without constant term, fitted to a relative
    error below 1.3e-8 for |x| <= 6.5, where gaussian is 7e-10. Loops over it vectorise; loops over math.erf do not.
    """
    f = np.float32
    t = f(1) / (f(1) + f(0.29) * _if_negative(x, f(0) - x, x))
    p = t * f(0.0393551076) + f(-0.192417487)
    for c in (f(0.303882857), f(-0.146665898), f(0.180822095), f(0.0798671692), f(0.119731723), f(0.115424434)):
        p = p * t + c
    tail = p * t * gaussian
    return _if_negative(x, tail, f(1) - tail)
