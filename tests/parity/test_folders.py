"""Folders that diffusers and minidiff read of one another: networks, schedules, whole runs.

Both networks are asked at the same points with the same float32 weights, so their outputs differ by rounding:
rtol 1e-4 and atol 1e-5 are ten to thirty times what torch itself is off by against float64.
"""

import json
import os
import re
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported: what is not in the folder is an error

import numpy as np
import pytest
import torch
from against_torch import draw, nchw, nhwc
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from small_runs import go_on, network, new_run

import minidiff as md
from minidiff.cli import app
from minidiff.diffusion.noise_levels import timesteps
from minidiff.errors import MinidiffError
from minidiff.formats import networks
from minidiff.formats.weights import INDEX, RENAMED, WEIGHTS

# Their tables are float32 products of up to a thousand factors 1 - beta, each off by 6e-8; the smallest factor, 0.001
# where a beta is clipped, is off by 6e-8 / 0.001 = 6e-5 of itself. atol is for the zero of zero terminal SNR.
TABLES = {"rtol": 6e-5, "atol": 1e-9}

CONFIGS = {
    "grey, one level": network(),
    "colours, attention": network(
        in_channels=3, out_channels=3, sample_size=8, block_out_channels=(8, 12), attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        add_attention=True,
    ),
    "not square, as DDPM's": network(
        sample_size=(4, 8), block_out_channels=(8, 8), attention_head_dim=None, downsample_padding=0,
        down_block_types=("AttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "AttnUpBlock2D"),
        flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, add_attention=True,
    ),
    "labels": network(num_class_embeds=4),
}  # fmt: skip


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def same_output(ours, theirs):
    """Both networks agree on pictures of noise, at the first and the last t and one between."""
    rng = np.random.default_rng(0)
    x_t = rng.standard_normal((3, *ours.image_shape), dtype=np.float32)
    t = np.array([0, 17, 999])
    labels = None if ours.config.num_class_embeds is None else np.array([0, 3, 1])
    with torch.no_grad():
        cond = None if labels is None else torch.tensor(labels)
        want = nhwc(theirs(nchw(torch.tensor(x_t)), torch.tensor(t), class_labels=cond).sample).numpy()
    got = ours(x_t, t, cond=labels).numpy()
    assert np.abs(want).mean() > 0.01
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def our_unet(config, backend="numpy"):
    return md.UNet(config, np.random.default_rng(2), backend)


def their_unet(config):
    torch.manual_seed(3)
    return UNet2DModel.from_config(config.to_dict())


# Ours, read by diffusers


def test_diffusers_reads_our_network(tmp_path, config):
    unet = our_unet(config)
    md.save_unet(unet, tmp_path)
    theirs, report = UNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    same_output(unet, theirs)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of a few steps."""
    folder = tmp_path_factory.mktemp("parity") / "run"
    go_on(new_run(folder, 4))
    return folder


def test_diffusers_opens_a_run(run_folder):
    pipeline = DDPMPipeline.from_pretrained(run_folder)
    same_output(md.load_unet(run_folder, "numpy"), pipeline.unet)
    same_output(md.load_unet(run_folder), UNet2DModel.from_pretrained(run_folder, subfolder="unet"))
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    schedule = md.load_schedule(run_folder)
    np.testing.assert_allclose(pipeline.scheduler.alphas_cumprod, schedule.alphas_cumprod, **TABLES)


def test_diffusers_draws_from_a_run(run_folder):
    """With the same seed its pictures are ours, by the scheduler that the run names."""
    pipeline = DDPMPipeline.from_pretrained(run_folder)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(batch_size=2, generator=torch.manual_seed(0), num_inference_steps=15, output_type="np").images
    unet, schedule = md.load_unet(run_folder, "numpy"), md.load_schedule(run_folder)
    sampler = md.load_sampler(run_folder)
    *_, (_, x_0, _) = md.sample(unet, schedule, (2, 4, 4, 1), md.torch_generator(0), 15, sampler)
    # fifteen steps, each of which adds the rounding of a few float32 operations on numbers of order one
    np.testing.assert_allclose((x_0 / 2 + 0.5).clip(0, 1), drawn, atol=15 * 6e-7)


def test_the_round_trip(tmp_path, monkeypatch):
    """Trained for fifty steps, exported, saved again by diffusers, read here: the same network, which trains on."""
    run = new_run(tmp_path / "run", 50)
    go_on(run, checkpoint_every=50)
    monkeypatch.setattr(sys, "argv", ["minidiff", "export", str(tmp_path / "run"), str(tmp_path / "ours")])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 0
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "ours")
    same_output(md.load_unet(tmp_path / "ours"), pipeline.unet)
    pipeline.save_pretrained(tmp_path / "theirs")

    def losses(unet):
        optimizer = md.AdamW(unet.parameters(), lr=1e-3)
        x0 = np.random.default_rng(0).uniform(-1, 1, (4, *unet.image_shape)).astype(np.float32)
        schedule = md.load_schedule(tmp_path / "theirs")
        return [md.train_step(unet, schedule, optimizer, x0, np.random.default_rng(k)).loss for k in range(10)]

    with run.optimizer.averaged():
        state = {name: a.copy() for name, a in run.unet.state_dict().items()}
    before = md.UNet(run.unet.config, np.random.default_rng(0), "numpy")
    before.load_state_dict(state)
    assert losses(md.load_unet(tmp_path / "theirs", "numpy")) == losses(before)


# diffusers', read by us


def test_we_read_their_network(tmp_path, config, backend):
    theirs = their_unet(config)
    theirs.save_pretrained(tmp_path)
    ours = md.load_unet(tmp_path, backend.name)
    for name, value in config.to_dict().items():
        assert name == "_class_name" or getattr(ours.config, name) == value
    same_output(ours, theirs)


def test_we_read_their_pipeline(tmp_path):
    config = CONFIGS["colours, attention"]
    theirs = DDPMPipeline(their_unet(config), DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    theirs.save_pretrained(tmp_path)
    same_output(md.load_unet(tmp_path), theirs.unet)
    assert md.load_schedule(tmp_path).name == "squaredcos_cap_v2"


def test_there_and_back(tmp_path, config):
    """Read by diffusers and saved by it, our weights are the same to the last bit."""
    unet = our_unet(config)
    md.save_unet(unet, tmp_path / "ours")
    UNet2DModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = md.load_unet(tmp_path / "theirs", "numpy")
    assert again.config == unet.config
    for name, a in unet.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], a)


def same_weights(ours, theirs):
    """To the last bit; every float16 and every bfloat16 is a float32 too."""
    state = theirs.state_dict()
    assert set(ours.state_dict()) == set(state)
    for name, a in ours.state_dict().items():
        want = state[name].float()
        np.testing.assert_array_equal(a, nhwc(want).numpy() if want.ndim == 4 else want.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path, dtype, backend):
    theirs = their_unet(CONFIGS["colours, attention"]).to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = md.load_unet(tmp_path, backend.name)
    same_weights(ours, theirs)
    same_output(ours, theirs.float())


def test_double_precision_is_refused_by_name(tmp_path):
    their_unet(network()).double().save_pretrained(tmp_path)
    with pytest.raises(MinidiffError, match="is F64, and only F32, F16, BF16 are read; save it in float32"):
        md.load_unet(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_several_files(tmp_path, dtype):
    theirs = their_unet(CONFIGS["colours, attention"]).to(dtype)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 and (tmp_path / INDEX).exists()
    ours = md.load_unet(tmp_path, "numpy")
    same_weights(ours, theirs)
    md.save_unet(ours, tmp_path)  # one file takes the place of the several
    same_output(ours, UNet2DModel.from_pretrained(tmp_path))
    same_weights(md.load_unet(tmp_path, "numpy"), theirs)


def test_a_folder_that_holds_all_at_its_root(tmp_path):
    """As google/ddpm-cifar10-32 has it, with the names of its time: attention's, and few keys."""
    theirs = their_unet(CONFIGS["not square, as DDPM's"])
    theirs.save_pretrained(tmp_path)
    DDPMScheduler(num_train_timesteps=50).save_pretrained(tmp_path)
    old = {today: name for name, today in RENAMED.items()}
    tensors = load_file(tmp_path / WEIGHTS)
    renamed = {re.sub(r"(to_q|to_k|to_v|to_out\.0)", lambda m: old[m[0]], name): a for name, a in tensors.items()}
    assert len(set(renamed) - set(tensors)) == 8 * 4  # weight and bias of four projections of four attentions
    save_file(renamed, tmp_path / WEIGHTS)
    ours = md.load_unet(tmp_path, "numpy")
    same_weights(ours, theirs)
    same_output(ours, UNet2DModel.from_pretrained(tmp_path))
    assert len(md.load_schedule(tmp_path)) == 50
    twice = "mid_block.attentions.0.to_q.bias"
    save_file({**renamed, twice: tensors[twice].clone()}, tmp_path / WEIGHTS)
    with pytest.raises(MinidiffError, match="attention weights by old names and by new ones"):
        md.load_unet(tmp_path)


def test_a_key_that_is_absent_has_diffusers_default(tmp_path):
    """None but what makes the network small."""
    theirs = UNet2DModel(
        block_out_channels=(32, 64), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    kept = ("block_out_channels", "down_block_types", "up_block_types")
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({name: values[name] for name in kept}))
    same_output(md.load_unet(tmp_path), theirs)


@pytest.mark.parametrize("suffix", ["bin", "ckpt"])
def test_a_pickle_is_not_read(tmp_path, suffix):
    their_unet(network()).save_pretrained(tmp_path, safe_serialization=False)
    pickle = tmp_path / f"diffusion_pytorch_model.{suffix}"
    (tmp_path / "diffusion_pytorch_model.bin").rename(pickle)
    message = rf"{pickle}: is a pickle.*save_pretrained\(..., safe_serialization=True\)$"
    for place in (tmp_path, pickle):
        with pytest.raises(MinidiffError, match=message):
            md.load_unet(place)
    (tmp_path / "config.json").unlink()
    with pytest.raises(MinidiffError, match=message):
        md.load_unet(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"act_fn": "mish"}, {"time_embedding_type": "fourier"}, {"class_embed_type": "identity"},
        {"class_embed_type": "timestep"}, {"mid_block_type": None},
    ],
)  # fmt: skip
def test_what_we_do_not_build_is_refused_by_name(tmp_path, change):
    UNet2DModel.from_config({**network().to_dict(), **change}).save_pretrained(tmp_path)
    with pytest.raises(MinidiffError, match="|".join(f"config.json: .*{name}" for name in change)):
        md.load_unet(tmp_path)


