"""Training steps: one step of DDPM algorithm 1, and the loop over steps.

Randomness depends on the step, not on a generator's state: step k draws t, eps and dropout from
default_rng([seed, k]), and its batch depends on (seed, k) too. So a resumed run equals one without interruption.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minidiff.data.dataset import slices
from minidiff.diffusion.loss import (
    importance_sample,
    loss_history,
    min_snr_weight,
    record_losses,
    training_loss,
)
from minidiff.diffusion.model import Model
from minidiff.diffusion.schedule import AnySchedule, stratified_t
from minidiff.engine.muon import Muon
from minidiff.engine.nn import Parameter
from minidiff.engine.optim import AdamW, half_life
from minidiff.engine.rng import Rng
from minidiff.engine.tensor import Tensor
from minidiff.errors import MinidiffError
from minidiff.training.config import TrainConfig
from minidiff.training.parallel.gradients import gradient_sum, of_all_parts, set_reduction
from minidiff.training.parallel.timeline import timed

Teacher = Callable[[np.ndarray, np.ndarray, np.ndarray, Any], tuple[np.ndarray, np.ndarray]]

QUARTERS = 4  # of the noise levels, for which the loss is logged apart
MAX_SKIPPED = 10  # consecutive skipped steps: the weights are not finite, or the learning rate is far too high


def make_optimizer(named: Iterable[tuple[str, Parameter]], config: TrainConfig) -> AdamW:
    """The optimiser of every run: the configuration's lr, beta2 and EMAs, no weight decay, clipping to norm 1.

    named: the trained parameters by name.
    """
    emas = (config.ema, *map(half_life, config.further_emas))
    settings: dict[str, Any] = {"betas": (0.9, config.beta2), "weight_decay": 0.0, "clip": 1.0, "ema": emas}
    if config.optimizer == "muon":
        optimizer = Muon(named, config.lr, **settings)
    else:
        optimizer = AdamW([p for _, p in named], config.lr, **settings)
    set_reduction(optimizer, config.reduction)
    return optimizer


@dataclass(frozen=True)
class StepStats:
    """The result of a step: step (1, 2, ...), loss, grad_norm before clipping, the loss by noise level.

    losses    functions that return a scalar, one for each equal part of the batch; the loss is their mean
    norm      a function that returns a scalar
    errors    functions that return the unweighted losses of the images of each part, (N / parts,)
    quarters  (N,) integers, the quarter of the noise levels of each image: 0 has the least noise, 3 the most; None if
              they are not recorded (autoencoders and classifiers)
    The functions are called when the values are read, and only then wait for a GPU.
    """

    step: int
    losses: Sequence[Callable[[], Any]]
    norm: Callable[[], Any]
    errors: Sequence[Callable[[], Any]] = ()
    quarters: np.ndarray | None = None

    @property
    def loss(self) -> float:
        return sum(float(loss()) for loss in self.losses) / len(self.losses)

    @property
    def grad_norm(self) -> float:
        return float(self.norm())

    @property
    def quarter_losses(self) -> list[float | None]:
        """The mean unweighted loss of the images in each quarter of the noise levels; None if there is none."""
        if self.quarters is None:
            return [None] * QUARTERS
        errors = np.concatenate([error() for error in self.errors])  # (N,)
        images = [errors[self.quarters == quarter] for quarter in range(QUARTERS)]
        return [float(some.mean()) if len(some) else None for some in images]


def train_step(
    model: Model,
    schedule: AnySchedule,
    optimizer: AdamW,
    x0: np.ndarray,
    rng: Rng,
    cond: Any = None,
    min_snr: float | None = None,
    accumulate: int = 1,
    history: np.ndarray | None = None,
    image_weights: np.ndarray | None = None,
    teach: Teacher | None = None,
    stratified: bool = False,
) -> StepStats:
    """One step of DDPM algorithm 1: draw t and eps, take a gradient step on the loss.

    x0 float32 (N, H, W, C) in [-1, 1]; cond as the model takes it. rng draws t, then eps, then dropout; of a batch in
    parts, a seed for the dropout of each.
    With min_snr, the loss is weighted with that gamma (`min_snr_weight`).
    accumulate  number of equal parts that the batch is split into (gradient accumulation): memory for one suffices.
                The mean of their gradients is the whole batch's, up to rounding; dropout masks differ, for they are
                drawn part by part. Several ranks share the parts (parallel/gradients.py)
    history     importance sampling of t by this array of losses (`loss_history`), to which the step adds its own, and
                so waits for a GPU; it does not go with min_snr
    image_weights  (N,) multiplies each image's loss
    stratified  draw t by `stratified_t`, in place of independently; it does not go with history
    teach       teach(x0, t, eps, cond) returns the x0 and eps of the loss in the place of those drawn
    Raises ValueError if the batch cannot be split into equal parts, MinidiffError if the ranks cannot share them.
    """
    if history is None:
        t = stratified_t(schedule, rng, len(x0)) if stratified else schedule.sample_t(rng, len(x0))  # (N,)
        weight = None if min_snr is None else min_snr_weight(schedule, t, min_snr)
    else:
        t, weight = importance_sample(history, rng, len(x0))  # (N,) each
    if image_weights is not None:
        weight = image_weights if weight is None else image_weights * weight
    eps = rng.standard_normal(x0.shape, dtype=np.float32)  # (N, H, W, C)
    if teach is not None:
        x0, eps = teach(x0, t, eps, cond)
    quarters = np.minimum((QUARTERS * schedule.quantile(t)).astype(int), QUARTERS - 1)
    errors: list[Callable[[], Any]] = []
    rng_of = dropout_rngs(rng, accumulate)

    def loss_of(part: slice) -> Tensor:
        labels, weights = (None if a is None else a[part] for a in (cond, weight))
        dropout = rng_of[part.start * accumulate // len(x0)]
        return training_loss(model, schedule, x0[part], t[part], eps[part], labels, dropout, weights, record)

    def record(error: Any) -> None:
        errors.append(optimizer.backend.later(error))

    stats = gradient_step(optimizer, len(x0), accumulate, loss_of)
    all_errors = of_all_parts(errors)
    if history is not None:
        record_losses(history, t, np.concatenate([error() for error in all_errors]))
    return replace(stats, errors=all_errors, quarters=quarters)


def dropout_rngs(rng: Rng, accumulate: int) -> list[Rng]:
    """The generator of each part's dropout; of several parts each has its own, whichever rank computes it."""
    if accumulate == 1:
        return [rng]
    return [np.random.default_rng(int(seed)) for seed in rng.integers(0, 2**63 - 1, accumulate)]


