"""The sum of the gradients of a batch's parts, over all ranks, always in the order of the parts.

A batch has P parts. Of n ranks, rank r computes parts r, r + n, r + 2n, ..., each from a gradient of zero. The sum

    g = ((g_0 + g_1) + g_2) + ... + g_{P-1}

is rounded in that order whatever n is: any number of ranks that divides P has the bits of one process. The flat
gradient is cut into buckets, and each bucket into n shares. As soon as backward has completed a bucket, every rank
sends each of the others its share and adds up, part after part, what it receives of its own (a reduce-scatter). After
the last part it sends its sums to all others (an all-gather). Backward continues meanwhile.

With the reduction "mpi" a rank adds its own parts in place, and MPI's all-reduce adds the sums of the ranks, in an
order of its own: equal up to rounding, and with more parts than ranks fewer bytes.

MPI moves messages only while it is called, so `final` also looks after the exchanges that are under way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

import minidiff.ranks as ranks  # not from minidiff, which would import the public names, this module among them
from minidiff.engine.optim import AdamW
from minidiff.engine.tensor import Tensor
from minidiff.errors import MinidiffError
from minidiff.training.parallel.timeline import timed

BUCKET = 2**20  # elements, 4 MB: a bucket has at least so many, to the end of a parameter
REDUCTIONS = ("exact", "mpi")


@dataclass
class Bucket:
    """Consecutive elements of the flat gradient, and their exchange.

    place       where they are in the flat gradient
    shares      the share of each rank, within the bucket
    parameters  how many are in it; of these, `left` have no final gradient yet in this part
    steps       the exchange under way: yields requests, all of which are complete before it continues; None: done
    sums        of this rank's share; received: the shares that the others send
    """

    index: int
    place: slice
    shares: list[slice]
    parameters: int
    left: int = 0
    steps: Iterator[list[Any]] | None = None
    requests: list[Any] = field(default_factory=list)
    gradient: Any = None
    sums: Any = None
    received: Any = None


class GradientSum:
    """Adds up the gradients of a step's parts in the flat gradient of one optimiser."""

    def __init__(self, optimizer: AdamW, reduction: str = "exact"):
        self.g, self.backend = optimizer.g, optimizer.backend
        self.reduction = reduction
        self.n, self.rank = ranks.size(), ranks.rank()
        self.buckets, self.bucket_of = _buckets(optimizer, self.n)
        self.first = self.last = True

    def parts(self, count: int) -> Iterator[int]:
        """Yields those of `count` parts that this rank computes; what it then does adds to the gradients, with `final`.

        The sum of all is complete at the end. Raises MinidiffError if the ranks cannot share the parts equally.
        """
        check_parts(count)
        for k in (own := range(self.rank, count, self.n)):
            self._wait()  # the exchange of the part before reads the gradient
            self.first, self.last = k == own[0], k == own[-1]
            if self.first or self.reduction == "exact":
                self.g[...] = 0
            for bucket in self.buckets:
                bucket.left = bucket.parameters
            yield k
            for bucket in self.buckets:
                if bucket.left:  # a parameter of it has no part in the loss
                    self._begin(bucket)
        self._wait()
        self._copy_back()

    def final(self, leaf: Tensor) -> None:
        """The gradient of a parameter is final in this part: exchange its bucket if it is the last there."""
        bucket = self.bucket_of.get(id(leaf))
        if bucket is not None:
            bucket.left -= 1
            if not bucket.left:
                self._begin(bucket)
            self._progress()

    def _begin(self, bucket: Bucket) -> None:
        bucket.left = 0
        exchange = self._exact if self.reduction == "exact" else self._by_mpi
        bucket.steps, bucket.requests = exchange(bucket), []

    def _exact(self, bucket: Bucket) -> Iterator[list[Any]]:
        """Reduce-scatter in the order of ranks; after the last part all-gather."""
        if self.first and self.last and self.n == 1:
            return  # the sum of one
        g = self._host(bucket)
        mine = g[bucket.shares[self.rank]]
        with timed("scatter", bucket.index):
            yield self._messages(bucket, lambda r: g[bucket.shares[r]], lambda r: bucket.received[r])
        for r in range(self.n):
            part = mine if r == self.rank else bucket.received[r]
            if self.first and r == 0:
                bucket.sums[...] = part
            else:
                bucket.sums += part
        if self.last:
            mine[...] = bucket.sums
            with timed("gather", bucket.index):
                yield self._messages(bucket, lambda r: mine, lambda r: g[bucket.shares[r]])

    def _by_mpi(self, bucket: Bucket) -> Iterator[list[Any]]:
        """All-reduce after the last part."""
        if self.last and self.n > 1:
            from mpi4py import MPI

            with timed("all-reduce", bucket.index):
                yield [ranks.communicator().Iallreduce(MPI.IN_PLACE, self._host(bucket))]

    def _messages(
        self, bucket: Bucket, sent_to: Callable[[int], Any], received_from: Callable[[int], Any]
    ) -> list[Any]:
        """Requests that send every other rank an array and receive one from it."""
        mpi, others = ranks.communicator(), [r for r in range(self.n) if r != self.rank]
        receiving = [mpi.Irecv(received_from(r), r, bucket.index) for r in others]
        return receiving + [mpi.Isend(sent_to(r), r, bucket.index) for r in others]

    def _host(self, bucket: Bucket) -> Any:
        """The gradient of a bucket in host memory: a view of it, of a GPU's a copy. One process copies nothing."""
        g = self.g[bucket.place]
        bucket.gradient = g if self.n == 1 else self.backend.to_numpy(g)
        if bucket.sums is None:
            share = bucket.gradient[bucket.shares[self.rank]]
            bucket.sums = share.copy()
            bucket.received = np.empty((self.n, share.size), g.dtype) if self.n > 1 else None
        return bucket.gradient

    def _copy_back(self) -> None:
        """Copy the sums into a GPU's memory; host memory holds them already."""
        if self.n > 1 and self.backend.xp is not np:
            for bucket in self.buckets:
                self.g[bucket.place] = self.backend.asarray(bucket.gradient)

    def _progress(self) -> bool:
        """Continue every exchange as far as possible; returns whether all are done."""
        for bucket in self.buckets:
            while bucket.steps is not None and all([request.Test() for request in bucket.requests]):
                requests = next(bucket.steps, None)
                bucket.steps, bucket.requests = (None, []) if requests is None else (bucket.steps, requests)
        return all(bucket.steps is None for bucket in self.buckets)

    def _wait(self) -> None:
        with timed("wait"):
            ranks.wait_until(self._progress)


