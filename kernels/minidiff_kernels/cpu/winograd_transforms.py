"""The one-dimensional transforms of Winograd's F(4x4, 3x3); two of them, down and across, transform a tile.

    input transform  B^T (6, 6)      output transform  A^T (4, 6)      weight transform  G (6, 3)

The backward transforms multiply by the transposed matrices, A and G^T. A2 is the square of the interpolation point a,
B3 the cube of b. Products are factored by the even and odd powers that a and -a share.

Accelerates reference/winograd.py: its matrices, unrolled to sums of vectors without multiplications by 0 and 1.
"""

import numpy as np

from .jit import helper
from .simd import load, store

_f = np.float32
A1, B1 = _f(5 / 8), _f(3 / 2)  # the interpolation points a and b
A2, B2, A3, B3 = _f(A1**2), _f(B1**2), _f(A1**3), _f(B1**3)
P0, P2 = _f(A2 * B2), _f(A2 + B2)  # (t^2 - a^2) (t^2 - b^2) = t^4 - P2 t^2 + P0
G0, GA, GB = _f(1 / P0), _f(1 / (2 * A2 * (A2 - B2))), _f(1 / (2 * B2 * (B2 - A2)))  # the factors of G's rows


@helper
def input_transform(source, s, step, to, t, to_step):
    """B^T d: six vectors from six, to[t + i to_step] = the sum over j of B^T[i, j] source[s + j step]."""
    d0, d1, d2 = load(source, s), load(source, s + step), load(source, s + 2 * step)
    d3, d4, d5 = load(source, s + 3 * step), load(source, s + 4 * step), load(source, s + 5 * step)
    even_a, odd_a = d4 - B2 * d2, d3 - B2 * d1
    even_b, odd_b = d4 - A2 * d2, d3 - A2 * d1
    store(to, t, P0 * d0 - P2 * d2 + d4)
    store(to, t + to_step, even_a + A1 * odd_a)
    store(to, t + 2 * to_step, even_a - A1 * odd_a)
    store(to, t + 3 * to_step, even_b + B1 * odd_b)
    store(to, t + 4 * to_step, even_b - B1 * odd_b)
    store(to, t + 5 * to_step, P0 * d1 - P2 * d3 + d5)


@helper
def output_transform(source, s, step):
    """A^T m: four vectors from six, as a tuple."""
    m0, m5 = load(source, s), load(source, s + 5 * step)
    m1, m2, m3, m4 = (
        load(source, s + step), load(source, s + 2 * step), load(source, s + 3 * step), load(source, s + 4 * step),
    )  # fmt: skip
    sum_a, sum_b, difference_a, difference_b = m1 + m2, m3 + m4, m1 - m2, m3 - m4
    return (
        m0 + sum_a + sum_b,
        A1 * difference_a + B1 * difference_b,
        A2 * sum_a + B2 * sum_b,
        A3 * difference_a + B3 * difference_b + m5,
    )


@helper
def output_transform_backward(source, s, step, to, t, to_step):
    """A dy: six vectors from four."""
    y0, y1 = load(source, s), load(source, s + step)
    y2, y3 = load(source, s + 2 * step), load(source, s + 3 * step)
    even_a, odd_a = y0 + A2 * y2, y1 + A2 * y3
    even_b, odd_b = y0 + B2 * y2, y1 + B2 * y3
    store(to, t, y0)
    store(to, t + to_step, even_a + A1 * odd_a)
    store(to, t + 2 * to_step, even_a - A1 * odd_a)
    store(to, t + 3 * to_step, even_b + B1 * odd_b)
    store(to, t + 4 * to_step, even_b - B1 * odd_b)
    store(to, t + 5 * to_step, y3)


@helper
def weight_transform(source, s, step, to, t, to_step):
    """G g: six vectors from three."""
    g0, g1, g2 = load(source, s), load(source, s + step), load(source, s + 2 * step)
    even_a, odd_a = GA * g0 + (GA * A2) * g2, (GA * A1) * g1
    even_b, odd_b = GB * g0 + (GB * B2) * g2, (GB * B1) * g1
    store(to, t, G0 * g0)
    store(to, t + to_step, even_a + odd_a)
    store(to, t + 2 * to_step, even_a - odd_a)
    store(to, t + 3 * to_step, even_b + odd_b)
    store(to, t + 4 * to_step, even_b - odd_b)
    store(to, t + 5 * to_step, g2)


@helper
def weight_transform_backward(source, s, step, to, t, to_step):
    """G^T du: three vectors from six."""
    u0, u5 = load(source, s), load(source, s + 5 * step)
    u1, u2, u3, u4 = (
        load(source, s + step), load(source, s + 2 * step), load(source, s + 3 * step), load(source, s + 4 * step),
    )  # fmt: skip
    sum_a, sum_b, difference_a, difference_b = u1 + u2, u3 + u4, u1 - u2, u3 - u4
    store(to, t, G0 * u0 + GA * sum_a + GB * sum_b)
    store(to, t + to_step, (GA * A1) * difference_a + (GB * B1) * difference_b)
    store(to, t + 2 * to_step, (GA * A2) * sum_a + (GB * B2) * sum_b + u5)
