"""--lora and --embedding of every command that takes prompts: what they add changes the images, and stays out of it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_commands import QUICK, pipeline
from small_runs import go_on
from small_text import bars, new_text_run

from minidiff.cli.sampling.explain import _adapted_checkpoints
from minidiff.formats.embedding_files import save_embedding
from minidiff.formats.lora_files import load_lora, pipeline_layers, save_lora
from minidiff.models.lora import ATTENTION, Update
from minidiff.sampling.opening import open_pipeline

STEPS = ("--steps", 2, "--guidance", 9, *QUICK)
COMMANDS = {
    "sample": (("sample", "run"), ["sheet.png"]),
    "redraw": (("redraw", "run", "picture.png", "--n", 1, "--strength", 1), ["sheet.png"]),
    "fill": (("fill", "run", "picture.png", "mask.png", "--n", 1), ["sheet.png"]),
    "explain": (("explain", "run"), ["guidance.png", "attention.png", "training.png"]),
}


@pytest.fixture
def files(tmp_path):
    """A run with three checkpoints, a LoRA and the word <zib> for it, the latter two as files."""
    go_on(new_text_run(tmp_path / "run", frozen=True), 3, dataset=bars())
    opened, rng, updates = open_pipeline("run", "numpy"), np.random.default_rng(0), {}
    for name, layer in pipeline_layers(opened).items():
        if ATTENTION.search(name):
            O, *rest = layer.weight.shape
            updates[name] = Update(*(rng.standard_normal(s).astype(np.float32) for s in ((2, *rest), (O, 2))), 2.0)
    save_lora(tmp_path / "lora.safetensors", updates)
    save_embedding(tmp_path / "word.safetensors", "<zib>", 5 * rng.standard_normal((2, 8)).astype(np.float32))


def pixels(path):
    with Image.open(path) as image:
        return image.tobytes()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command(done, refused, drawing_to_edit, files, name):
    command, outputs = COMMANDS[name]

    def images(*options):
        out = f"out{len(list(Path().iterdir()))}{'' if name == 'explain' else '.png'}"
        done(*command, "--prompt", "red <zib>", "--out", out, *options, *STEPS)
        return [pixels(f"{out}/{file}" if name == "explain" else out) for file in outputs]

    lora, word = ("--lora", "lora.safetensors"), ("--embedding", "word.safetensors")
    plain = images()
    assert images("--lora", "lora.safetensors:0") == plain
    for options in (lora, word):
        assert all(a != b for a, b in zip(images(*options), plain, strict=True)), options
    assert images(*lora, *word) not in (images(*lora), images(*word))
    refused(*command, "--prompt", "a", "--out", "new.png", "--lora", "none", *STEPS, match="none: no such file")
    if name != "explain":
        for option, file in (lora, word):
            refused(*command, option, file, "--out", "new.png", match=f"{option} needs a prompt")


def test_checkpoints_that_share_a_text_encoder(files):
    """Each has the LoRA once, and none has it afterwards."""
    opened = open_pipeline("run", "numpy")
    lora = load_lora("lora.safetensors", opened)
    name = next(name for name in lora if name.startswith("text_encoder"))
    weight = pipeline_layers(opened)[name].weight
    own, steps = weight.numpy().copy(), []
    for step, kept in _adapted_checkpoints(opened, ["lora.safetensors"], []):
        steps.append(step)
        np.testing.assert_allclose(pipeline_layers(kept)[name].weight.numpy(), own + lora[name].product(), rtol=1e-6)
    np.testing.assert_array_equal(weight.numpy(), own)
    assert len(steps) > 1


def test_models_that_take_no_prompt(refused, tmp_path, files, data):
    pipeline(tmp_path / "net")
    for option, file in (("--lora", "lora.safetensors"), ("--embedding", "word.safetensors")):
        refused("evaluate", "net", "--against", "data", option, file, match="net: holds .*; give a run of .* --text")
        refused("explain", "net", "--prompt", "a", option, file, match="net: holds .*; give a run of .* --text")
        np.savez("images.npz", np.zeros((16, 4, 4, 1), np.uint8))
        refused("evaluate", "images.npz", "--against", "data", option, file, match="is an archive of images; leave")
        Path("images.npz").unlink()
