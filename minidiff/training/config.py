"""The configuration of a training run."""

from dataclasses import dataclass, fields
from typing import Any

from minidiff.engine.optim import learning_rate
from minidiff.errors import MinidiffError

DECAY_FROM = {"cosine": 0.5, "none": 1.0}  # the share of a run's steps after which the rate falls
WHOLE = {
    "size": (1, 4096), "steps": (1, 10**9), "batch_size": (1, 65536), "warmup": (0, 10**9), "seed": (0, 2**63 - 1),
    "threads": (1, 4096), "accumulate": (1, 65536), "pad_crop": (0, 4096),
}  # fmt: skip
# Choices that older runs do not name; the defaults are what they did.
LATER = {
    "classes", "label_dropout", "min_snr", "accumulate", "decay", "beta2", "pad_crop", "skip_bad", "kl", "pictures",
}  # fmt: skip


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

    def __post_init__(self):
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


def config_from_dict(values: Any) -> TrainConfig:
    """The inverse of asdict, for what was read from a file. Raises MinidiffError if it is not one."""
    names = {field.name for field in fields(TrainConfig)}
    whole = isinstance(values, dict) and names - LATER <= set(values) <= names
    if not whole or not all(isinstance(values.get(name, ""), str) for name in ("data", "backend", "decay", "pictures")):
        raise MinidiffError("the run's configuration is damaged: start a new run")
    return TrainConfig(**values)
