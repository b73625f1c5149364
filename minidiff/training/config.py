"""The configuration of a training run."""

from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

from minidiff.engine.optim import half_life_of, learning_rate
from minidiff.errors import MinidiffError
from minidiff.formats.averages import RANGE, in_range, same_half_life
from minidiff.models.lora import PROJECTIONS
from minidiff.training.parallel.gradients import REDUCTIONS

OPTIMIZERS = ("adamw", "muon")
DECAY_START = {"cosine": 0.5, "none": 1.0}  # fraction of all steps after which the learning rate decays
CHOICES = {"optimizer": OPTIMIZERS, "decay": DECAY_START, "reduction": REDUCTIONS, "projections": PROJECTIONS}
INTEGER_RANGES = {
    "size": (1, 4096), "steps": (1, 10**9), "batch_size": (1, 65536), "warmup": (0, 10**9), "seed": (0, 2**63 - 1),
    "threads": (1, 4096), "accumulate": (1, 65536), "pad_crop": (0, 4096), "rank": (1, 65536),
    "consistency": (1, 20),
}  # fmt: skip
# Fields that state files of older runs lack; the defaults are what those runs did.
OPTIONAL_FIELDS = {
    "classes", "label_dropout", "min_snr", "accumulate", "decay", "beta2", "pad_crop", "skip_bad", "kl", "fingerprint",
    "learned_variance", "importance_sampling", "further_emas", "rank", "prior_weight", "word",
    "initial_word", "own_prior", "projections", "reduction", "begun_from", "consistency", "optimizer", "stratified",
}  # fmt: skip

