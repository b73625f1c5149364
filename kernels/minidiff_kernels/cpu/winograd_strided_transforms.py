"""The transforms of Winograd's 3x3 convolution with stride 2: differences and sums of neighbouring pixels.

    inputs of a tile of y    five pixels down and across -> d0 - d2, d1, d2, d3, d4 - d2
    outputs                  three sums of products -> y0, y1
    of dx: inputs            three pixels of dy -> e0 - e1, e1, e2 (odd padding: e0), e2 - e1
    of dx: outputs           five products -> four pixels
    of dw: dy                two pixels -> y0, y0 + y1, y1
    of dw                    the gradients by five positions -> three taps

Element (i, j) of a tile goes to a plane of its own, which consists of panels (channels / LANES, tiles, LANES). `plane`
and `panel` are their strides.

Accelerates reference/winograd.py: its matrices for stride 2, whose elements are 0, 1 and -1.
"""

from .jit import helper
from .simd import LANES, load, prefetch_write, store
from .winograd import copy_strip


@helper
def transform_inputs(x, flat, n, p, q, run, pad, strip, planes, at, plane, panel):
    """The 5 x 5 planes of the input tiles of output tiles (p, q) ... (p, q + run - 1) of image n, into planes[at:]."""
    C, columns = x.shape[3], 4 * run + 1
    copy_strip(x, flat, n, 4 * p - pad[0], 4 * q - pad[1], 5, columns, strip)
    row = columns * C
    for e in range(0, row, LANES):
        middle = load(strip, 2 * row + e)
        store(strip, e, load(strip, e) - middle)
        store(strip, 4 * row + e, load(strip, 4 * row + e) - middle)
    for i in range(5):
        for t in range(run):
            for v in range(C // LANES):
                s, to = i * row + 4 * t * C + v * LANES, at + 5 * i * plane + v * panel + t * LANES
                for j in range(5):
                    prefetch_write(planes, to + LANES + j * plane)
                middle = load(strip, s + 2 * C)
                store(planes, to, load(strip, s) - middle)
                store(planes, to + plane, load(strip, s + C))
                store(planes, to + 2 * plane, middle)
                store(planes, to + 3 * plane, load(strip, s + 3 * C))
                store(planes, to + 4 * plane, load(strip, s + 4 * C) - middle)


@helper
def store_outputs(planes, at, plane, panel, bias, add, pixels_per_add, y, y_shape, n, p, q):
    """y = the sums of output tile (p, q) of image n, + bias + add, from the 3 x 3 planes."""
    _, height, width, O = y_shape
    for i in range(min(2, height - 2 * p)):
        pixel = (n * height + 2 * p + i) * width + 2 * q
        both = 2 * q + 1 < width
        row, step = pixel // pixels_per_add * O, O if pixels_per_add == 1 else 0
        for o in range(0, O, LANES):
            s = at + 3 * i * plane + o // LANES * panel
            left, right = load(planes, s) + load(planes, s + 3 * plane), load(planes, s + 2 * plane)
            middle = load(planes, s + plane) + load(planes, s + 4 * plane)
            right, bias_o = right + load(planes, s + 5 * plane), load(bias, o)
            store(y, pixel * O + o, left + middle + bias_o + load(add, row + o))
            if both:
                store(y, (pixel + 1) * O + o, middle + right + bias_o + load(add, row + step + o))


@helper
def transform_gradients(dy, flat, n, p, q, run, pad, strip, planes, at, plane, panel):
    """The 4 x 4 planes of dy for the tiles (p, q) ... (p, q + run - 1) of dx: e0 - e1, e1, e2 (odd: e0), e2 - e1."""
    O, columns, odd_row, odd = dy.shape[3], 2 * run + 1, pad[0] % 2, pad[1] % 2
    copy_strip(dy, flat, n, 2 * p - 1 + odd_row, 2 * q - 1 + odd, 3, columns, strip)
    row = columns * O
    for e in range(0, row, LANES):
        first, middle, last = load(strip, e), load(strip, row + e), load(strip, 2 * row + e)
        store(strip, e, first - middle)
        store(strip, 2 * row + e, first if odd_row else last)
        store(strip, 3 * row + e, last - middle)
    for i in range(4):
        for t in range(run):
            for v in range(O // LANES):
                s, to = i * row + 2 * t * O + v * LANES, at + 4 * i * plane + v * panel + t * LANES
                for j in range(4):
                    prefetch_write(planes, to + LANES + j * plane)
                first, middle, last = load(strip, s), load(strip, s + O), load(strip, s + 2 * O)
                store(planes, to, first - middle)
                store(planes, to + plane, middle)
                store(planes, to + 2 * plane, first if odd else last)
                store(planes, to + 3 * plane, last - middle)


@helper
def _row_sums(planes, s, i, plane):
    """Row i of the 5 x 5 products of a tile of dx, summed to four: m0 + m2, m1, m2 + m4, m3."""
    here = s + 5 * i * plane
    middle = load(planes, here + 2 * plane)
    even, other = load(planes, here) + middle, middle + load(planes, here + 4 * plane)
    return even, load(planes, here + plane), other, load(planes, here + 3 * plane)


@helper
def store_gradients(planes, at, plane, panel, dx, dx_shape, n, p, q, pad):
    """The 4 x 4 pixels of tile (p, q) of dx of image n, those inside the image."""
    (_, H, W, C), (odd_row, odd) = dx_shape, (pad[0] % 2, pad[1] % 2)
    top, left = 4 * p + odd_row - pad[0], 4 * q + odd - pad[1]
    for i in range(max(-top, 0), min(4, H - top)):
        pixel, k = (n * H + top + i) * W + left, i ^ odd_row  # row k of even padding
        for c in range(0, C, LANES):
            s = at + c // LANES * panel
            m0, m1, m2, m3 = _row_sums(planes, s, k, plane)
            if k % 2 == 0:
                a0, a1, a2, a3 = _row_sums(planes, s, k + 2, plane)
                m0, m1, m2, m3 = m0 + a0, m1 + a1, m2 + a2, m3 + a3
            if odd:
                m0, m1, m2, m3 = m1, m0, m3, m2
            if left >= 0:
                store(dx, pixel * C + c, m0)
            if 0 <= left + 1 < W:
                store(dx, (pixel + 1) * C + c, m1)
            if 0 <= left + 2 < W:
                store(dx, (pixel + 2) * C + c, m2)
            if 0 <= left + 3 < W:
                store(dx, (pixel + 3) * C + c, m3)


@helper
def transform_dy(dy, flat, n, p, q, run, strip, planes, at, plane, panel, dbias):
    """The 3 x 3 planes y0, y0 + y1, y1 of output tiles (p, q) ... (p, q + run - 1); dbias (O,) += the sum of dy."""
    O, columns = dy.shape[3], 2 * run
    copy_strip(dy, flat, n, 2 * p, 2 * q, 2, columns, strip)
    row = columns * O
    for o in range(0, O, LANES):
        total = load(dbias, o)
        for e in range(o, 2 * row, O):
            total = total + load(strip, e)
        store(dbias, o, total)
    for e in range(0, row, LANES):
        store(strip, 2 * row + e, load(strip, row + e))
        store(strip, row + e, load(strip, e) + load(strip, row + e))
    for i in range(3):
        for t in range(run):
            for v in range(O // LANES):
                s, to = i * row + 2 * t * O + v * LANES, at + 3 * i * plane + v * panel + t * LANES
                y0, y1 = load(strip, s), load(strip, s + O)
                store(planes, to, y0)
                store(planes, to + plane, y0 + y1)
                store(planes, to + 2 * plane, y1)


@helper
def sum_positions(dU, s, step):
    """The gradients by three taps from those by five positions: dU0 + dU2, dU1 + dU3, dU2 + dU4."""
    middle = load(dU, s + 2 * step)
    return load(dU, s) + middle, load(dU, s + step) + load(dU, s + 3 * step), middle + load(dU, s + 4 * step)
