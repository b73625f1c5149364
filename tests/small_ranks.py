"""A run of small_runs.py on the ranks that mpiexec starts, with a fault if one is asked for.

python small_ranks.py FOLDER STEPS CHECKPOINT_EVERY PARTS [FAULT RANK STEP]   starts a run, or continues the one there
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from small_runs import network, pictures, reopen

from minidiff import faults, ranks
from minidiff.data.dataset import fingerprint
from minidiff.diffusion.schedule import cosine_schedule
from minidiff.errors import MinidiffError
from minidiff.formats.run_lock import lock_run
from minidiff.training import loop, state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.parallel import agreement
from minidiff.training.run import Run


def new_run(folder: Path, steps: int, parts: int) -> Run:
    """With all that is random: classes, dropout, importance sampling of t, flips."""
    config = TrainConfig(
        "noise", steps=steps, batch_size=8, warmup=3, seed=5, backend="numpy", accumulate=parts, classes=("a", "b"),
        importance_sampling=True, further_emas=(3.0,),
    )  # fmt: skip
    net = network(num_class_embeds=3, dropout=0.3)
    return state.new_run(UNetRun, folder, config, net, cosine_schedule(30))


def commit(fault: str, run: Run) -> None:
    """What this rank does after the step of the fault."""
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    if fault == "error":
        raise MinidiffError("no room on this machine: make some")
    if fault == "bug":
        raise ZeroDivisionError("of this rank")
    if fault == "weights":
        run.optimizer.p[7] += 1


def train(folder: Path, steps: int, checkpoint_every: int, parts: int, fault: str, rank: int, step: int) -> None:
    """Start or continue a run; `fault` happens to one rank at a step, or before the first one."""
    here = rank == ranks.rank()
    if fault == "version" and here:
        agreement.version = lambda name: "0.0.1"
    agreement.check_programs()
    there = ranks.broadcast(state.state_file(folder).exists())
    with lock_run(folder), loop.stoppable(lambda: None) as stop:
        run = reopen(folder) if there else new_run(folder, steps, parts)
        dataset = pictures(10 if fault == "data" and here else 11)
        agreement.check_inputs(replace(run.config, fingerprint=fingerprint(dataset)))

        def on_step(stats):
            if ranks.rank() == 0:
                print("step", stats.step, flush=True)
            if here and stats.step == step:
                commit(fault, run)

        with patch.object(loop, "save_progress"):  # images on the way take long
            loop.fit(run, dataset, checkpoint_every, on_step, lambda step, loss: None, stop)
    if run.step < steps:
        faults.finish()
        sys.exit(130)


def main(folder, steps, checkpoint_every, parts, fault="", rank=-1, step=0) -> None:
    with faults.ending_all():
        try:
            faults.start_watching()
            print("process", os.getpid(), flush=True)
            train(Path(folder), int(steps), int(checkpoint_every), int(parts), fault, int(rank), int(step))
        except MinidiffError as error:
            faults.report(str(error))
            sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
