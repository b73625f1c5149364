"""EDM and rectified flow against diffusers' schedulers and torch: trajectories, losses, and a run's folder."""

import diffusers
import numpy as np
import pytest
import torch

import minidiff as md
from minidiff.diffusion.forward import x0_and_eps
from minidiff.diffusion.reverse import sample
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import linear_schedule
from minidiff.engine.backend import get_backend
from minidiff.engine.functional import mul
from minidiff.engine.tensor import Tensor
from minidiff.formats.networks import save_pipeline
from minidiff.formats.schedulers import sampler_from_config, schedule_from_config, schedule_to_config

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers on torch
SHAPE = (2, 6, 6, 3)
CLASSES = {"EDMEulerScheduler": md.EDM(), "FlowMatchEulerDiscreteScheduler": md.Flow()}


def network(x, t):
    """Any function of a network's input."""
    return (np.sin(3 * x) * (0.5 + np.asarray(t, np.float32).reshape(-1, 1, 1, 1) / 2000)).astype(np.float32)


def sample_of_diffusers(scheduler, predict, noise, steps):
    """The loop of diffusers' documentation, NCHW."""
    scheduler.set_timesteps(steps)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        network_input = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(predict(network_input, t), t, x).prev_sample
    return x


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("steps", [1, 7, 30])
def test_samples_are_diffusers(name, steps):
    """Both in float32. Theirs rounds x, which in EDM begins with values of 4 x 80: 2e-5, and then the steps' own."""
    schedule = CLASSES[name]
    scheduler = getattr(diffusers, name).from_config(schedule_to_config(schedule))
    noise = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    sampler = sampler_from_config(schedule_to_config(schedule))
    *_, (_, x_0, _) = sample(md.as_model(network, schedule), schedule, SHAPE, None, steps, sampler, x_T=noise)

    def predict(x, t):
        return torch.from_numpy(network(x.numpy(), np.full(len(x), t.item())))

    theirs = sample_of_diffusers(scheduler, predict, torch.from_numpy(noise), steps).numpy()
    np.testing.assert_allclose(x_0, theirs, rtol=0, atol={"EDMEulerScheduler": 6e-5}.get(name, 6e-6))


def test_preconditioning_is_diffusers():
    """c_in x and c_noise into the network and D(x; sigma) out of it, in float64: theirs is table 1 in torch."""
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.5)
    rng = np.random.default_rng(0)
    x0, eps, F = (torch.from_numpy(rng.standard_normal((1, 4, 4, 3))) for _ in range(3))
    for sigma in torch.tensor([0.002, 0.05, 1.0, 80.0, 1e4], dtype=torch.float64):
        x, t = x0 + sigma * eps, sigma.numpy().reshape(1)
        x_t = md.q_sample(md.EDM(), x0.numpy(), t, eps.numpy())
        inputs = []
        md.as_model(lambda *given, inputs=inputs: inputs.extend(given), md.EDM())(x_t, t)
        np.testing.assert_allclose(inputs[0], scheduler.precondition_inputs(x, sigma), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(inputs[1], scheduler.precondition_noise(sigma), rtol=1e-12)
        x0_hat, _ = x0_and_eps(md.EDM(), F.numpy(), x_t, t)
        np.testing.assert_allclose(x0_hat, scheduler.precondition_outputs(x, F, sigma), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_is_sampled_alike(name, tmp_path):
    schedule = CLASSES[name]
    unet = md.UNet(md.default_config((8, 8, 3), width=8), np.random.default_rng(0), "numpy")
    md.save_unet(unet, tmp_path / "unet")
    save_pipeline(tmp_path, schedule)
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    scheduler = getattr(diffusers, name).from_pretrained(tmp_path, subfolder="scheduler")
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 3), dtype=np.float32)
    with torch.no_grad():
        expected = sample_of_diffusers(
            scheduler, lambda x, t: theirs(x, t).sample, torch.from_numpy(noise).permute(0, 3, 1, 2), 10
        )
    assert schedule_from_config(schedule_to_config(schedule)) == md.load_schedule(tmp_path)
    model = md.as_model(md.load_unet(tmp_path, "numpy"), md.load_schedule(tmp_path))
    *_, (_, x_0, _) = sample(model, schedule, noise.shape, None, 10, md.load_sampler(tmp_path), x_T=noise)
    np.testing.assert_allclose(x_0, expected.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-4)
    assert md.load_sampler(tmp_path) == Sampler("euler", clip=None)


def papers_loss(objective, scale, x0, eps, t):
    """The loss of a network that is scale times its input, as each paper writes it, in torch and float64."""
    t = torch.from_numpy(t).reshape(-1, 1, 1, 1)
    if objective == "edm":  # Karras et al. 2022, eq. 2, 7 and 8, with table 1
        x, total = x0 + t * eps, t**2 + 0.25
        D = 0.25 / total * x + 0.5 * t / total.sqrt() * (scale * x / total.sqrt())
        return (total / (0.5 * t) ** 2 * (D - x0) ** 2).mean()
    if objective == "flow":  # Liu et al. 2022, eq. 1, with time reversed
        return ((scale * ((1 - t) * x0 + t * eps) - (eps - x0)) ** 2).mean()
    alpha_bar = torch.tensor(linear_schedule().alphas_cumprod)[t]
    x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0
    return ((scale * x_t - {"epsilon": eps, "sample": x0, "v_prediction": v}[objective]) ** 2).mean()


@pytest.mark.parametrize("objective", ["epsilon", "sample", "v_prediction", "edm", "flow"])
def test_losses_and_gradients_are_torchs(objective):
    rng = np.random.default_rng(3)
    x0, eps = (rng.standard_normal((4, 6, 6, 3), dtype=np.float32) for _ in range(2))
    schedule = {"edm": md.EDM(), "flow": md.Flow()}.get(objective) or linear_schedule(prediction_type=objective)
    t = schedule.sample_t(rng, 4)
    backend = get_backend("numpy")
    scale = Tensor(np.array([0.7], np.float32), backend, requires_grad=True)
    loss = md.training_loss(
        md.as_model(lambda x, t: mul(Tensor(x.astype(np.float32), backend), scale), schedule), schedule, x0, t, eps
    )
    loss.backward()
    theirs = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    expected = papers_loss(objective, theirs, torch.from_numpy(x0).double(), torch.from_numpy(eps).double(), t)
    expected.backward()
    # float32 against float64: some ten roundings of 6e-8; EDM's D - x0 in float64 loses nothing
    np.testing.assert_allclose(loss.numpy(), expected.detach().numpy(), rtol=2e-6)
    np.testing.assert_allclose(scale.grad, theirs.grad.numpy(), rtol=5e-6, atol=1e-6)
