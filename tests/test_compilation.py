"""Compilation ahead: the dry run of training and of sampling launches all that the work itself does."""

import numpy as np
import own_process
import pytest
from small_runs import new_run

from minidiff.sampling import dry_run
from minidiff.sampling.opening import open_pipeline

# compare(dry, work) prints how many launches the dry run found, and those of the work that it did not find. In a
# process of its own, since a dry run does not see kernels that are compiled already.
COMPARE = """
import sys
from pathlib import Path
import numpy as np
from minidiff_kernels.cpu import jit
from numba.core.dispatcher import Dispatcher
from small_runs import new_run, pictures
from small_text import bars as captioned, new_text_run
from minidiff.sampling import dry_run as sampling, opening, text_to_image
from minidiff.training import dry_run as training

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("minidiff_kernels.cpu.")]
    kernels = {value for module in modules for value in vars(module).values() if isinstance(value, Dispatcher)}
    kernels = {kernel for kernel in kernels if kernel.targetoptions.get("parallel")}  # the others are helpers
    return {jit.Launch(kernel, types) for kernel in kernels for types in kernel.signatures}

def compare(dry, work):
    before = compiled()
    with jit.dry_run() as launches, np.errstate(all="ignore"):
        dry()
    assert compiled() == before
    work()
    print(len(launches), *(launch.kernel.__name__ for launch in compiled() - before - set(launches)))

def train(run, dataset):
    batch = run.batches(dataset)(1)
    compare(lambda: training._train_a_copy(run, dataset), lambda: run.train_batch(batch, np.random.default_rng(0)))

folder = Path(sys.argv[1])
"""
UNET = """
levels = dict(block_out_channels=(32, 32), down_block_types=("DownBlock2D", "AttnDownBlock2D"), sample_size=8,
              up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8)
run = new_run(folder / "run", backend="numba", **levels)
"""
TEXT = 'run = new_text_run(folder / "run", latent=True, backend="numba")\n'
PROGRAMS = {
    "training": UNET + "train(run, pictures(shape=(8, 8, 1)))",
    "training with text": TEXT + "train(run, captioned())",
    "sampling": UNET
    + """
pipeline = opening.open_pipeline(folder / "run", "numba", kind="unet")
x, t = np.zeros((3, 8, 8, 1), np.float32), np.zeros(3, int)
compare(lambda: sampling._evaluate(sampling._without_weights(pipeline), 3, (8, 8)), lambda: pipeline.unet(x, t))
""",
    "sampling with text": TEXT
    + """
pipeline = opening.open_pipeline(folder / "run", "numba", kind="text")
work = lambda: text_to_image.text_to_image(pipeline, ["red"], steps=2)
compare(lambda: sampling._evaluate(sampling._without_weights(pipeline), 1, (8, 8)), work)
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_dry_run_finds_every_launch(name, tmp_path):
    program = COMPARE.replace("sys.argv[1]", repr(str(tmp_path))) + PROGRAMS[name]
    output, errors = own_process.run(program)
    assert errors == ""
    found, *missed = output.split()
    assert int(found) > 5
    assert missed == []


def test_a_dry_run_of_sampling_does_not_use_the_weights(tmp_path):
    """What an operation keeps of them would be arbitrary."""
    new_run(tmp_path)
    pipeline = open_pipeline(tmp_path, "numba", kind="unet")
    own, copied = (dict(p.unet.named_parameters()) for p in (pipeline, dry_run._without_weights(pipeline)))
    assert own.keys() == copied.keys()
    for name, p in own.items():
        assert copied[name].shape == p.shape and not copied[name].numpy().any()
        assert not np.shares_memory(copied[name].data, p.data)
    assert any(p.numpy().any() for p in own.values())
