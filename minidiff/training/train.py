"""Training: one step, many steps, and the choices that make a run.

Randomness goes by step, not by state: step k draws t, eps and dropout from default_rng([seed, k]), and its
batch follows from (seed, k) too. So a resumed run is the very same run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from minidiff.diffusion.loss import min_snr_weight, training_loss
from minidiff.diffusion.schedule import AnySchedule, cosine_schedule
from minidiff.engine.nn import Parameter
from minidiff.engine.optim import AdamW, learning_rate
from minidiff.engine.tensor import Tensor
from minidiff.errors import MinidiffError

SCHEDULE = cosine_schedule(1000, prediction_type="v_prediction")  # of every run that is not told otherwise
DECAY_FROM = {"cosine": 0.5, "none": 1.0}  # the share of a run's steps after which the rate falls
WHOLE = {
    "size": (1, 4096), "steps": (1, 10**9), "batch_size": (1, 65536), "warmup": (0, 10**9), "seed": (0, 2**63 - 1),
    "threads": (1, 4096), "accumulate": (1, 65536), "pad_crop": (0, 4096),
}  # fmt: skip
MOST_SKIPPED = 10  # steps in a row; the weights are lost for good, or the rate is far too high


@dataclass(frozen=True)
class TrainConfig:
    """What a run is started with, and what its state file remembers.

    steps         the total, not "more"
    batch_size    pictures a step; they pass through the network in `accumulate` parts, one after the other
    lr            the peak; it rises over `warmup` steps, and falls as `decay` says: along half a cosine over the second
                  half ("cosine"), or not at all ("none")
    beta2         AdamW's memory of squared gradients
    ema           decay of the moving average of the weights, which is what samples are drawn from
    flip          mirror images left to right at random, of a dataset that allows it
    pad_crop      pixels by which pictures are shifted at random, at most (batches.py)
    skip_bad      leave pictures out that cannot be read
    pictures      fingerprint of the set that lies at the path `data` (dataset.py); "" of one that goes by its name
    seed          of everything: weights, order, noise
    classes       what it learns to be asked for, by name; none: it never sees a label
    min_snr       the gamma of min-SNR weighting, which then weighs the loss
    label_dropout share of pictures whose label or caption it does not see, so that it also learns to do without
                  (guidance.py)
    kl            what the divergence of an autoencoder's latents counts (vae.py)
    Raises MinidiffError that names the first value that makes no sense.
    """

    data: str
    size: int | None = None
    steps: int = 2000
    batch_size: int = 32
    lr: float = 1e-3
    warmup: int = 50
    ema: float = 0.995
    flip: bool = True
    seed: int = 0
    backend: str = "numba"
    threads: int = 1
    classes: tuple[str, ...] = ()
    label_dropout: float = 0.1
    min_snr: float | None = None
    accumulate: int = 1
    decay: str = "cosine"
    beta2: float = 0.99
    pad_crop: int = 0
    skip_bad: bool = False
    kl: float = 1e-4
    pictures: str = ""

    def __post_init__(self) -> None:
        for name, (low, high) in WHOLE.items():
            value = getattr(self, name)
            if name == "size" and value is None:
                continue
            if type(value) is not int or not low <= value <= high:
                raise MinidiffError(f"{name} = {value!r}: give a whole number from {low} to {high}")
        for name in ("lr", "ema", "label_dropout", "beta2", "kl"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < 1:
                raise MinidiffError(f"{name} = {value!r}: give a number above 0 and below 1")
        if self.batch_size % self.accumulate:
            raise MinidiffError(f"accumulate = {self.accumulate}: must divide batch_size = {self.batch_size}")
        if self.decay not in DECAY_FROM:
            raise MinidiffError(f"decay = {self.decay!r}: choose {' or '.join(DECAY_FROM)}")
        if type(self.skip_bad) is not bool:
            raise MinidiffError(f"skip_bad = {self.skip_bad!r}: give true or false")
        if self.min_snr is not None and not (type(self.min_snr) in (int, float) and 0 < self.min_snr <= 1e6):
            raise MinidiffError(f"min_snr = {self.min_snr!r}: give a number above 0, such as 5")
        names = self.classes
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            raise MinidiffError(f"classes = {names!r:.80}: give a list of names")
        object.__setattr__(self, "classes", tuple(names))  # JSON has lists

    def rate(self, step: int) -> float:
        """The learning rate at a step (1 ... steps)."""
        return learning_rate(self.lr, step, self.steps, self.warmup, DECAY_FROM[self.decay])


def make_optimizer(params: list[Parameter], config: TrainConfig) -> AdamW:
    """AdamW as every run has it: a short memory (beta2), no weight decay, gradients clipped to a norm of 1."""
    return AdamW(params, config.lr, betas=(0.9, config.beta2), weight_decay=0.0, clip=1.0, ema=config.ema)


# Choices that older runs do not name; the defaults are what they did.
LATER = {
    "classes", "label_dropout", "min_snr", "accumulate", "decay", "beta2", "pad_crop", "skip_bad", "kl", "pictures",
}  # fmt: skip


def config_from_dict(values: Any) -> TrainConfig:
    """The inverse of asdict, for what was read from a file. Raises MinidiffError if it is not one."""
    names = {field.name for field in fields(TrainConfig)}
    whole = isinstance(values, dict) and names - LATER <= set(values) <= names
    if not whole or not all(isinstance(values.get(name, ""), str) for name in ("data", "backend", "decay", "pictures")):
        raise MinidiffError("the run's configuration is damaged: start a new run")
    return TrainConfig(**values)


class StepStats:
    """What a step tells of itself: step (from 1), loss, grad_norm before clipping.

    losses: a function that gives a scalar, one for each equal part of the batch; the loss is their mean. So grad_norm.
    A GPU is waited for when they are called, not before.
    """

    def __init__(self, step: int, losses: Sequence[Callable[[], Any]], grad_norm: Callable[[], Any]):
        self.step: int = step
        self._losses = losses
        self._grad_norm = grad_norm

    @property
    def loss(self) -> float:
        return sum(float(loss()) for loss in self._losses) / len(self._losses)

    @property
    def grad_norm(self) -> float:
        return float(self._grad_norm())


def train_step(
    model: Callable[..., Any],
    schedule: AnySchedule,
    optimizer: AdamW,
    x0: np.ndarray,
    rng: Any,
    cond: Any = None,
    min_snr: float | None = None,
    accumulate: int = 1,
) -> StepStats:
    """One step of DDPM algorithm 1: draw t and eps, take a gradient step on the loss.

    x0 float32 (N, H, W, C) in [-1, 1]; cond as the model takes it. rng draws t, then eps, then dropout.
    With min_snr, the loss is weighted with that gamma (`min_snr_weight`).
    accumulate  equal parts in which the batch passes through, so that memory for one suffices. Their gradients' mean is
                that of the whole batch, up to rounding; but dropout is drawn part by part, and so is another
    Raises ValueError if the batch cannot be cut into equal parts.
    """
    t = schedule.sample_t(rng, len(x0))  # (N,)
    eps = rng.standard_normal(x0.shape, dtype=np.float32)  # (N, H, W, C)
    weight = None if min_snr is None else min_snr_weight(schedule, t, min_snr)

    def loss_of(part: slice) -> Tensor:
        labels, weights = (None if a is None else a[part] for a in (cond, weight))
        return training_loss(model, schedule, x0[part], t[part], eps[part], labels, rng, weights)

    return gradient_step(optimizer, len(x0), accumulate, loss_of)


def gradient_step(optimizer: AdamW, n: int, accumulate: int, loss_of: Callable[[slice], Tensor]) -> StepStats:
    """One step of the optimiser on the mean of loss_of(part) over equal parts of a batch of n, one after the other.

    Raises ValueError if the batch cannot be cut into that many.
    """
    if n % accumulate:
        raise ValueError(f"a batch of {n} cannot be cut into {accumulate} equal parts")
    optimizer.zero_grad()
    losses, size = [], n // accumulate
    for start in range(0, n, size):
        loss = loss_of(slice(start, start + size))
        loss.backward(np.float32(1 / accumulate))
        losses.append(loss.backend.later(loss.data))
    norm = optimizer.step()
    return StepStats(optimizer.step_count, losses, optimizer.backend.later(norm))


def train(
    model: Callable[..., Any],
    schedule: AnySchedule,
    optimizer: AdamW,
    batches: Iterator[tuple[np.ndarray, Any]],
    config: TrainConfig,
) -> Iterator[StepStats]:
    """Every step that is left until config.steps, one StepStats each. A progress bar and a log are loops over it.

    batches yields (x0, cond) for the steps from optimizer.step_count + 1 on. The rest as of `steps`.
    """

    def learn(batch: tuple[np.ndarray, Any], rng: np.random.Generator) -> StepStats:
        x0, cond = batch
        return train_step(model, schedule, optimizer, x0, rng, cond, config.min_snr, config.accumulate)

    return steps(learn, optimizer, batches, config)


def steps(
    learn: Callable[[Any, np.random.Generator], StepStats],
    optimizer: AdamW,
    batches: Iterator[Any],
    config: TrainConfig,
) -> Iterator[StepStats]:
    """learn(batch, rng) for every batch, at the step's learning rate and with the step's own generator.

    A step whose gradient is not finite is skipped: it changes no weight, and its StepStats tells of it.
    Raises MinidiffError, with the step, when that was so ten times in a row, and if memory does not suffice.
    """
    for batch in batches:
        step = optimizer.step_count + 1
        optimizer.lr = config.rate(step)
        rng = np.random.default_rng([config.seed, step])
        try:
            stats = learn(batch, rng)
        except MemoryError:  # CuPy's, too
            n = config.batch_size
            remedy = f"start a new run with --batch-size {max(n // 2, 1)}"
            raise MinidiffError(f"step {step}: there is no memory for {n} pictures at a time; {remedy}") from None
        check_skipped(step - 1, optimizer.skipped_before, optimizer.lr)  # this step need not be waited for
        yield stats


def check_skipped(step: int, skipped: int, lr: float) -> None:
    """Raises MinidiffError if so many steps in a row, up to this one, were skipped that the run is lost."""
    if skipped >= MOST_SKIPPED:
        raise MinidiffError(
            f"step {step}: the gradient was not finite {skipped} times in a row (the learning rate is {lr:g}); "
            "start a new run with a smaller --lr"
        )
