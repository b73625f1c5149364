"""C = A B, or C = A^T B, or either added to what C holds: a tile of C stays in registers while the sum runs.

Numba turns a plain loop into vector code, but it cannot be told to hold a tile of results in registers, and that is
what a fast matrix product is (Goto and van de Geijn 2008). So the tile is built as LLVM instructions here. Every
product in this package, in convolution, linear layers and attention, is made of it.

A matrix is a tuple (array, start, row, panel): its element (r, c) is
array[start + r * row + c // LANES * panel + c % LANES] of a flat array. So a picture's pixels are a matrix as they lie
in memory, with panel = LANES. Scratch is laid out in panels instead, LANES columns wide, with row = LANES: the rows of
a panel follow each other, and no two lines of a tile fall on the same place in a cache.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import helper
from .simd import LANES, VECTOR, address, as_vector, fetch, splat

ROWS = 8 if LANES == 16 else 4  # a tile is ROWS x up to 3 vectors: 24 of 32 registers, or 12 of 16
K_CHUNK = 64  # terms summed in registers at a time
AHEAD = 128  # terms from the row in use to the one that a cache is asked for, where both factors lie in rows of terms

_I64 = ir.IntType(64)


def _number(n: int) -> ir.Constant:
    return ir.Constant(_I64, n)


def _unpack(context, builder, kind, matrix):
    """The address where a matrix begins, and its steps from row to row and from panel to panel."""
    array, *whole = cgutils.unpack_tuple(builder, matrix)
    start, row, panel = (
        context.cast(builder, number, of, types.int64) for number, of in zip(whole, kind[1:], strict=True)
    )
    return address(context, builder, kind[0], array, start), row, panel


def _unknown(builder, number):
    """The same number, but LLVM does not know it any more: a loop of that many rounds is not unrolled.

    Two rounds of a tile in one need more registers than there are, and what is spilled halves the speed.
    """
    same = ir.FunctionType(_I64, [_I64])
    return builder.asm(same, "", "=r,0", [number], side_effect=False)


def _tile(vectors: int, transposed: bool) -> Any:
    """ROWS rows of a product, `vectors` vectors wide. Put into C if fresh, else added.

    Each term loads `vectors` vectors of B, and ROWS numbers of A that are broadcast. Meanwhile the second-level cache
    is asked for one line of A and one of B that will be needed soon: of A, of the ROWS rows that follow, and of B
    `ahead` numbers from here.
    """

    @intrinsic
    def tile(typingctx, a, b, c, K, fresh, ahead):
        signature = types.void(a, b, c, K, fresh, ahead)

        def generate(context, builder, signature, arguments):
            a, b, c = (
                _unpack(context, builder, kind, matrix)
                for kind, matrix in zip(signature.args[:3], arguments[:3], strict=True)
            )
            K, fresh, ahead = arguments[3:]
            (a, a_row, a_panel), (b, b_row, b_panel), (c, c_row, c_panel) = a, b, c
            row, step = (_number(1), a_row) if transposed else (a_row, _number(1))
            far = builder.mul(a_row, _number(AHEAD if transposed else ROWS))
            a, b, soon = (cgutils.alloca_once_value(builder, place) for place in (a, b, builder.gep(a, [far])))
            multiply_add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(VECTOR, [VECTOR] * 3), f"llvm.fmuladd.v{LANES}f32"
            )  # one instruction where the machine has it, two where not; llvm.fma would call libm there
            cells = [(m, v) for m in range(ROWS) for v in range(vectors)]
            sums = {cell: cgutils.alloca_once_value(builder, ir.Constant(VECTOR, [0.0] * LANES)) for cell in cells}

            def vector_at(place, offset):
                return as_vector(builder, builder.gep(place, [offset]))

            def advance(place, by):
                builder.store(builder.gep(builder.load(place), [by]), place)

            def add_terms(count):
                with cgutils.for_range(builder, count):
                    columns = [
                        builder.load(vector_at(builder.load(b), builder.mul(b_panel, _number(v))), align=4)
                        for v in range(vectors)
                    ]
                    fetch(builder, builder.gep(builder.load(b), [ahead]), write=0, level=2)
                    fetch(builder, builder.load(soon), write=0, level=2)
                    for m in range(ROWS):
                        place = builder.gep(builder.load(a), [builder.mul(row, _number(m))])
                        number = splat(builder, builder.load(place))
                        for v in range(vectors):
                            total = builder.call(multiply_add, [number, columns[v], builder.load(sums[m, v])])
                            builder.store(total, sums[m, v])
                    advance(a, step)
                    advance(b, b_row)
                    advance(soon, a_row if transposed else builder.sdiv(far, lanes))

            lanes = _number(LANES)
            if transposed:
                add_terms(K)
            else:
                with cgutils.for_range(builder, builder.sdiv(K, lanes)):
                    builder.store(builder.gep(builder.load(a), [far]), soon)
                    add_terms(_unknown(builder, lanes) if vectors == 3 else lanes)
                    advance(a, builder.sub(a_panel, lanes))
                add_terms(builder.srem(K, lanes))

            def place(m, v):
                offset = builder.add(builder.mul(c_row, _number(m)), builder.mul(c_panel, _number(v)))
                return vector_at(c, offset)

            places = {cell: place(*cell) for cell in cells}
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


@helper
def strip(V):
    """How many of V panels the next strip of tiles is wide: three, but rather two and two than three and one."""
    return 1 if V == 1 else 2 if V in (2, 4) else 3


def _product_of(transposed: bool):
    tile1, tile2, tile3 = (_tile(vectors, transposed) for vectors in (1, 2, 3))

    @helper
    def product(A, B, C, M, V, K, fresh):
        (a, a0, a_row, a_panel), (b, b0, b_row, b_panel), (c, c0, c_row, c_panel) = A, B, C
        for k in range(0, K, K_CHUNK):
            terms, first = min(K_CHUNK, K - k), fresh and k == 0
            v = 0
            while v < V:
                width = strip(V - v)
                for m in range(0, M, ROWS):
                    if transposed:
                        here = (a, a0 + k * a_row + m // LANES * a_panel + m % LANES, a_row, a_panel)
                    else:
                        here = (a, a0 + m * a_row + k // LANES * a_panel, a_row, a_panel)
                    there = (b, b0 + k * b_row + v * b_panel, b_row, b_panel)
                    out = (c, c0 + m * c_row + v * c_panel, c_row, c_panel)
                    if transposed:
                        ahead = AHEAD * b_row + m // ROWS * b_panel if m // ROWS < width else 0
                    else:
                        ahead = (width + m // ROWS) * b_panel if m // ROWS < width else 0
                    if width == 3:
                        tile3(here, there, out, terms, first, ahead)
                    elif width == 2:
                        tile2(here, there, out, terms, first, ahead)
                    else:
                        tile1(here, there, out, terms, first, ahead)
                v += width

    return product


# product(A, B, C, M, V, K, fresh): M rows of C, a multiple of ROWS; V panels of C; K terms of the sum. A is (M, K),
# transposed (K, M). K_CHUNK terms are summed at a time and then added: rounding errors grow with the number of chunks,
# not of terms, and a strip of B three vectors wide stays in the first-level cache while all rows pass by.
product = _product_of(transposed=False)
product_transposed = _product_of(transposed=True)
