"""Convolution, third rung: register tiles, and no im2col matrix; a block of pixels is read nine times, shifted.

Concatenate the rows of an image, each padded with a zero at both ends. The inputs of tap (i, j) for all pixels are then
the same array, i rows and j pixels further on: the convolution is nine matrix products at nine offsets of one array.
The two outputs between rows are computed too, and discarded.

A block is a few rows of the image. It is packed into panels, LANES channels wide (cpu/product.py), and stays in L2 with
its results and the weights. `product` keeps a tile of the result in registers: 8 pixels by 48 channels with AVX-512.
"""

import numpy as np
from minidiff_kernels.cpu.jit import kernel
from minidiff_kernels.cpu.memory import empty
from minidiff_kernels.cpu.product import ROWS, product
from minidiff_kernels.cpu.simd import LANES, clear, copy, load, round_up, store
from numba import get_num_threads, prange
from numba.np.ufunc.parallel import get_thread_id

HEIGHT = 8  # rows in a block


def conv2d(x, w):
    """y (N, H, W, O) of x (N, H, W, C) and w (O, 3, 3, C), with padding 1.

    C and O are multiples of LANES.
    """
    (_, _, W, C), O, threads = x.shape, len(w), get_num_threads()
    panels = empty((9, O // LANES, C, LANES))
    panels[...] = w.reshape(O // LANES, LANES, 9, C).transpose(2, 0, 3, 1)
    pixels = round_up(HEIGHT * (W + 2), ROWS)
    inputs = empty((threads, C // LANES, pixels + 2 * (W + 2) + 2, LANES))
    out, y = empty((threads, O // LANES, pixels, LANES)), empty((*x.shape[:3], O))
    _convolve(x, panels.ravel(), inputs, out, y)
    return y


@kernel
def _convolve(x, weights, inputs, out, y):
    (N, H, W, C), O, across = x.shape, y.shape[3], x.shape[2] + 2
    flat_x, flat_y, blocks = x.ravel(), y.ravel(), (H + HEIGHT - 1) // HEIGHT
    in_panel, out_panel, pixels = inputs.shape[2] * LANES, out.shape[2] * LANES, out.shape[2]
    for block in prange(N * blocks):
        n, top = divmod(np.int64(block), blocks)
        top *= HEIGHT
        a, c = inputs[get_thread_id()].ravel(), out[get_thread_id()].ravel()
        for r in range(HEIGHT + 2):
            row = top + r - 1
            for v in range(C // LANES):
                to = v * in_panel + r * across * LANES
                clear(a, to, across * LANES)
                if 0 <= row < H:
                    for q in range(W):
                        copy(a, to + (q + 1) * LANES, flat_x, ((n * H + row) * W + q) * C + v * LANES, LANES)
        for tap in range(9):
            i, j = divmod(tap, 3)
            shift, b = (i * across + j) * LANES, tap * O * C
            A, B = (a, shift, LANES, in_panel), (weights, b, LANES, C * LANES)
            product(A, B, (c, 0, LANES, out_panel), pixels, O // LANES, C, tap == 0)
        for r in range(min(HEIGHT, H - top)):
            for q in range(W):
                for v in range(O // LANES):
                    pixel = load(c, v * out_panel + (r * across + q) * LANES)
                    store(flat_y, ((n * H + top + r) * W + q) * O + v * LANES, pixel)