SCHEDULERS = {
    "DDPM's": DDPMScheduler(),
    "DDPM, sigmoid": DDPMScheduler(beta_schedule="sigmoid", num_train_timesteps=100),
    "DDPM, betas": DDPMScheduler(trained_betas=np.linspace(0.01, 0.2, 10).tolist(), num_train_timesteps=10),
    "DDPM, zero SNR": DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    "DDIM's": DDIMScheduler(),
    "DDIM, scaled": DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "DDIM, x0": DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_we_read_their_schedulers(tmp_path, name):
    theirs = SCHEDULERS[name]
    theirs.save_pretrained(tmp_path)
    schedule = md.load_schedule(tmp_path)
    assert len(schedule) == theirs.config.num_train_timesteps
    assert schedule.prediction_type == theirs.config.prediction_type
    np.testing.assert_allclose(schedule.alphas_cumprod, theirs.alphas_cumprod, **TABLES)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "maker", [md.linear_schedule, md.scaled_linear_schedule, md.cosine_schedule, md.sigmoid_schedule]
)
def test_they_read_our_schedules(tmp_path, maker, prediction_type):
    schedule = maker(200, prediction_type=prediction_type)
    networks.save_pipeline(tmp_path, schedule)
    theirs = DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    np.testing.assert_allclose(theirs.alphas_cumprod, schedule.alphas_cumprod, **TABLES)
    assert theirs.config.prediction_type == prediction_type
    theirs.set_timesteps(20)
    np.testing.assert_array_equal(theirs.timesteps, timesteps(200, 20))


def test_a_network_goes_there_and_back_and_trains_on(run_folder, tmp_path):
    """A run's network, saved by diffusers, is read here and learns as the run's own does."""
    UNet2DModel.from_pretrained(run_folder, subfolder="unet").save_pretrained(tmp_path)
    schedule, x0 = md.load_schedule(run_folder), draw(4, 4, 4, 1)

    def losses(unet):
        optimizer = md.AdamW(unet.parameters(), lr=1e-3)
        rng = np.random.default_rng(0)
        return [md.train_step(unet, schedule, optimizer, x0, rng).loss for _ in range(3)]

    there = losses(md.load_unet(tmp_path))
    assert there == losses(md.load_unet(run_folder)) and len(set(there)) == 3


def test_the_index_names_what_is_there(run_folder):
    index = json.loads((run_folder / "model_index.json").read_text())
    assert index.pop("_class_name") == "DDPMPipeline"
    assert set(index) == {"unet", "scheduler"} and all((run_folder / name).is_dir() for name in index)
