"""Matrix products of bfloat16 pairs with float32 sums, from register tiles as in product.py.

    C[m, :] = start[m, :] + bias + sum over k of  A[m, k] B[k, :]          k counts pairs (bfloat16.py)

One instruction multiplies 16 columns of B, two rows of them at once, by a pair of A, which is in all lanes: twice the
operations of a float32 product's, for the same bytes. B is packed in panels of LANES columns, (columns / LANES, K,
LANES) pairs.

A is read where it lies. `rows` holds where each of its rows starts, and `segments` where in a row the next SEGMENT
pairs are; for a convolution rows are pixels, and segments are taps of its kernel, so that no patch is copied:

    for s in segments:  for k in range(length):  sums[m, :] += A[rows[m] + s + k step] B[k, :]

Shared by the kernels; in the reference, NumPy's @ is in its place.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .bfloat16 import INTEGERS, emit_dot
from .jit import helper
from .product import ROWS, strip_width
from .simd import LANES, address, as_vector, emit_prefetch, splat

CHUNK = 160  # pairs summed in registers at a time, or one segment

_I64 = ir.IntType(64)


def _i64(n: int) -> ir.Constant:
    return ir.Constant(_I64, n)


def _numbers(context, builder, kind, array, first, count: int) -> list[Any]:
    """array[first : first + count] of an int64 array, as LLVM values."""
    data = context.make_array(kind)(context, builder, array).data
    return [builder.load(builder.gep(data, [builder.add(first, _i64(i))])) for i in range(count)]


class _Rows:
    """ROWS rows of a matrix: vector v of row i is at array[rows[m + i] + column + v panel]."""

    def __init__(self, context, builder, kinds, values):
        array, rows, *integers = values
        m, column, self.panel = (
            context.cast(builder, n, kind, types.int64) for n, kind in zip(integers, kinds[2:], strict=True)
        )
        starts = _numbers(context, builder, kinds[1], rows, m, ROWS)
        self.places = [address(context, builder, kinds[0], array, builder.add(start, column)) for start in starts]

    def vector(self, builder, i: int, v: int):
        """The pointer to vector v of row i."""
        return as_vector(builder, builder.gep(self.places[i], [builder.mul(self.panel, _i64(v))]))


def _register_tile(vectors: int, step: int) -> Any:
    """tile(A, segments, B, start, bias, C): ROWS rows of C, `vectors` vectors wide. In pseudo-Python:

    sums = {(m, v): start[m, v] + bias[v] for m in range(ROWS) for v in range(vectors)}  # in registers
    for shift in segments:
        for k in range(length):
            columns = [next row of B, vector v, for v in range(vectors)]
            for m in range(ROWS):
                factor = A[m, shift + k step]  # a pair, broadcast to all lanes
                for v in range(vectors):
                    sums[m, v] += dot(factor, columns[v])  # 2 LANES products, one instruction
    C[m, v] = sums[m, v]

    segments: int64 array, the first of them, their number, and the length of each. B: array, first element, from panel
    to panel, and how far ahead it is prefetched. bias: array, first element. The others as `_Rows`.
    """

    @intrinsic
    def tile(typingctx, A, segments, B, start, bias, C):
        signature = types.void(A, segments, B, start, bias, C)

        def generate(context, builder, signature, arguments):
            kinds = signature.args
            A, segments, B, start, bias, C = (cgutils.unpack_tuple(builder, argument) for argument in arguments)
            (first, count, length), (b0, panel, ahead), (bias0,) = (
                [context.cast(builder, n, kind, types.int64) for n, kind in zip(values[1:], kinds[i][1:], strict=True)]
                for i, values in ((1, segments), (2, B), (4, bias))
            )
            a_rows, start_rows, c_rows = (
                _Rows(context, builder, kinds[i], rows) for i, rows in ((0, A), (3, start), (5, C))
            )
            offsets = address(context, builder, kinds[4][0], bias[0], bias0)
            sums = {}
            for v in range(vectors):
                offset = builder.load(as_vector(builder, builder.gep(offsets, [_i64(v * LANES)])), align=4)
                for m in range(ROWS):
                    old = builder.load(start_rows.vector(builder, m, v), align=4)
                    sums[m, v] = cgutils.alloca_once_value(builder, builder.fadd(old, offset))
            b_pointer = cgutils.alloca_once_value(builder, address(context, builder, kinds[2][0], B[0], b0))
            with cgutils.for_range(builder, count) as segment:
                at = builder.add(first, segment.index)
                (shift,) = _numbers(context, builder, kinds[1][0], segments[0], at, 1)
                a = [builder.gep(place, [shift]) for place in a_rows.places]
                with cgutils.for_range(builder, length) as term:
                    _add_term(builder, sums, a, builder.mul(term.index, _i64(step)), b_pointer, panel, ahead)
            for (m, v), total in sums.items():
                builder.store(builder.load(total), c_rows.vector(builder, m, v), align=4)
            return context.get_dummy_value()

        return signature, generate

    return tile


def _add_term(builder, sums, a, k, b_pointer, panel, ahead) -> None:
    """Add pair k of each row of A times the next row of B to the sums of a tile."""
    b = builder.load(b_pointer)
    columns = {}
    for m, v in sums:
        if m == 0:
            place = builder.gep(b, [builder.mul(panel, _i64(v))])
            columns[v] = builder.load(builder.bitcast(place, INTEGERS.as_pointer()), align=4)
    emit_prefetch(builder, builder.gep(b, [ahead]), write=0, level=2)
    for m in range(ROWS):
        pair = builder.bitcast(splat(builder, builder.load(builder.gep(a[m], [k]))), INTEGERS)
        for v, column in columns.items():
            builder.store(emit_dot(builder, builder.load(sums[m, v]), pair, column), sums[m, v])
    builder.store(builder.gep(b, [_i64(LANES)]), b_pointer)


def _product_of(step: int):
    tile1, tile2, tile3 = (_register_tile(vectors, step) for vectors in (1, 2, 3))

    @helper
    def product(A, segments, B, start, bias, C, M, V):
        (a, a_rows, a0), (shifts, length), (b, b0, b_panel) = A, segments, B
        (old, old_rows, old0, old_panel), (offsets, zeros, first) = start, bias
        c, c_rows, c0, c_panel = C
        at_once = max(CHUNK // length, 1)
        for s in range(0, len(shifts), at_once):
            terms = (shifts, s, min(at_once, len(shifts) - s), length)
            v = 0
            while v < V:
                width = strip_width(V - v)
                at = b0 + v * b_panel + s * length * LANES
                # the first tiles prefetch a panel each: of the next strip, or of the first one in the next segments
                ahead = width * b_panel if v + width < V else at_once * length * LANES - v * b_panel
                offset = (offsets, first + v * LANES) if s == 0 else (zeros, 0)
                for m in range(0, M, ROWS):
                    rows, sums = (a, a_rows, m, a0, 0), (c, c_rows, m, c0 + v * c_panel, c_panel)
                    before = (old, old_rows, m, old0 + v * old_panel, old_panel) if s == 0 else sums
                    columns = (b, at, b_panel, ahead + m // ROWS * b_panel if m // ROWS < 3 else 0)
                    if width == 3:
                        tile3(rows, terms, columns, before, offset, sums)
                    elif width == 2:
                        tile2(rows, terms, columns, before, offset, sums)
                    else:
                        tile1(rows, terms, columns, before, offset, sums)
                v += width

    return product


# product(A, segments, B, start, bias, C, M, V): M rows of C, a multiple of ROWS, and V panels of columns.
#   A         array, rows, first element
#   segments  their places in a row of A (int64), and the pairs of each
#   B         array, first element, from panel to panel
#   start, C  array, rows, first column, from panel to panel
#   bias      array, 3 LANES zeros, the bias of the first column
# A strip of B, CHUNK x 3 vectors, stays in L1 while all rows of A pass by.
product_of_rows = _product_of(step=1)  # the pairs of a row of A are adjacent
product_of_panels = _product_of(step=LANES)  # they are those of a panel's lane
