"""minidiff sample FOLDER --seed 0 --noise torch against the folder's pipeline in diffusers with the same seed."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported: what is not in the folder is an error

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)
from typer.testing import CliRunner

from minidiff.cli import app

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers on torch
N = 3
PIPELINES = {
    "DDIM, 50 steps": (DDIMPipeline, DDIMScheduler(), 50, 0.0),
    "DDIM, 50 steps, eta 1": (DDIMPipeline, DDIMScheduler(clip_sample=False), 50, 1.0),
    "DDIM, 20 steps, trailing, zero SNR": (
        DDIMPipeline,
        DDIMScheduler(
            beta_schedule="scaled_linear",
            timestep_spacing="trailing",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
        ),
        20,
        0.0,
    ),
    "DDPM, all 1000 steps": (DDPMPipeline, DDPMScheduler(), 1000, None),
    "DPM-Solver++, 20 steps": (DDPMPipeline, DPMSolverMultistepScheduler(), 20, None),
    "DDPM, fixed_large, 40 steps": (DDPMPipeline, DDPMScheduler(variance_type="fixed_large"), 40, None),
}


def trained(prediction_type):
    """A small net after 100 steps on pictures of one colour each.

    It has to be trained a little: an untrained one drives two walks apart that begin 1e-7 from each other,
    diffusers' own as well, until they differ by four levels of 255.
    """
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=8,
    )  # fmt: skip
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(100):
        x0 = (2 * torch.rand(16, 3, 1, 1) - 1).expand(-1, -1, 8, 8)
        t, eps = torch.randint(0, 1000, (16,)), torch.randn(16, 3, 8, 8)
        x_t = scheduler.add_noise(x0, eps, t)
        goal = eps if prediction_type == "epsilon" else scheduler.get_velocity(x0, eps, t)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(net(x_t, t).sample, goal).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def nets():
    return {prediction_type: trained(prediction_type) for prediction_type in ("epsilon", "v_prediction")}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_same_pictures_from_the_same_seed(name, nets, tmp_path, monkeypatch):
    kind, scheduler, steps, eta = PIPELINES[name]
    pipeline = kind(nets[scheduler.config.prediction_type], scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "folder")
    extras = {} if eta is None else {"eta": eta}
    generator = torch.Generator("cpu").manual_seed(0)
    images = pipeline(N, generator, num_inference_steps=steps, output_type="np", **extras).images
    theirs = (images * 255).round().astype(np.uint8)  # (N, H, W, C)

    monkeypatch.chdir(tmp_path)
    arguments = ["sample", "folder", "--seed", "0", "--noise", "torch", "--n", str(N), "--npz", "drawn.npz"]
    # 50 steps of DDIM and all steps of DDPM are what the command takes unless told otherwise
    arguments += [] if steps in (50, 1000) else ["--steps", str(steps)]
    arguments += ["--eta", str(eta)] if eta else []
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    with np.load("drawn.npz") as file:
        ours = file["arr_0"]
    assert ours.shape == theirs.shape and ours.dtype == np.uint8
    off = np.abs(ours.astype(int) - theirs)
    assert theirs.std() > 10 and np.mean(off <= 1) >= 0.999 and off.max() <= 2
    assert np.mean(off == 0) > 0.98
