"""Matrix products C = A B and C = A^T B, or either added to C, from register tiles.

A fast product keeps a tile of C in registers while the sum over k runs (Goto and van de Geijn 2008):

    for first in range(0, K, K_CHUNK):                        # chunks of the sum: this strip of B stays in L1
        for strip in strips(C, panels=3):                     # up to 3 panels of columns
            for rows in tiles(M, ROWS):                       # one register tile, C[rows, strip]
                sums = 0                                      # ROWS x 3 vectors, in registers
                for k in range(first, min(first + K_CHUNK, K)):
                    columns = B[k, strip]                     # 3 vectors
                    for m in rows:
                        sums[m] += A[m, k] * columns          # A[m, k] in all lanes; 3 fused multiply-adds
                C[rows, strip] += sums                        # or = in the first chunk

Numba cannot be told to keep `sums` in registers, so the tile is written as LLVM instructions here. All convolutions,
linear layers and attention use it.

A matrix is a tuple (array, start, row, panel) over a flat array; its element (r, c) is
array[start + r * row + c // LANES * panel + c % LANES]. Two layouts fit:

    pixels          row = channels, panel = LANES: an NHWC array as it lies in memory
    packed panels   row = LANES: (columns / LANES, rows, LANES), as in GotoBLAS and BLIS. A tile reads consecutive cache
                    lines, so that no two of them compete for the same set of a cache.

Shared by the kernels; in the reference, NumPy's @ is in its place.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import helper
from .simd import LANES, VECTOR, address, as_vector, emit_prefetch, splat

ROWS = 8 if LANES == 16 else 4  # a tile is ROWS x up to 3 vectors: 24 of 32 registers, or 12 of 16
K_CHUNK = 64  # terms summed in registers at a time
PREFETCH_TERMS = 128  # A^T B: how many terms ahead of the current one A and B are prefetched

_I64 = ir.IntType(64)


def _i64(n: int) -> ir.Constant:
    return ir.Constant(_I64, n)


class _Matrix(NamedTuple):
    """LLVM values of a matrix: the address of element (0, 0), the strides from row to row and from panel to panel."""

    start: Any
    row: Any
    panel: Any


def _unpack(context, builder, kind, matrix) -> _Matrix:
    array, *integers = cgutils.unpack_tuple(builder, matrix)
    start, row, panel = (
        context.cast(builder, value, of, types.int64) for value, of in zip(integers, kind[1:], strict=True)
    )
    return _Matrix(address(context, builder, kind[0], array, start), row, panel)


def _opaque(builder, value):
    """`value`, hidden from LLVM by an empty piece of assembly, so that a loop with this count is not unrolled.

    Two iterations of the widest tile at once need more registers than there are; the spills halve the speed.
    """
    same = ir.FunctionType(_I64, [_I64])
    return builder.asm(same, "", "=r,0", [value], side_effect=False)


class _TileCode:
    """Writes the instructions of one register tile, ROWS rows by `vectors` vectors of C. In pseudo-Python:

    sums = {(m, v): zeros(LANES) for m in range(ROWS) for v in range(vectors)}  # in registers
    for k in range(K):
        columns = [B[k, v * LANES : (v + 1) * LANES] for v in range(vectors)]
        prefetch one line of B and one of A into L2
        for m in range(ROWS):
            factor = A[k, m] if transposed else A[m, k]  # broadcast to all lanes
            for v in range(vectors):
                sums[m, v] += factor * columns[v]  # one fused multiply-add
    C[m, v] = sums[m, v], or += if not overwrite
    """

    def __init__(self, builder, vectors: int, transposed: bool, a: _Matrix, b: _Matrix, b_ahead):
        self.builder = builder
        self.vectors = vectors
        self.transposed = transposed
        self.a, self.b, self.b_ahead = a, b, b_ahead
        self.m_stride, self.k_stride = (_i64(1), a.row) if transposed else (a.row, _i64(1))
        self.a_ahead = builder.mul(a.row, _i64(PREFETCH_TERMS if transposed else ROWS))
        pointers = a.start, b.start, builder.gep(a.start, [self.a_ahead])
        self.a_pointer, self.b_pointer, self.a_prefetch = (cgutils.alloca_once_value(builder, p) for p in pointers)
        # one instruction where the processor has it, else two; llvm.fma would call libm there
        self.multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(VECTOR, [VECTOR] * 3), f"llvm.fmuladd.v{LANES}f32"
        )
        cells = [(m, v) for m in range(ROWS) for v in range(vectors)]
        zeros = ir.Constant(VECTOR, [0.0] * LANES)
        self.sums = {cell: cgutils.alloca_once_value(builder, zeros) for cell in cells}

    def vector_at(self, start, offset):
        return as_vector(self.builder, self.builder.gep(start, [offset]))

    def advance(self, pointer, by) -> None:
        self.builder.store(self.builder.gep(self.builder.load(pointer), [by]), pointer)

    def sum_over_k(self, K) -> None:
        """The loop over k. If A is not transposed, k runs along its rows: panel by panel, LANES terms each."""
        builder, lanes = self.builder, _i64(LANES)
        if self.transposed:
            self.add_terms(K)
            return
        with cgutils.for_range(builder, builder.sdiv(K, lanes)):
            builder.store(builder.gep(builder.load(self.a_pointer), [self.a_ahead]), self.a_prefetch)
            self.add_terms(_opaque(builder, lanes) if self.vectors == 3 else lanes)
            self.advance(self.a_pointer, builder.sub(self.a.panel, lanes))
        self.add_terms(builder.srem(K, lanes))

    def add_terms(self, count) -> None:
        """`count` consecutive terms of the sum."""
        builder = self.builder
        with cgutils.for_range(builder, count):
            columns = [
                builder.load(self.vector_at(builder.load(self.b_pointer), builder.mul(self.b.panel, _i64(v))), align=4)
                for v in range(self.vectors)
            ]
            emit_prefetch(builder, builder.gep(builder.load(self.b_pointer), [self.b_ahead]), write=0, level=2)
            emit_prefetch(builder, builder.load(self.a_prefetch), write=0, level=2)
            for m in range(ROWS):
                element = builder.gep(builder.load(self.a_pointer), [builder.mul(self.m_stride, _i64(m))])
                factor = splat(builder, builder.load(element))
                for v in range(self.vectors):
                    total = builder.call(self.multiply_add, [factor, columns[v], builder.load(self.sums[m, v])])
                    builder.store(total, self.sums[m, v])
            self.advance(self.a_pointer, self.k_stride)
            self.advance(self.b_pointer, self.b.row)
            # not transposed: LANES terms cover the ROWS rows of A that the next tile needs
            self.advance(self.a_prefetch, self.a.row if self.transposed else builder.sdiv(self.a_ahead, _i64(LANES)))

    def write(self, c: _Matrix, overwrite) -> None:
        """C = sums if overwrite, else C += sums."""
        builder = self.builder

        def address_of(m, v):
            offset = builder.add(builder.mul(c.row, _i64(m)), builder.mul(c.panel, _i64(v)))
            return self.vector_at(c.start, offset)

        addresses = {cell: address_of(*cell) for cell in self.sums}
        with builder.if_else(overwrite) as (put, add):
            with put:
                for cell, at in addresses.items():
                    builder.store(builder.load(self.sums[cell]), at, align=4)
            with add:
                for cell, at in addresses.items():
                    old = builder.load(at, align=4)
                    builder.store(builder.fadd(old, builder.load(self.sums[cell])), at, align=4)


def _register_tile(vectors: int, transposed: bool) -> Any:
    """tile(a, b, c, K, overwrite, b_ahead): one register tile, `vectors` vectors wide, from K terms.

    b_ahead: how many floats ahead of the current element B is prefetched.
    """

    @intrinsic
    def tile(typingctx, a, b, c, K, overwrite, b_ahead):
        signature = types.void(a, b, c, K, overwrite, b_ahead)

        def generate(context, builder, signature, arguments):
            *matrices, terms, replaces, ahead = arguments
            A, B, C = (_unpack(context, builder, *pair) for pair in zip(signature.args[:3], matrices, strict=True))
            code = _TileCode(builder, vectors, transposed, A, B, ahead)
            code.sum_over_k(terms)
            code.write(C, context.is_true(builder, types.boolean, replaces))
            return context.get_dummy_value()

        return signature, generate

    return tile


@helper
def strip_width(V):
    """The panels of the next strip of tiles when V are left: three, but two and two rather than three and one."""
    return 1 if V == 1 else 2 if V in (2, 4) else 3


def _product_of(transposed: bool):
    tile1, tile2, tile3 = (_register_tile(vectors, transposed) for vectors in (1, 2, 3))

    @helper
    def product(A, B, C, M, V, K, overwrite):
        (a, a0, a_row, a_panel), (b, b0, b_row, b_panel), (c, c0, c_row, c_panel) = A, B, C
        for k in range(0, K, K_CHUNK):
            terms, first = min(K_CHUNK, K - k), overwrite and k == 0
            v = 0
            while v < V:
                width = strip_width(V - v)
                for m in range(0, M, ROWS):
                    if transposed:
                        a_tile = (a, a0 + k * a_row + m // LANES * a_panel + m % LANES, a_row, a_panel)
                    else:
                        a_tile = (a, a0 + m * a_row + k // LANES * a_panel, a_row, a_panel)
                    b_strip = (b, b0 + k * b_row + v * b_panel, b_row, b_panel)
                    c_tile = (c, c0 + m * c_row + v * c_panel, c_row, c_panel)
                    # the first `width` tiles prefetch a panel of B each: this strip's later terms, or the next strip
                    if transposed:
                        b_ahead = PREFETCH_TERMS * b_row + m // ROWS * b_panel if m // ROWS < width else 0
                    else:
                        b_ahead = (width + m // ROWS) * b_panel if m // ROWS < width else 0
                    if width == 3:
                        tile3(a_tile, b_strip, c_tile, terms, first, b_ahead)
                    elif width == 2:
                        tile2(a_tile, b_strip, c_tile, terms, first, b_ahead)
                    else:
                        tile1(a_tile, b_strip, c_tile, terms, first, b_ahead)
                v += width

    return product


# product(A, B, C, M, V, K, overwrite): M rows of C, a multiple of ROWS; V panels of C; K terms of the sum. A is (M, K),
# transposed (K, M). The sum runs in chunks of K_CHUNK terms that are added to C: rounding errors grow with the number
# of chunks rather than of terms, and a strip of B, K_CHUNK x 3 vectors, stays in L1 while all rows of A pass by.
product = _product_of(transposed=False)
product_transposed = _product_of(transposed=True)
