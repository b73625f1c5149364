"""A run from where it is to its last step: batches, log, checkpoints, pictures on the way."""

import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from minidiff.data.batches import prefetch
from minidiff.data.dataset import Dataset
from minidiff.data.pictures import loss_plot, save
from minidiff.errors import MinidiffError
from minidiff.runs.kept import note_loss
from minidiff.runs.probe import probe
from minidiff.runs.run import Run
from minidiff.runs.state import Metrics, read_metrics
from minidiff.runs.state import save as save_state
from minidiff.runs.train import StepStats, check_skipped, steps


def fit(
    run: Run,
    dataset: Dataset,
    checkpoint_every: int,
    on_step: Callable[[StepStats], object],
    on_checkpoint: Callable[[int, float], object],
    stop: Callable[[], bool],
    keep: int = 2,
    probed: Dataset | None = None,
) -> None:
    """Train to run.config.steps, or until `stop()` after a step; then the state is saved at once, and no more is done.

    on_step is told of every step, on_checkpoint of every checkpoint's step and of what `probe` says of it, on the set
    `probed` or else the one that it learns from. The last `keep` checkpoints stay. Pictures come with each.
    Raises MinidiffError if too many gradients in a row are not finite; the last checkpoint stays as it is.
    """
    config, saved = run.config, run.step
    probed = dataset if probed is None else probed
    last: tuple[StepStats, float] | None = None  # told of a step late: a GPU, busy with the next, need not wait

    def tell(stats: StepStats, lr: float) -> None:
        metrics.write(stats, lr)
        on_step(stats)

    batches = prefetch(run.batches(dataset), range(run.step + 1, config.steps + 1))
    try:
        with closing(Metrics(run.folder / "metrics.csv")) as metrics, closing(batches):
            for stats in steps(run.learn, run.optimizer, batches, config):
                if last is not None:
                    tell(*last)
                last, stopping = (stats, run.optimizer.lr), stop()
                if stopping or stats.step % checkpoint_every == 0 or stats.step == config.steps:
                    tell(*last)
                    last = None
                    metrics.flush()
                    check_skipped(run.step, run.optimizer.skipped, run.optimizer.lr)  # before it is saved
                if stopping:
                    return save_state(run, keep)
                if last is None:
                    measured = probe(run, probed)
                    metrics.check()  # that took a while
                    note_loss(run.folder, run.step, measured)
                    save_state(run, keep)
                    saved = stats.step
                    draw_progress(run, dataset, probed)
                    on_checkpoint(saved, measured)
    except (MinidiffError, OSError) as error:  # OSError: the log, on a disk that is full
        raise MinidiffError(f"{error}; the checkpoint of step {saved} is kept in {run.folder}") from None


def draw_progress(run: Run, dataset: Dataset, probed: Dataset) -> None:
    """The loss so far, and a sheet of what the averaged weights can do, always from the same noise."""
    done, losses = read_metrics(run.folder / "metrics.csv")
    loss_plot(done, losses, run.folder / "loss.png", "What the network still gets wrong")
    samples = run.folder / "samples"
    samples.mkdir(exist_ok=True)
    with run.optimizer.averaged():
        save(run.sheet(dataset, probed), samples / f"step-{run.step:06d}.png")


@contextmanager
def stoppable(notice: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """Within this block Ctrl-C, SIGTERM and SIGHUP ask instead of breaking off: yields a function that tells of it.

    A second one breaks off at once, as KeyboardInterrupt. `notice` is called at the first. A SIGHUP that is ignored, as
    by nohup, stays so.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # Windows has none
        numbers.append(signal.SIGHUP)
    asked = False

    def ask(number, frame):
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        notice()

    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
