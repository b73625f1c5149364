"""The training loop of a run, from its current step to the last: batches, log, checkpoints, validation, samples."""

import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import numpy as np

from minidiff.data.batches import evenly_spaced, prefetch
from minidiff.data.dataset import Dataset
from minidiff.data.imaging import save_image, save_loss_plot
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError
from minidiff.training.checkpoints import record_loss
from minidiff.training.forecast.reference_curves import reference_curve
from minidiff.training.log import TrainingLog, read_log, read_quarter_losses
from minidiff.training.run import Run
from minidiff.training.state import save as save_state
from minidiff.training.step import StepStats, check_skipped, steps

IMAGES = 256  # maximum number of images in a validation loss
VALIDATION_STREAM = 5  # last word of the generator's seed; data/batches.py uses smaller ones


def fit(
    run: Run,
    dataset: Dataset,
    checkpoint_every: int,
    on_step: Callable[[StepStats], object],
    on_checkpoint: Callable[[int, float], object],
    stop: Callable[[], bool],
    keep: int = 2,
    validation: Dataset | None = None,
) -> None:
    """Train to run.config.steps, or until `stop()` returns True after a step: then save the state and return.

    on_step(stats) is called for every step, on_checkpoint(step, loss) for every checkpoint with its `validation_loss`
    on `validation`, or else on the training set. The last `keep` checkpoints are kept, each with a sheet of samples.
    Raises MinidiffError if too many gradients in a row are not finite; the last checkpoint stays as it is.
    """
    config, saved = run.config, run.step
    validation = dataset if validation is None else validation
    batches = prefetch(run.batches(dataset), range(run.step + 1, config.steps + 1))
    try:
        with closing(TrainingLog(run.folder / "metrics.csv")) as log, closing(batches):
            reports = _DelayedReports(log, on_step)
            for stats in steps(run.train_batch, run.optimizer, batches, config):
                reports.add(stats, run.optimizer.lr)
                stopping, due = stop(), stats.step % checkpoint_every == 0 or stats.step == config.steps
                if stopping or due:
                    reports.flush()
                    check_skipped(run.step, run.optimizer.skipped, run.optimizer.lr)  # before it is saved
                if stopping:
                    return save_state(run, keep)
                if due:
                    loss = _save_checkpoint(run, log, validation, keep)
                    saved = stats.step
                    save_progress(run, dataset, validation)
                    on_checkpoint(saved, loss)
    except (MinidiffError, OSError) as error:  # OSError: the log, on a full disk
        raise MinidiffError(f"{error}; the checkpoint of step {saved} is kept in {run.folder}") from None


class _DelayedReports:
    """Logs every step and calls on_step, one step late, so that a GPU already runs the next when it is waited for."""

    def __init__(self, log: TrainingLog, on_step: Callable[[StepStats], object]):
        self.log = log
        self.on_step = on_step
        self.last: tuple[StepStats, float] | None = None

    def add(self, stats: StepStats, lr: float) -> None:
        self._report()
        self.last = stats, lr

    def flush(self) -> None:
        """Report the last step, and wait until the log is on the disk."""
        self._report()
        self.log.flush()

    def _report(self) -> None:
        if self.last is not None:
            self.log.write(*self.last)
            self.on_step(self.last[0])
            self.last = None


def _save_checkpoint(run: Run, log: TrainingLog, validation: Dataset, keep: int) -> float:
    """Save the state; returns its validation loss, which is recorded before."""
    loss = validation_loss(run, validation)
    log.check()  # again: the validation took a while
    record_loss(run.folder, run.step, loss)
    save_state(run, keep)
    return loss


def save_progress(run: Run, dataset: Dataset, validation: Dataset) -> None:
    """Write loss.png, and a sheet of samples with the averaged weights, always from the same noise."""
    log = run.folder / "metrics.csv"
    quarters, reference = read_quarter_losses(log), reference_curve(run)
    save_loss_plot(*read_log(log), run.folder / "loss.png", "Training loss", quarters, reference)
    samples = run.folder / "samples"
    samples.mkdir(exist_ok=True)
    with run.optimizer.averaged():
        save_image(run.sheet(dataset, validation), samples / f"step-{run.step:06d}.png")


def validation_loss(run: Run, dataset: Dataset) -> float:
    """`Run.validation_loss` of the averaged weights on images from the whole set.

    Images, timesteps and noise are always the same, so that two checkpoints differ by their weights alone.
    """
    with no_grad(), run.optimizer.averaged():
        return run.validation_loss(
            dataset, evenly_spaced(len(dataset), IMAGES), np.random.default_rng([run.config.seed, 0, VALIDATION_STREAM])
        )


@contextmanager
def stoppable(notice: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """Within this block Ctrl-C, SIGTERM and SIGHUP request a stop: yields a function that returns whether one did.

    The first signal calls `notice`; a second one raises KeyboardInterrupt. A SIGHUP that is ignored, as by nohup,
    stays ignored.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # Windows has none
        numbers.append(signal.SIGHUP)
    requested = False

    def request_stop(number, frame):
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        notice()

    before = {number: signal.signal(number, request_stop) for number in numbers}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
