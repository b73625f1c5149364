"""On the ranks that mpiexec starts: three steps of every kind of run, and again on rank 0 alone.

python kinds_on_ranks.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import small_text
import which_cupy  # noqa: F401  (the simulator, unless MINIDIFF_TEST_GPU is set)
from small_runs import bars, network, new_points_run, pictures

from minidiff import ranks
from minidiff.data import open_dataset
from minidiff.diffusion.schedule import cosine_schedule
from minidiff.engine.backend import get_backend
from minidiff.engine.functional import mul
from minidiff.engine.nn import Parameter
from minidiff.engine.optim import AdamW
from minidiff.engine.tensor import Tensor
from minidiff.formats.run_lock import lock_run
from minidiff.models.config import ClassifierConfig, VAEConfig
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import with_prompts
from minidiff.training import state
from minidiff.training.config import TrainConfig
from minidiff.training.kinds.classifier_run import ClassifierRun
from minidiff.training.kinds.lora_run import LoRARun
from minidiff.training.kinds.textual_inversion_run import TextualInversionRun
from minidiff.training.kinds.unet_run import UNetRun
from minidiff.training.kinds.vae_run import VAERun
from minidiff.training.parallel.gradients import gradient_sum
from minidiff.training.step import steps

SETTINGS = dict(steps=3, batch_size=8, warmup=2, seed=5, backend="numpy", accumulate=4)
AUTOENCODER = VAEConfig(
    in_channels=1, out_channels=1, block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=1, norm_num_groups=4, sample_size=4,
)  # fmt: skip


def config(data="noise", **changes):
    return TrainConfig(data, **SETTINGS | changes)


def pipeline(folder):
    """The pipeline of a text run: rank 0 writes it, all read it."""
    if ranks.rank() == 0 and not folder.exists():
        with ranks.alone():
            small_text.new_text_run(folder, latent=True)
    ranks.gather(None)
    return with_prompts(open_pipeline(folder, "numpy", kind="text"))


def runs(folder):
    """Name -> a new run and its dataset."""
    base = folder.parent / "base"
    schedule = cosine_schedule(30)
    yield "unet", state.new_run(UNetRun, folder / "unet", config(), network(dropout=0.3), schedule), pictures()
    few, of_v = config(consistency=2), cosine_schedule(30, "v_prediction")
    yield "consistency", state.new_run(UNetRun, folder / "consistency", few, network(dropout=0.3), of_v), pictures()
    by_mpi = config(reduction="mpi")
    by_muon = config(optimizer="muon")
    yield "muon", state.new_run(UNetRun, folder / "muon", by_muon, network(), schedule), pictures()
    yield "mpi", state.new_run(UNetRun, folder / "mpi", by_mpi, network(), schedule), pictures()
    yield "vae", state.new_run(VAERun, folder / "vae", config(), AUTOENCODER), pictures()
    names = ("lying", "standing")
    classes = state.new_run(
        ClassifierRun, folder / "classifier", config(classes=names, flip=False), ClassifierConfig(1, 8, names)
    )
    yield "classifier", classes, bars(10)
    yield "points", new_points_run(folder / "points", accumulate=4), open_dataset("line")
    text = small_text.bars()
    yield "text", small_text.new_text_run(folder / "text", accumulate=4, label_dropout=0.3), text
    lora = dict(rank=2, flip=False, projections="text", prior_weight=4.0, own_prior=True)
    yield "lora", state.new_run(LoRARun, folder / "lora", config(**lora), pipeline(base)), text
    word = dict(flip=False, word="<zib>", initial_word="red bar")
    yield "word", state.new_run(TextualInversionRun, folder / "word", config(**word), pipeline(base)), text


def results(folder):
    """Name -> losses, norms and losses by noise level of the steps, and the weights."""
    found = {}
    with lock_run(folder):
        for name, run, dataset in runs(folder):
            batches = map(run.batches(dataset), (1, 2, 3))
            stats = list(steps(run.train_batch, run.optimizer, batches, run.config))
            found[name] = [(s.loss, s.grad_norm, s.quarter_losses) for s in stats], run.optimizer.p.copy()
    return found


def sums_on_a_gpu():
    """Whether gradients in a GPU's memory are summed in the order of parts; they pass through host memory."""
    backend, parts = get_backend("cupy"), np.random.default_rng(0).standard_normal((4, 1000), dtype=np.float32)
    p = Parameter(np.ones(1000, np.float32), backend)
    optimizer = AdamW([p], 0.1)
    gradients = gradient_sum(optimizer)
    for k in gradients.parts(4):
        mul(p, Tensor(parts[k], backend)).backward(np.ones(1000, np.float32), gradients.final)
    return np.array_equal(backend.to_numpy(optimizer.g), ((parts[0] + parts[1]) + parts[2]) + parts[3])


def main(folder):
    """Print the kinds whose bits are the same, those that are equal up to rounding, and others."""
    on_a_gpu = all(ranks.gather(bool(sums_on_a_gpu())))
    together = results(folder / "together")
    if ranks.rank() == 0:
        print("gpu", "same" if on_a_gpu else "other")
        with ranks.alone():
            alone = results(folder / "alone")
        for name, (stats, p) in together.items():
            same = stats == alone[name][0] and np.array_equal(p, alone[name][1])
            close = np.linalg.norm(p - alone[name][1]) <= 1e-6 * np.linalg.norm(p)
            print(name, "same" if same else "close" if close else "other", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
