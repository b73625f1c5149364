"""exp, sigmoid and the normal distribution function for float32 or vectors; the maximum of two vectors.

Accelerates reference/elementwise.py: its sigmoid and normal_cdf, within the loops of all kernels that need them.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from .jit import helper
from .simd import LANES, VECTOR, VECTOR_TYPE, typed_intrinsic


def _like(kind) -> ir.Type:
    """The LLVM type of a Vector or of a float32."""
    return VECTOR if kind == VECTOR_TYPE else ir.FloatType()


def _constant(kind, value: float) -> ir.Constant:
    return ir.Constant(VECTOR, [value] * LANES) if kind == VECTOR_TYPE else ir.Constant(ir.FloatType(), value)


@typed_intrinsic
def _floor(typingctx, x):
    def generate(context, builder, signature, arguments):
        kind = _like(signature.args[0])
        name = f"llvm.floor.v{LANES}f32" if kind == VECTOR else "llvm.floor.f32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
        return builder.call(function, arguments)

    return x(x), generate


@typed_intrinsic
def _times_power_of_two(typingctx, p, n):
    """p 2^n for integer n, by the exponent bits; 0 if n < -126, infinite if n > 127."""

    def generate(context, builder, signature, arguments):
        (p, n), kind = arguments, signature.args[0]
        integer = ir.VectorType(ir.IntType(32), LANES) if kind == VECTOR_TYPE else ir.IntType(32)
        bias, shift = (ir.Constant(integer, [i] * LANES if kind == VECTOR_TYPE else i) for i in (127, 23))
        safe = builder.select(builder.fcmp_ordered("==", n, n), n, _constant(kind, 0.0))  # fptosi of NaN is undefined
        bits = builder.shl(builder.add(builder.fptosi(safe, integer), bias), shift)
        power = builder.bitcast(bits, _like(kind))
        tiny = builder.fcmp_ordered("<", n, _constant(kind, -126.0))
        huge = builder.fcmp_ordered(">", n, _constant(kind, 127.0))
        bounded = builder.select(tiny, _constant(kind, 0.0), builder.fmul(p, power))
        return builder.select(huge, _constant(kind, float("inf")), bounded)

    return p(p, n), generate


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

    x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series, times 2^n. Loops over it vectorise.
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
    """1 / (1 + e^-x)."""
    one = np.float32(1)
    return one / (one + exp(np.float32(0) - x))


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