def _buckets(optimizer: AdamW, n: int) -> tuple[list[Bucket], dict[int, Bucket]]:
    """The buckets of an optimiser's gradient, and the bucket of each parameter, by its id."""
    buckets: list[Bucket] = []
    bucket_of: dict[int, Bucket] = {}
    start = end = 0
    inside: list[int] = []
    for p, shape in zip(optimizer.params, optimizer.shapes, strict=True):
        end += prod(shape)
        inside.append(id(p))
        if end - start >= BUCKET or p is optimizer.params[-1]:
            shares = [slice((end - start) * r // n, (end - start) * (r + 1) // n) for r in range(n)]
            buckets.append(Bucket(len(buckets), slice(start, end), shares, len(inside)))
            bucket_of |= dict.fromkeys(inside, buckets[-1])
            start, inside = end, []
    return buckets, bucket_of


def check_parts(count: int) -> None:
    """Raises MinidiffError if the ranks cannot share so many parts of a batch equally."""
    if count % (n := ranks.size()):
        fitting = ", ".join(str(k) for k in range(1, count + 1) if count % k == 0)
        raise MinidiffError(
            f"{n} processes cannot share a batch of {count} parts (--accumulate) equally: start {fitting} of them"
        )


_sums: WeakKeyDictionary[AdamW, GradientSum] = WeakKeyDictionary()  # their buffers are kept from step to step


def gradient_sum(optimizer: AdamW) -> GradientSum:
    """The sum of an optimiser's gradients over parts and ranks; "exact" unless `set_reduction` chose another."""
    if optimizer not in _sums or _sums[optimizer].n != ranks.size():
        set_reduction(optimizer, _sums[optimizer].reduction if optimizer in _sums else "exact")
    return _sums[optimizer]


def set_reduction(optimizer: AdamW, reduction: str) -> None:
    """Choose one of REDUCTIONS for an optimiser's gradients."""
    _sums[optimizer] = GradientSum(optimizer, reduction)


def of_all_parts(own: Sequence[Callable[[], Any]]) -> Sequence[Callable[[], Any]]:
    """Functions that return the values of all parts, in their order, for functions that return those of this rank's.

    The values are arrays of one shape. Alone they are not read, so that a GPU is not waited for.
    """
    if ranks.size() == 1:
        return own
    a = np.stack([np.asarray(value()) for value in own])  # (P / n, ...)
    ordered = ranks.concatenate(a).reshape(ranks.size(), *a.shape).swapaxes(0, 1)  # part k is [k // n, k % n]
    return [partial(np.asarray, value) for value in ordered.reshape(-1, *a.shape[1:])]
