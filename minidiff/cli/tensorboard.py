"""Event files for TensorBoard beside a run's metrics.csv: RUN/tensorboard, written by tensorboardX."""

from pathlib import Path
from typing import Self

from minidiff.errors import MinidiffError
from minidiff.training.step import StepStats


def needs_tensorboard(wanted: bool) -> bool:
    """The value of --tensorboard. Raises MinidiffError if it was given and tensorboardX is not installed."""
    if wanted:
        try:
            import tensorboardX  # noqa: F401  only whether it is there
        except ImportError:
            raise MinidiffError("--tensorboard: tensorboardX is missing; pip install 'minidiff[tensorboard]'") from None
    return wanted


class EventFiles:
    """Writes a run's losses and gradient norms as events; TensorBoard then ignores earlier events after `step`."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def on_step(self, stats: StepStats) -> None:
        """The values of metrics.csv."""
        values = {"loss": stats.loss, "grad_norm": stats.grad_norm}
        values |= {f"loss_by_noise_level/q{k}": loss for k, loss in enumerate(stats.quarter_losses, start=1)}
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(name, value, stats.step)

    def on_checkpoint(self, step: int, loss: float) -> None:
        """The validation loss."""
        self.writer.add_scalar("validation_loss", loss, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()
