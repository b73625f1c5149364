"""A run from where it is to its last step: batches, log, checkpoints, pictures on the way."""

import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import numpy as np

from minidiff.data.batches import batch, drop_labels, prefetch
from minidiff.data.dataset import Dataset
from minidiff.data.pictures import loss_plot, save, sheet, to_uint8
from minidiff.diffusion.reverse import sample
from minidiff.errors import MinidiffError
from minidiff.runs.kept import note_loss
from minidiff.runs.probe import probe
from minidiff.runs.state import Metrics, Run, read_metrics
from minidiff.runs.state import save as save_state
from minidiff.runs.train import StepStats, train

PREVIEW = 36  # pictures on a sheet


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
    last: tuple[StepStats, float] | None = None  # told of a step late: a GPU, busy with the next, need not wait

    def make_batch(step: int) -> tuple[np.ndarray, np.ndarray | None]:
        x0, labels = batch(dataset, step, config.batch_size, config.seed, config.flip, config.pad_crop)
        if not config.classes:
            return x0, None
        return x0, drop_labels(labels, len(config.classes), config.label_dropout, config.seed, step)

    def tell(stats: StepStats, lr: float) -> None:
        metrics.write(stats, lr)
        on_step(stats)

    batches = prefetch(make_batch, range(run.step + 1, config.steps + 1))
    try:
        with closing(Metrics(run.folder / "metrics.csv")) as metrics, closing(batches):
            for stats in train(run.model, run.schedule, run.optimizer, batches, config):
                if last is not None:
                    tell(*last)
                last, stopping = (stats, run.optimizer.lr), stop()
                if stopping or stats.step % checkpoint_every == 0 or stats.step == config.steps:
                    tell(*last)
                    last = None
                    metrics.flush()
                if stopping:
                    return save_state(run, keep)
                if last is None:
                    measured = probe(run, dataset if probed is None else probed)
                    note_loss(run.folder, run.step, measured)
                    save_state(run, keep)
                    saved = stats.step
                    draw_progress(run)
                    on_checkpoint(saved, measured)
    except (MinidiffError, OSError) as error:  # OSError: the log, on a disk that is full
        raise MinidiffError(f"{error}; the checkpoint of step {saved} is kept in {run.folder}") from None


def draw_progress(run: Run) -> None:
    """The loss so far, and a sheet of samples from the averaged weights, always from the same noise."""
    steps, losses = read_metrics(run.folder / "metrics.csv")
    loss_plot(steps, losses, run.folder / "loss.png", "What the network still gets wrong")
    samples = run.folder / "samples"
    samples.mkdir(exist_ok=True)
    with run.optimizer.averaged():
        save(sheet(draw(run, PREVIEW, steps=25)), samples / f"step-{run.step:06d}.png")


def draw(run: Run, n: int, steps: int) -> np.ndarray:
    """n pictures (n, H, W, C) uint8 by DDIM, class after class, from noise that the run's seed alone decides."""
    rng = np.random.default_rng([run.config.seed, 0])
    labels = np.arange(n) * len(run.config.classes) // n if run.config.classes else None
    *_, (_, x_0, _) = sample(run.model, run.schedule, (n, *run.unet.picture_shape), rng, steps, cond=labels)
    return to_uint8(x_0)


@contextmanager
def stoppable(notice: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """Within this block Ctrl-C and SIGTERM ask instead of breaking off: yields a function that tells of it.

    A second Ctrl-C breaks off at once. `notice` is called at the first.
    """
    asked = False

    def ask(number, frame):
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        notice()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
