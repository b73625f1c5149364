"""The moving averages (EMA) that the states of a run hold, and the choice of one by its half-life.

A state holds the run's average as "ema", and each further one by its half-life in steps, such as "ema_500". Another
half-life is combined post hoc from those of all kept checkpoints (engine/ema.py).
"""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress

from minidiff.engine.ema import ema_profile, post_hoc_ema
from minidiff.engine.optim import half_life, half_life_of
from minidiff.errors import MinidiffError
from minidiff.formats.run_state import NoAverage, RunState, damaged_metadata, kept_states, read_state
from minidiff.formats.weights import Stored

Weights = str | Sequence[tuple[float, Stored]]  # the name of a buffer, or a sum of buffers with coefficients
LARGEST_ERROR = 0.05  # of a combination's profile
RANGE = "0.1 to 1e9 steps"  # of half-lives

log = logging.getLogger(__name__)


def buffer_name(steps: float) -> str:
    """The name of the buffer of a further average with a half-life of that many steps."""
    return f"ema_{steps:g}"


def in_range(steps: float) -> bool:
    """Whether a half-life is in RANGE."""
    return 0.1 <= steps <= 1e9


def same_half_life(a: float, b: float) -> bool:
    """Whether two half-lives agree to three digits, as they are printed: 138 names the default's, 138.283."""
    return f"{a:.3g}" == f"{b:.3g}"


def decays(state: RunState) -> dict[str, float]:
    """Decays of a state's averages by the names of their buffers. Raises MinidiffError if its metadata is damaged."""
    try:
        further = {buffer_name(steps): half_life(steps) for steps in state.config.get("further_emas", ())}
        found = {"ema": state.config["ema"]} | further
        if all(0 < decay < 1 for decay in found.values()) and found.keys() <= state.buffers.keys():
            return found
    except (KeyError, TypeError, ValueError, ArithmeticError):
        pass
    raise damaged_metadata(state.path)


def average(state: RunState, steps: float) -> Weights:
    """The average with a half-life of that many steps at a state: one that it holds, or a post-hoc combination.

    The log says what is combined, and the error of the profile. Raises NoAverage, with the remedy, if that exceeds
    LARGEST_ERROR, and MinidiffError for a half-life that is out of range.
    """
    if not in_range(steps):
        raise NoAverage(f"--ema {steps:g}: give {RANGE}")
    own = decays(state)
    for name, decay in own.items():
        if same_half_life(half_life_of(decay), steps):
            return name
    snapshots = [(held, name, decay) for held in _up_to(state) for name, decay in decays(held).items()]
    profiles = [ema_profile(decay, held.step, state.step + 1) for held, _, decay in snapshots]
    coefficients, error = post_hoc_ema(profiles, ema_profile(half_life(steps), state.step))
    held = _half_lives(own.values())
    if error > LARGEST_ERROR:
        raise NoAverage(
            f"{state.path.parent.parent}: --ema {steps:g}: the kept checkpoints give that average with a profile error "
            f"of {100 * error:.0f} % only; choose {held}, or train with --ema-half-life, or with a larger --keep"
        )
    kept = len({held.step for held, _, _ in snapshots})
    log.info(
        f"EMA of half-life {steps:g}, combined from {held} at {kept} checkpoint{'' if kept == 1 else 's'}: "
        f"profile error {100 * error:.2g} %"
    )
    return [(float(c), held.buffers[name]) for c, (held, name, _) in zip(coefficients, snapshots, strict=True)]


def _up_to(state: RunState) -> list[RunState]:
    """The run's kept states before a state, as far as they are whole, and the state itself."""
    before = []
    for step, path in kept_states(state.path.parent.parent).items():
        if step < state.step:
            with suppress(MinidiffError):
                before.append(read_state(path))
    return [*before, state]


def _half_lives(decays: Iterable[float]) -> str:
    return ", ".join(f"{half_life_of(decay):.3g}" for decay in decays)
