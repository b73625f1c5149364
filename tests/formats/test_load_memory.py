"""Loading a network of the size of DDPM's for CIFAR-10 takes little more memory than its weights."""

import sys

import numpy as np
import pytest
from own_process import run

import minidiff as md

CONFIG = md.UNetConfig(
    sample_size=32, block_out_channels=(128, 256, 256, 256), attention_head_dim=None,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip

# Memory of its own, as against pages of files and libraries: now, and at its highest while load_unet ran.
PROGRAM = """
import sys, threading
import minidiff as md

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

def watch():
    while not done.wait(0.002):
        seen.append(anonymous())

md.get_backend(sys.argv[1])
before, seen, done = anonymous(), [], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
unet = md.load_unet(sys.argv[2], sys.argv[1])
after = anonymous()
done.set()
watcher.join()
print(sum(4 * p.data.size for p in unet.parameters()), after - before, max(seen) - before)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    md.save_unet(md.UNet(CONFIG, np.random.default_rng(0), "numpy"), folder)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/status")
@pytest.mark.parametrize("name", ["numpy", "numba"])  # the others' weights lie elsewhere
def test_loading_holds_one_copy(folder, name):
    said, _ = run(f"import sys; sys.argv[1:] = {[name, str(folder)]!r}\n{PROGRAM}")
    weights, growth, peak = map(int, said.split())
    assert weights == 4 * 35_746_307
    assert weights <= growth <= 1.3 * weights  # the pages that hold them, and the arrays that were read last
    assert peak <= 1.3 * weights


# Stable Diffusion 1.x's U-Net: pages of memory that were ever written, as getrusage counts them.
BUILD = """
import resource, sys
import minidiff as md
from minidiff.models.config import TextUNetConfig
from minidiff.models.text_unet import TextUNet

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

md.get_backend(sys.argv[1])
before = peak()
unet = TextUNet(TextUNetConfig(cross_attention_dim=768), None, sys.argv[1])
print(sum(4 * p.data.size for p in unet.parameters()), peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux only")
@pytest.mark.parametrize("name", ["numpy", "numba"])  # a GPU has no memory that is taken when it is written
def test_weights_of_zero_take_no_memory(name):
    said, _ = run(f"import sys; sys.argv[1:] = [{name!r}]\n{BUILD}")
    weights, growth = map(int, said.split())
    assert weights == 4 * 859_520_964
    assert growth <= 0.02 * weights