STRINGS = (
    "data", "backend", "optimizer", "decay", "fingerprint", "word", "initial_word", "projections", "reduction",
    "begun_from",
)  # fmt: skip
FORMER_NAMES = {"pictures": "fingerprint", "distill": "own_prior"}  # of fields, in state files of older runs


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a run, which its state file stores.

    data          a built-in dataset's name, or the absolute path of a dataset
    size          images are resized to size x size pixels, where that is given
    steps         number of steps in total
    batch_size    images a step, split into `accumulate` equal parts that pass through the network one after the other,
                  or on several ranks at once
    lr            peak learning rate, after a linear warm-up of `warmup` steps; `decay` "cosine": along half a cosine
                  over the second half of the steps; "none": constant
    optimizer     "adamw", or "muon" for the hidden layers' weight matrices and AdamW for the rest (engine/muon.py)
    beta2         AdamW's decay of the second moments
    ema           decay of the moving average (EMA) of the weights, with which samples are generated
    further_emas  half-lives, in steps, of further averages, which the states hold beside it (formats/averages.py)
    flip          flip images left to right at random, if the dataset allows it
    pad_crop      maximum random shift in pixels (data/batches.py)
    skip_bad      leave out images that cannot be read
    fingerprint   of the dataset at the path `data` (data/dataset.py); "" for a built-in one
    seed          of initial weights, data order and noise
    classes       names of the classes of a class-conditional run; none: unconditional
    min_snr       gamma of the loss's min-SNR weights (diffusion/loss.py); None: unweighted
    label_dropout probability of replacing a label or caption by the null one, for classifier-free guidance
    learned_variance     the network predicts the reverse variance too (diffusion/loss.py)
    importance_sampling  draw t by the losses so far, in place of uniformly (diffusion/loss.py)
    stratified    draw the timesteps of a batch one from each n-th of their distribution (diffusion/schedule.py)
    kl            weight of the KL term in an autoencoder's loss (models/vae.py)
    rank          of a LoRA's updates (models/lora.py)
    word, initial_word   of textual inversion: the new word, and known ones, whose tokens' embeddings it starts from
    projections   of a LoRA: "attention" or "text", the layers with updates (models/lora.py)
    prior_weight  weight of prior preservation's term in the loss (training/prior.py); None: there is no such term
    own_prior     that term is on the predictions of the model as it was, not on images of a prior
    begun_from    the absolute path of the model whose weights DreamBooth or consistency tuning begins with, or ""
    consistency   stages of consistency tuning (diffusion/consistency/tuning.py); None: the run trains a diffusion model
    reduction     sum of the gradients of several ranks: "exact", or "mpi" (parallel/gradients.py)
    Raises MinidiffError that names the first value that is out of range.
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
    fingerprint: str = ""
    learned_variance: bool = False
    importance_sampling: bool = False
    further_emas: tuple[float, ...] = ()
    rank: int = 4
    projections: str = "attention"
    prior_weight: float | None = None
    own_prior: bool = False
    word: str = ""
    initial_word: str = ""
    begun_from: str = ""
    reduction: str = "exact"
    consistency: int | None = None
    optimizer: str = "adamw"
    stratified: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in INTEGER_RANGES.items():
            value = getattr(self, name)
            if name in ("size", "consistency") and value is None:
                continue
            if type(value) is not int or not low <= value <= high:
                raise MinidiffError(f"{name} = {value!r}: give a whole number from {low} to {high}")
        for name in ("lr", "ema", "label_dropout", "beta2", "kl"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < 1:
                raise MinidiffError(f"{name} = {value!r}: give a number above 0 and below 1")
        if self.batch_size % self.accumulate:
            raise MinidiffError(f"accumulate = {self.accumulate}: must divide batch_size = {self.batch_size}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise MinidiffError(f"{name} = {getattr(self, name)!r}: choose {' or '.join(choices)}")
        for name in ("skip_bad", "learned_variance", "importance_sampling", "own_prior", "stratified"):
            if type(getattr(self, name)) is not bool:
                raise MinidiffError(f"{name} = {getattr(self, name)!r}: give true or false")
        for name, such in (("min_snr", 5), ("prior_weight", 1)):
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and 0 < value <= 1e6):
                raise MinidiffError(f"{name} = {value!r}: give a number above 0, such as {such}")
        if self.min_snr is not None and (self.learned_variance or self.importance_sampling):
            other = "learned_variance" if self.learned_variance else "importance_sampling"
            raise MinidiffError(f"min_snr and {other} weight the loss in different ways: leave one of them out")
        if self.stratified and self.importance_sampling:
            raise MinidiffError("stratified and importance_sampling draw t in different ways: leave one of them out")
        names = self.classes
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            raise MinidiffError(f"classes = {names!r:.80}: give a list of names")
        object.__setattr__(self, "classes", tuple(names))  # JSON has lists
        object.__setattr__(self, "further_emas", _half_lives(self.ema, self.further_emas))

    def rate(self, step: int) -> float:
        """The learning rate at a step (1 ... steps)."""
        return learning_rate(self.lr, step, self.steps, self.warmup, DECAY_START[self.decay])


def _half_lives(ema: float, further: Any) -> tuple[float, ...]:
    """further_emas, checked. Raises MinidiffError if it is not a list of half-lives that all differ."""
    if not isinstance(further, list | tuple) or not all(
        type(steps) in (int, float) and in_range(steps) for steps in further
    ):
        raise MinidiffError(f"further_emas = {further!r:.80}: give a list of half-lives, {RANGE}")
    for a, b in combinations((half_life_of(ema), *further), 2):
        if same_half_life(a, b):
            raise MinidiffError(f"EMA half-lives {a:g} and {b:g}: must differ in the first three digits; leave one out")
    return tuple(map(float, further))


def config_from_dict(values: Any) -> TrainConfig:
    """The inverse of asdict, for values from a file. Raises MinidiffError if they are not a configuration."""
    names = {field.name for field in fields(TrainConfig)}
    if isinstance(values, dict):
        values = {FORMER_NAMES.get(name, name): value for name, value in values.items()}
    complete = isinstance(values, dict) and names - OPTIONAL_FIELDS <= set(values) <= names
    if not complete or not all(isinstance(values.get(name, ""), str) for name in STRINGS):
        raise MinidiffError("the run's configuration is damaged: start a new run")
    return TrainConfig(**values)
