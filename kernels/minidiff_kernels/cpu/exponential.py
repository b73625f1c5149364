"""e^x and the sigmoid, of a float32 or a vector of them; the normal distribution; the maximum of two vectors."""

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
    """p 2^n for whole n, put together from bits; 0 where n is below -126, infinite where it is above 127."""

    def generate(context, builder, signature, arguments):
        (p, n), kind = arguments, signature.args[0]
        whole = ir.VectorType(ir.IntType(32), LANES) if kind == VECTOR_TYPE else ir.IntType(32)
        bias, place = (ir.Constant(whole, [i] * LANES if kind == VECTOR_TYPE else i) for i in (127, 23))
        safe = builder.select(builder.fcmp_ordered("==", n, n), n, _constant(kind, 0.0))  # NaN has no whole number
        bits = builder.shl(builder.add(builder.fptosi(safe, whole), bias), place)
        power = builder.bitcast(bits, _like(kind))
        tiny = builder.fcmp_ordered("<", n, _constant(kind, -126.0))
        huge = builder.fcmp_ordered(">", n, _constant(kind, 127.0))
        bounded = builder.select(tiny, _constant(kind, 0.0), builder.fmul(p, power))
        return builder.select(huge, _constant(kind, float("inf")), bounded)

    return p(p, n), generate


@typed_intrinsic
def maximum(typingctx, a, b):
    """The larger of two vectors, lane by lane; a where one is NaN."""

    def generate(context, builder, signature, arguments):
        a, b = arguments
        return builder.select(builder.fcmp_ordered("<", a, b), b, a)

    return a(a, b), generate


@helper
def exp(x):
    """e^x of a float32 or a vector, to 1e-7 relative; 0 below -87, infinite above 88, NaN for NaN.

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
    """1 / (1 + e^-x)."""
    one = np.float32(1)
    return one / (one + exp(np.float32(0) - x))


@helper
def normal_cdf(x, bell):
    """The share of a normal distribution below a float32 x, to 3e-7; bell = e^(-x^2 / 2), which the caller has use for.

    What lies beyond |x| is bell times a function that falls slowly from 1/2: here a polynomial of
    t = 1 / (1 + 0.29 |x|) without constant term, fitted so that its relative error stays below 1.3e-8 up to |x| = 6.5,
    where bell is 7e-10. A polynomial and a choice of two: loops over it vectorise, over the library's erf they do not.
    """
    f = np.float32
    t = f(1) / (f(1) + f(0.29) * abs(x))
    p = t * f(0.0393551076) + f(-0.192417487)
    for c in (f(0.303882857), f(-0.146665898), f(0.180822095), f(0.0798671692), f(0.119731723), f(0.115424434)):
        p = p * t + c
    beyond = p * t * bell
    return beyond if x < f(0) else f(1) - beyond