def gradient_step(optimizer: AdamW, n: int, accumulate: int, loss_of: Callable[[slice], Tensor]) -> StepStats:
    """One optimiser step on the mean of loss_of(part) over `accumulate` equal parts, slices of a batch of n.

    Several ranks share the parts; all of them take the same step. Raises ValueError if the batch cannot be split into
    that many, MinidiffError if the ranks cannot share them.
    """
    if n % accumulate:
        raise ValueError(f"a batch of {n} cannot be split into {accumulate} equal parts")
    parts, losses = list(slices(n, n // accumulate)), []
    gradients = gradient_sum(optimizer)
    for k in gradients.parts(accumulate):
        with timed("forward", k):
            loss = loss_of(parts[k])
        with timed("backward", k):
            loss.backward(np.float32(1 / accumulate), gradients.final)
        losses.append(loss.backend.later(loss.data))
    with timed("update"):
        norm = optimizer.step()
    return StepStats(optimizer.step_count, of_all_parts(losses), optimizer.backend.later(norm))


def train(
    model: Model,
    schedule: AnySchedule,
    optimizer: AdamW,
    batches: Iterator[tuple[np.ndarray, Any]],
    config: TrainConfig,
) -> Iterator[StepStats]:
    """One `train_step` for every batch; yields its StepStats. A progress bar and a log are loops over it.

    batches yields (x0, cond) for the steps from optimizer.step_count + 1 on. Importance sampling of t starts with no
    history. Otherwise as `steps`.
    """
    history = loss_history(schedule) if config.importance_sampling else None

    def train_batch(batch: tuple[np.ndarray, Any], rng: np.random.Generator) -> StepStats:
        x0, cond = batch
        return train_step(
            model, schedule, optimizer, x0, rng, cond, config.min_snr, config.accumulate, history,
            stratified=config.stratified,
        )  # fmt: skip

    return steps(train_batch, optimizer, batches, config)


def steps(
    train_batch: Callable[[Any, np.random.Generator], StepStats],
    optimizer: AdamW,
    batches: Iterator[Any],
    config: TrainConfig,
) -> Iterator[StepStats]:
    """train_batch(batch, rng) for every batch, with the step's learning rate and its own generator.

    A step whose gradient is not finite changes no weight; its StepStats has the norm that is not finite.
    Raises MinidiffError, with the step, after MAX_SKIPPED such steps in a row, and if memory does not suffice.
    """
    for batch in batches:
        step = optimizer.step_count + 1
        optimizer.lr = config.rate(step)
        rng = np.random.default_rng([config.seed, step])
        try:
            stats = train_batch(batch, rng)
        except MemoryError:  # CuPy's, too
            n = config.batch_size
            remedy = f"start a new run with --batch-size {max(n // 2, 1)}"
            raise MinidiffError(f"step {step}: there is no memory for a batch of {n}; {remedy}") from None
        check_skipped(step - 1, optimizer.skipped_before, optimizer.lr)  # does not wait for this step
        yield stats


def check_skipped(step: int, skipped: int, lr: float) -> None:
    """Raises MinidiffError if at least MAX_SKIPPED steps in a row, up to this one, were skipped."""
    if skipped >= MAX_SKIPPED:
        raise MinidiffError(
            f"step {step}: the gradient was not finite {skipped} times in a row (the learning rate is {lr:g}); "
            "start a new run with a smaller --lr"
        )
