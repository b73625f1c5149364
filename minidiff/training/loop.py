"""The training loop of a run, from its current step to the last: batches, log, checkpoints, validation, samples."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext

import numpy as np

import minidiff.ranks as ranks
from minidiff.data.batches import evenly_spaced, prefetch
from minidiff.data.dataset import Dataset
from minidiff.data.imaging import save_image, save_loss_plot
from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError
from minidiff.faults import OtherRankError
from minidiff.training.checkpoints import record_loss
from minidiff.training.forecast.reference_curves import reference_curve
from minidiff.training.log import TrainingLog, read_log, read_quarter_losses
from minidiff.training.parallel.agreement import Pace
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
    Of several ranks all stop if one does; rank 0 alone writes, and computes validation losses and samples.
    Raises MinidiffError if too many gradients in a row are not finite; the last checkpoint stays as it is.
    """
    config, saved, pace = run.config, run.step, Pace()
    validation = dataset if validation is None else validation
    batches = prefetch(run.batches(dataset), range(run.step + 1, config.steps + 1))
    try:
        with _open_log(run) as log, closing(batches):
            reports = _DelayedReports(log, on_step)
            for stats in steps(run.train_batch, run.optimizer, batches, config):
                reports.add(stats, run.optimizer.lr)
                stopping = pace.agree(stop())
                due = stats.step % checkpoint_every == 0 or stats.step == config.steps
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
                    pace.restart()
    except (MinidiffError, OSError) as error:  # OSError: the log, on a full disk
        raise _with_checkpoint(error, saved, run) from None


def _with_checkpoint(error: MinidiffError | OSError, saved: int, run: Run) -> MinidiffError:
    """The error with the step of the last checkpoint, which that of another rank has already."""
    if isinstance(error, OtherRankError):
        return error
    return MinidiffError(f"{error}; the checkpoint of step {saved} is kept in {run.folder}")


def _open_log(run: Run) -> AbstractContextManager[TrainingLog | None]:
    """The log of a run, closed at the end of a block; None on other ranks than 0."""
    return closing(TrainingLog(run.folder / "metrics.csv")) if ranks.rank() == 0 else nullcontext()


class _DelayedReports:
    """Logs every step and calls on_step, one step late, so that a GPU already runs the next when it is waited for."""

    def __init__(self, log: TrainingLog | None, on_step: Callable[[StepStats], object]):
        self.log = log
        self.on_step = on_step
        self.last: tuple[StepStats, float] | None = None

    def add(self, stats: StepStats, lr: float) -> None:
        self._report()
        self.last = stats, lr

    def flush(self) -> None:
        """Report the last step, and wait until the log is on the disk."""
        self._report()
        if self.log is not None:
            self.log.flush()

    def _report(self) -> None:
        if self.last is not None:
            if self.log is not None:
                self.log.write(*self.last)
            self.on_step(self.last[0])
            self.last = None


def _save_checkpoint(run: Run, log: TrainingLog | None, validation: Dataset, keep: int) -> float:
    """Save the state; returns its validation loss, which is recorded before."""
    loss = None
    if log is not None:
        with ranks.alone():
            loss = validation_loss(run, validation)
        log.check()  # again: the validation took a while
        record_loss(run.folder, run.step, loss)
    loss = ranks.broadcast(loss)
    save_state(run, keep)
    return loss


def save_progress(run: Run, dataset: Dataset, validation: Dataset) -> None:
    """Write loss.png, and a sheet of samples with the averaged weights, always from the same noise; rank 0 does."""
    if ranks.rank() > 0:
        return
    log = run.folder / "metrics.csv"
    quarters, reference = read_quarter_losses(log), reference_curve(run)
    save_loss_plot(*read_log(log), run.folder / "loss.png", "Training loss", quarters, reference)
    samples = run.folder / "samples"
    samples.mkdir(exist_ok=True)
    with ranks.alone(), run.optimizer.averaged():
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
    stays ignored. Of several ranks SIGUSR1 does too: launchers pass it on. A SIGTERM of theirs after the death of a
    rank raises MinidiffError, which names it.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if ranks.size() > 1 and hasattr(signal, "SIGUSR1"):
        numbers.append(signal.SIGUSR1)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # Windows has none
        numbers.append(signal.SIGHUP)
    requested = False

    def request_stop(number, frame):
        nonlocal requested
        for check in ranks.while_waiting:
            check()
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
