"""Recipes: a network, a schedule and a training configuration that belong together, by name.

Times are for CIFAR-10, batch and steps as they stand. One is measured: small-cpu, checkpoints included, took 157
minutes of processor time on two cores of an AMD EPYC (Zen 4, 234 GFLOP/s), so 79 where both are free. All others follow
from its step, 0.45 s, or from a rate that is named, by the operations that a step takes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minidiff.diffusion.schedule import AnySchedule, cosine_schedule, linear_schedule
from minidiff.errors import MinidiffError
from minidiff.models.config import UNetConfig
from minidiff.models.default_configs import default_config

SCHEDULE = cosine_schedule(1000, prediction_type="v_prediction")  # of a run without a recipe
Shape = tuple[int, int, int]  # (H, W, C)


def _default_network(shape: Shape, num_class_embeds: int | None, **sizes: int) -> UNetConfig:
    return default_config(shape, num_class_embeds=num_class_embeds, **sizes)


def _four_levels(widths: tuple[int, int, int, int], **more: Any) -> Callable[[Shape, int | None], UNetConfig]:
    """As DDPM's own for CIFAR-10 (Ho et al. 2020, appendix B): four levels of two blocks, attention at the second."""

    def network(shape: Shape, num_class_embeds: int | None) -> UNetConfig:
        H, W, C = shape
        if H % 8 or W % 8:
            raise MinidiffError(
                f"its network downsamples three times, so H and W must be multiples of 8, not {W}x{H}; choose small-cpu"
            )
        return UNetConfig(
            sample_size=H if H == W else (H, W),
            in_channels=C,
            out_channels=C,
            block_out_channels=widths,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            attention_head_dim=None,
            num_class_embeds=num_class_embeds,
            **more,
        )

    return network


@dataclass(frozen=True)
class Recipe:
    """The configuration of a new run; the defaults are those of a run without a recipe.

    choices   fields of TrainConfig that differ from its defaults
    network   (H, W, C) and the number of class embeddings, None if unconditional -> the network's configuration;
              the default takes width and depth too
    by_class  whether the run is class-conditional, if the dataset has classes
    time      training time, on which hardware, measured or extrapolated
    """

    choices: dict[str, Any] = field(default_factory=dict)
    network: Callable[..., UNetConfig] = _default_network
    schedule: AnySchedule = SCHEDULE
    by_class: bool = False
    time: str = ""


RECIPES = {
    "small-cpu": Recipe(
        {"steps": 10_500, "batch_size": 64, "lr": 1e-3, "warmup": 500, "ema": 0.9995},
        by_class=True,
        time="79 minutes on two cores of an AMD EPYC, Zen 4 (measured)",
    ),
    "small-gpu": Recipe(
        {"steps": 100_000, "batch_size": 128, "lr": 4e-4, "warmup": 1000, "ema": 0.9999},
        _four_levels((64, 128, 128, 128)),
        by_class=True,
        time="3.4 hours at 10 TFLOP/s, six days on two cores (both extrapolated, from 1.2 TFLOP a step)",
    ),
    "ddpm": Recipe(
        {
            "steps": 800_000, "batch_size": 128, "lr": 2e-4, "warmup": 5000, "ema": 0.9999, "decay": "none",
            "beta2": 0.999,
        },
        _four_levels(
            (128, 256, 256, 256), dropout=0.1, norm_eps=1e-6, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1
        ),
        linear_schedule(1000, 1e-4, 0.02),
        time="4.4 days at 10 TFLOP/s, half a year on two cores (both extrapolated, from 4.8 TFLOP a step)",
    ),
}  # fmt: skip


def find(name: str | None) -> Recipe:
    """The recipe of that name; None: the default one. Raises MinidiffError if there is none of that name."""
    if name is not None and name not in RECIPES:
        raise MinidiffError(f"--recipe {name}: choose from {', '.join(RECIPES)}")
    return Recipe() if name is None else RECIPES[name]
