"""The training loop with a progress bar, for the commands that train."""

import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.progress import Progress

from minidiff import faults, ranks
from minidiff.cli.expectations import Expectations
from minidiff.cli.tensorboard import EventFiles
from minidiff.data import Dataset
from minidiff.terminal import console, progress_bar, shell_command, stderr_console
from minidiff.training import state
from minidiff.training.dry_run import compile_for_training
from minidiff.training.loop import fit, stoppable
from minidiff.training.run import Run
from minidiff.training.step import StepStats

CHECKPOINT_EVERY = 500
KEEP = 2
LARGE = 10**9  # bytes of checkpoints from which their size is printed


def train_with_bar(
    run: Run,
    dataset: Dataset,
    checkpoint_every: int,
    resume_command: list[str],
    keep: int = KEEP,
    validation: Dataset | None = None,
    tensorboard: bool = False,
) -> None:
    """Train to the end with a progress bar; with `tensorboard` write its event files too.

    Ctrl-C saves a checkpoint, prints `resume_command` and exits with code 130; a second one exits at once, unsaved.
    """
    name = run.NAME[0].upper() + run.NAME[1:]
    n = run.optimizer.p.size
    size = f"{n / 1e6:.1f} million" if n >= 100_000 else f"{n:,}"
    processes = f"; processes: {ranks.size()}" if ranks.size() > 1 else ""
    console.print(f"{name}: {size} parameters; threads: {run.config.threads}{processes}")
    needed = state.check_disk_space(run, min(keep, run.config.steps // checkpoint_every + 2))
    if needed > LARGE:
        console.print(f"Checkpoints take up to {needed / 1e9:.1f} GB of disk.")
    notice = "Stopping after this step; press Ctrl-C again to stop at once without saving."
    with _reporting_lost_steps(run, resume_command):
        if ranks.rank() == 0:
            with ranks.alone():
                compile_for_training(run, dataset)
        ranks.gather(None)  # the other ranks find the compiled kernels in the cache
        with progress_bar() as bar, stoppable(lambda: bar.console.print(notice)) as stop, ExitStack() as opened:
            reports: list[_ProgressReport | Expectations | EventFiles]
            reports = [_ProgressReport(run, bar)]
            if ranks.rank() == 0:
                reports.append(Expectations(run, bar.console.print))
            if tensorboard and ranks.rank() == 0:
                reports.append(opened.enter_context(EventFiles(run.folder, run.step)))

            def on_step(stats: StepStats) -> None:
                for report in reports:
                    report.on_step(stats)

            def on_checkpoint(step: int, loss: float) -> None:
                for report in reports:
                    report.on_checkpoint(step, loss)

            fit(run, dataset, checkpoint_every, on_step, on_checkpoint, stop, keep, validation)
    if run.step < run.config.steps:
        console.print(f"Saved at step {run.step}. To resume: {shell_command(resume_command)}")
        faults.finish()
        sys.exit(130)


class _ProgressReport:
    """The progress bar of a training, with the running mean of its loss; a line for each checkpoint."""

    def __init__(self, run: Run, bar: Progress):
        self.run = run
        self.bar = bar
        self.task = bar.add_task("training", total=run.config.steps, completed=run.step, note="")
        self.loss = math.nan  # exponential moving average

    def on_step(self, stats: StepStats) -> None:
        if not math.isfinite(stats.grad_norm):
            self.bar.console.print(f"step {stats.step}: skipped, gradient is not finite (loss {stats.loss})")
        elif math.isfinite(stats.loss):
            self.loss = stats.loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * stats.loss
        speed = (self.bar.tasks[self.task].speed or 0) * self.run.config.batch_size
        note = f"loss {self.loss:.4f}"
        if speed:
            note += f", {speed:.0f} {self.run.UNIT}/s"
        self.bar.update(self.task, advance=1, note=note)

    def on_checkpoint(self, step: int, validation_loss: float) -> None:
        validation = self.run.describe_validation(validation_loss)
        samples = self.run.folder / "samples"
        self.bar.console.print(f"step {step}: loss {self.loss:.4f}, {validation}; saved, see {samples}")


@contextmanager
def _reporting_lost_steps(run: Run, resume_command: list[str]) -> Iterator[None]:
    """If KeyboardInterrupt leaves this block: one line on stderr with the steps lost, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        saved = state.last_step(run.folder)
        lost = run.step - saved
        steps = f"{lost} step{'' if lost == 1 else 's'} since the checkpoint of step {saved}"
        stderr_console.print(f"minidiff: stopped; lost: {steps}. To resume: {shell_command(resume_command)}")
        sys.exit(130)
