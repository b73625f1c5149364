"""Whole trajectories of the samplers that diffusers has against diffusers' schedulers, from the same noise.

Both have the same deterministic model and the same z. What is compared is x_t after every step, as the rms of
the difference over the rms of diffusers' x_t. Twice: with diffusers' float32 coefficients given to us (the twins
below), where only the arithmetic of the steps is left to differ, and with our own float64 tables. Where diffusers
differs from the papers, and we do not, samplers that are as_diffusers are compared, from the folder of its scheduler.
"""

import importlib
import sys
import types
import warnings
from dataclasses import replace
from functools import partial

import diffusers
import numpy as np
import pytest
import torch

from minidiff.diffusion import noise_levels, reverse
from minidiff.diffusion.sampler import SAMPLERS
from minidiff.diffusion.schedule import respace
from minidiff.formats.networks import load_sampler, load_schedule
from minidiff.formats.schedulers import sampler_from_config, schedule_from_config

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers on torch
SHAPE = (2, 6, 6, 3)
T = 1000
SPACINGS = ("trailing", "leading", "linspace")
BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "stable diffusion": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}
V = {"prediction_type": "v_prediction"}
SDE = {"algorithm_type": "sde-dpmsolver++"}

# Every scheduler in every supported setting: diffusers' class, its settings, the betas.
SETTINGS = {
    "ddpm": ("DDPMScheduler", {}, "linear"),
    "ddpm, fixed_large, no clipping": (
        "DDPMScheduler", {"variance_type": "fixed_large", "clip_sample": False}, "linear"),
    "ddpm, learned_range": ("DDPMScheduler", {"variance_type": "learned_range", "clip_sample": False}, "linear"),
    "ddpm, v": ("DDPMScheduler", V, "stable diffusion"),
    "ddim": ("DDIMScheduler", {}, "linear"),
    "ddim, no clean end, offset": (
        "DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}, "stable diffusion"),
    "ddim, sample": ("DDIMScheduler", {"prediction_type": "sample", "clip_sample_range": 0.5}, "linear"),
    "ddim, v, zero SNR": (
        "DDIMScheduler", {"rescale_betas_zero_snr": True} | V, "stable diffusion"),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, "linear"),
    "pndm of Stable Diffusion": (
        "PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, "clip_sample": False}, "stable diffusion"),
    "pndm, v": (
        "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True} | V, "linear"),
    "euler": ("EulerDiscreteScheduler", {}, "stable diffusion"),
    "euler, sample": ("EulerDiscreteScheduler", {"prediction_type": "sample"}, "linear"),
    "euler, karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "steps_offset": 1}, "stable diffusion"),
    "euler, sigma_min, v": (
        "EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"} | V, "linear"),
    "euler, zero SNR": (
        "EulerDiscreteScheduler", {"rescale_betas_zero_snr": True} | V, "stable diffusion"),
    "euler ancestral": ("EulerAncestralDiscreteScheduler", {}, "linear"),
    "euler ancestral, v": ("EulerAncestralDiscreteScheduler", V, "stable diffusion"),
    "heun": ("HeunDiscreteScheduler", {}, "stable diffusion"),
    "heun, clipping, karras": (
        "HeunDiscreteScheduler", {"clip_sample": True, "use_karras_sigmas": True}, "linear"),
    "heun, v": ("HeunDiscreteScheduler", V, "linear"),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {}, "stable diffusion"),
    "dpm++ 2m, karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "stable diffusion"),
    "dpm++ 2m, sigma_min": ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, "linear"),
    "dpm++ 2m, v": ("DPMSolverMultistepScheduler", {"steps_offset": 1} | V, "linear"),
    "dpm++ 2m, sample": ("DPMSolverMultistepScheduler", {"prediction_type": "sample"}, "linear"),
    "dpm++ 2m sde": ("DPMSolverMultistepScheduler", SDE, "stable diffusion"),
    "dpm++ 2m sde, karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True} | SDE, "stable diffusion"),
    "dpm++ 2m sde, sigma_min, v": (
        "DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"} | SDE | V, "linear"),
    "dpm++ sde": ("DPMSolverSDEScheduler", {}, "stable diffusion"),
    "dpm++ sde, karras, v": ("DPMSolverSDEScheduler", {"use_karras_sigmas": True, "steps_offset": 1} | V, "linear"),
    "lcm": ("LCMScheduler", {}, "stable diffusion"),
    "lcm, sample": ("LCMScheduler", {"prediction_type": "sample"}, "linear"),
    "lcm, clipping, v": ("LCMScheduler", {"clip_sample": True} | V, "linear"),
    "unipc": ("UniPCMultistepScheduler", {}, "stable diffusion"),
    "unipc, karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}, "stable diffusion"),
    "unipc, sigma_min, v": (
        "UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min", "steps_offset": 1} | V, "linear"),
    "unipc, sample": ("UniPCMultistepScheduler", {"prediction_type": "sample"}, "linear"),
}  # fmt: skip


def toy_model(x_t, t):
    """Deterministic, of x_t and t, and like a noise predictor in that it takes most of the noise away."""
    return (np.sin(x_t) * (0.5 + np.asarray(t, np.float32).reshape(-1, 1, 1, 1) / 2000)).astype(np.float32)


def toy_model_with_variance(x_t, t, axis=-1):
    """The same with v, between -1 and 1, in a second half of the channels: axis 1 in diffusers, the last one here."""
    return np.concatenate([toy_model(x_t, t), np.tanh(x_t)], axis)


class Noise:
    """The same noise for both sides, in the same order; the last one is kept."""

    def __init__(self):
        self.rng = np.random.default_rng(7)
        self.count = 0

    def standard_normal(self, shape=SHAPE, dtype=np.float32):
        self.count += 1
        self.last = self.rng.standard_normal(shape, dtype=dtype)
        return self.last


def scheduler_of(name, spacing, **settings):
    class_name, chosen, betas = (SETTINGS | ALSO_AS_DIFFUSERS)[name]
    settings = BETAS[betas] | chosen | settings | {"timestep_spacing": spacing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that a class does not know
        return class_of(class_name).from_config(settings)


def class_of(name):
    """diffusers' class. DPMSolverSDEScheduler takes its noise from torchsde, which a stub replaces: we hand it in."""
    if name != "DPMSolverSDEScheduler":
        return getattr(diffusers, name)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
        return getattr(importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde"), name)


def on_one_brownian_path(noise):
    """The noise_sampler of DPMSolverSDEScheduler, called for the first half of a step and then for the whole.

    By the reverse SDE the noise of a time dlog(sigma) has variance 1 - exp(-2 dlog(sigma)) in units of its end's
    noise, and what came before is scaled by exp(-dlog(sigma)).
    """
    halves = []

    def noise_sampler(sigma, sigma_next):
        if not halves:
            halves.extend(torch.from_numpy(noise.standard_normal()) for _ in range(2))
            return halves[0]
        first, second = halves
        halves.clear()
        shrink = (sigma_next / sigma) ** 0.5  # over half the step
        return (shrink * first + second) * ((1 - shrink**2) / (1 - shrink**4)) ** 0.5

    return noise_sampler


VARIANCE_PRESERVING = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")  # of those that have sigmas


def their_trajectory(scheduler, steps, monkeypatch, noise=None, **extras):
    """x_t after every step, as a variance-preserving x_t whatever the scheduler's own scale. extras go to its step."""
    noise = noise or Noise()
    for name in ("ddpm", "ddim", "euler_ancestral_discrete", "dpmsolver_multistep", "lcm"):
        module = getattr(diffusers.schedulers, f"scheduling_{name}")
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.from_numpy(noise.standard_normal(shape)))
    scheduler.set_timesteps(steps)
    class_name = type(scheduler).__name__
    if class_name == "DPMSolverSDEScheduler":
        scheduler.noise_sampler = on_one_brownian_path(noise)
    x = torch.from_numpy(noise.standard_normal()) * scheduler.init_noise_sigma
    sigmas = None if class_name in VARIANCE_PRESERVING else getattr(scheduler, "sigmas", None)
    states = []
    learned = scheduler.config.get("variance_type") == "learned_range"
    model = partial(toy_model_with_variance, axis=1) if learned else toy_model
    for k, t in enumerate(scheduler.timesteps):
        x_t = scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.from_numpy(model(x_t.numpy(), t)), t, x, return_dict=False, **extras)[0]
        states.append(x.numpy() if sigmas is None else (x / (sigmas[k + 1] ** 2 + 1) ** 0.5).numpy())
    if class_name in ("HeunDiscreteScheduler", "DPMSolverSDEScheduler"):  # two calls a step, but one for the last
        states = states[1::2] + states[-1:]
    if class_name == "PNDMScheduler" and steps > 1:  # the first step is repeated
        states = states[1:]
    return states


def distances(states, theirs):
    assert len(states) == len(theirs)
    return [np.sqrt(np.mean((a - b) ** 2) / np.mean(np.square(b))) for a, b in zip(states, theirs, strict=True)]


def our_trajectory(schedule, sampler, steps, noise=None):
    model = toy_model_with_variance if sampler.variance == "learned_range" else toy_model
    return [x_t for _, x_t, _ in reverse.sample(model, schedule, SHAPE, noise or Noise(), steps, sampler)]


def set_table(schedule, **tables):
    """Replace a schedule's own tables."""
    for name, table in tables.items():
        object.__setattr__(schedule, name, table)


def with_their_tables(schedule, scheduler):
    """The same schedule with alphas_cumprod as diffusers has it, a float32 product of float32 numbers."""
    schedule = replace(schedule)
    set_table(schedule, alphas_cumprod=scheduler.alphas_cumprod.numpy().astype(np.float64))
    return schedule


def ddpm_twin(schedule, ts):
    """The tables of diffusers' DDPM step, in float32: beta = 1 - alpha_bar / alpha_bar_prev loses most digits."""
    short = respace(schedule, ts)
    alpha_bar = schedule.alphas_cumprod[ts][::-1].astype(np.float32)
    prev = np.append(np.float32(1), alpha_bar[:-1])
    alphas = alpha_bar / prev
    betas = 1 - alphas
    posterior = (1 - prev) / (1 - alpha_bar) * betas
    set_table(short, alphas_cumprod=alpha_bar, alphas_cumprod_prev=prev, alphas=alphas, betas=betas)
    set_table(short, posterior_variance=posterior)
    return short


def both(name, spacing, steps, monkeypatch):
    """Ours in diffusers' coefficients, ours in float64, and diffusers' own: x_t after every step."""
    scheduler = scheduler_of(name, spacing)
    config = dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
    schedule, sampler = schedule_from_config(config), sampler_from_config(config)
    theirs = their_trajectory(scheduler, steps, monkeypatch)
    own = our_trajectory(schedule, sampler, steps)
    if sampler.name == "ddpm":
        monkeypatch.setattr(noise_levels, "respace", ddpm_twin)
    twin = our_trajectory(with_their_tables(schedule, scheduler), sampler, steps)
    return twin, own, theirs


def differs_on_purpose(name, spacing, steps):
    """Whether diffusers takes t - T // steps for the step before, which is not on its list of timesteps."""
    return name.startswith(("ddim", "pndm")) and (spacing == "linspace" or (spacing == "trailing" and T % steps))


def limits(name):
    """How far a trajectory may be from diffusers': in its own coefficients, and in ours of float64."""
    if name == "euler, zero SNR":
        # It begins at sigma = 4096, where diffusers keeps x0 + sigma eps in float32. The first step takes that to
        # sigma = 15 or so: 4096 / 15 roundings of 6e-8, two or three of them.
        return 1e-4, 1e-4
    return 1e-5, 5e-4 if name.startswith("ddpm") else 1e-4


# Twice the distances in docs/samplers.md: in diffusers' coefficients, and in ours of float64.
DOCUMENTED = {
    "ddpm": (1.2e-6, 1e-5), "ddim": (1.2e-6, 2.4e-5), "pndm": (3e-6, 3.2e-6), "euler": (9.2e-6, 2.4e-5),
    "euler_ancestral": (1.5e-6, 3e-6), "heun": (1e-5, 1.5e-5), "dpmpp_2m": (2.2e-6, 9.2e-6),
    "dpmpp_2m_sde": (3e-6, 2.6e-5), "dpmpp_sde": (2.4e-6, 1.1e-4), "unipc": (1.6e-6, 9.4e-6),
    "consistency": (3e-6, 5.4e-6),
}  # fmt: skip


AS_DIFFUSERS = [
    (name, steps, spacing)
    for name in SETTINGS
    for steps in (4, 14, 15, 30, 50)  # DPM-Solver++ ends in another way from 15 on
    for spacing in SPACINGS
    if not differs_on_purpose(name, spacing, steps)
]


@pytest.mark.parametrize(("name", "steps", "spacing"), AS_DIFFUSERS)
def test_every_setting(name, steps, spacing, monkeypatch):
    twin, own, theirs = both(name, spacing, steps, monkeypatch)
    if ("fixed_large" in name or "learned" in name) and spacing == "trailing":
        twin, own, theirs = twin[:-1], own[:-1], theirs[:-1]  # see test_the_last_step_is_without_noise
    limit_twin, limit_own = limits(name) if name == "euler, zero SNR" else DOCUMENTED[sampler_of(name)]
    assert max(distances(twin, theirs)) <= limit_twin
    assert max(distances(own, theirs)) <= limit_own


@pytest.mark.parametrize("name", ["ddpm", "ddpm, v", "ddim", "pndm", "heun", "dpm++ 2m"])
def test_a_thousand_steps(name, monkeypatch):
    steps = T - 1 if name.startswith("dpm") else T  # it takes one timestep more than steps
    twin, own, theirs = both(name, "leading", steps, monkeypatch)
    limit_twin, limit_own = limits(name)
    assert max(distances(twin, theirs)) <= limit_twin
    assert max(distances(own, theirs)) <= limit_own


# Beside those above, settings that only matter where diffusers is followed to the letter.
ALSO_AS_DIFFUSERS = {
    "ddim, eta 1": ("DDIMScheduler", {"clip_sample": False}, "linear"),
    "pndm, v, zero SNR": (  # which it ignores, as heun does
        "PNDMScheduler", {"skip_prk_steps": True, "rescale_betas_zero_snr": True} | V, "stable diffusion"),
    "dpm++ sde, v, zero SNR": ("DPMSolverSDEScheduler", {"rescale_betas_zero_snr": True} | V, "linear"),
    "heun, v, zero SNR": ("HeunDiscreteScheduler", {"rescale_betas_zero_snr": True} | V, "linear"),
}  # fmt: skip


def as_diffusers_limit(name, sampler, steps):
    """A few steps begin with one from sigma = 157, or 4096 at zero SNR, and take as many roundings of 6e-8 along."""
    if name == "euler, zero SNR":
        return 5e-4
    return DOCUMENTED[sampler][1] if 6 <= steps <= 50 else limits(name)[1]  # many steps add theirs up


def check_as_diffusers(name, spacing, steps, folder, monkeypatch):
    """Of a sampler that is as_diffusers, x_t after every step, and how much noise it has drawn by then."""
    scheduler = scheduler_of(name, spacing)
    scheduler.save_pretrained(folder)
    eta = 1.0 if "eta 1" in name else 0.0
    sampler = replace(load_sampler(folder), as_diffusers=True, eta=eta)
    noise, same_noise = Noise(), Noise()
    theirs = their_trajectory(scheduler, steps, monkeypatch, noise, **({"eta": eta} if eta else {}))
    own = our_trajectory(load_schedule(folder, sampler), sampler, steps, same_noise)
    assert max(distances(own, theirs)) <= as_diffusers_limit(name, sampler.name, steps), steps
    assert noise.count == same_noise.count  # or the next images of the seed would differ


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SETTINGS | ALSO_AS_DIFFUSERS)
def test_every_setting_as_diffusers(name, spacing, tmp_path, monkeypatch):
    for steps in (1, 2, 3, 6, 7, 13, 30, 50):
        if (name, spacing, steps) == ("heun, clipping, karras", "linspace", 2):
            continue  # one step from sigma = 157 to 0.01, by which Heun divides what float32 has rounded: off by 0.03
        check_as_diffusers(name, spacing, steps, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["ddpm", "ddim, no clean end, offset", "pndm of Stable Diffusion", "dpm++ 2m"])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 600), ("linspace", 600), ("trailing", 999)])
def test_long_trajectories_as_diffusers(name, spacing, steps, tmp_path, monkeypatch):
    """In 600 steps T // steps is 1, and the offset 1 reaches it: the last step leads to t = 0."""
    check_as_diffusers(name, spacing, steps, tmp_path, monkeypatch)


def test_at_some_steps_diffusers_rounds_to_a_timestep_too_many():
    """61 x (1000 / 61) is 1000 + 1e-13: its list ends with -1, the noisiest level. The only such list below 100."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    lengths = []
    for steps in range(1, 100):
        scheduler.set_timesteps(steps)
        lengths.append(len(scheduler.timesteps) - steps)
    assert lengths == [int(steps == 61) for steps in range(1, 100)]
    assert noise_levels.timesteps(T, 61).tolist() == pytest.approx(999 - np.arange(61) * T / 61, abs=0.5)


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 4), ("linspace", 50), ("trailing", 7), ("trailing", 30)])
@pytest.mark.parametrize("name", [name for name in SETTINGS if name.startswith("ddim")])
def test_ddim_goes_to_the_next_timestep_unless_as_diffusers(name, spacing, steps, monkeypatch):
    *_, own, theirs = both(name, spacing, steps, monkeypatch)
    assert distances(own, theirs)[-1] > 1e-3


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 3), ("linspace", 50), ("trailing", 30)])
@pytest.mark.parametrize("name", [name for name in SETTINGS if name.startswith("pndm")])
def test_pndm_steps_over_its_own_list(name, spacing, steps, monkeypatch):
    """There too diffusers leaves the list of timesteps. Kept on it, its Adams-Bashforth steps are ours."""
    *_, own, theirs = both(name, spacing, steps, monkeypatch)
    assert distances(own, theirs)[-1] > 1e-3
    as_it_is = diffusers.PNDMScheduler._get_prev_sample

    def on_the_list(self, sample, timestep, prev_timestep, model_output):
        ts = [*self.timesteps.tolist()[:1], *self.timesteps.tolist()[2:], -1]  # the second is there twice
        k = max(self.counter - 1, 0)
        return as_it_is(self, sample, ts[k], ts[k + 1], model_output)

    monkeypatch.setattr(diffusers.PNDMScheduler, "_get_prev_sample", on_the_list)
    *_, own, theirs = both(name, spacing, steps, monkeypatch)
    assert max(distances(own, theirs)) <= limits(name)[1]


@pytest.mark.parametrize(("spacing", "offset"), [("trailing", 0), ("leading", 1)])
def test_the_last_step_is_without_noise(spacing, offset, monkeypatch):
    """Where the last t is not 0, diffusers adds noise to the sample: with fixed_large sqrt(beta) z."""
    name, noise = "ddpm, fixed_large, no clipping", []
    monkeypatch.setattr(sys.modules[__name__], "Noise", lambda: noise.append(kept()) or noise[-1])
    scheduler = scheduler_of(name, spacing, steps_offset=offset)
    theirs = their_trajectory(scheduler, 50, monkeypatch)
    config = dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
    own = our_trajectory(schedule_from_config(config), sampler_from_config(config), 50)
    assert distances(own, theirs)[-1] > 1e-4
    beta = 1 - scheduler.alphas_cumprod[int(scheduler.timesteps[-1])]
    theirs[-1] = theirs[-1] - np.sqrt(beta.numpy()) * noise[0].last
    assert max(distances(own, theirs)) <= 5e-4


kept = Noise


COSINE = {
    "ddpm, v": ("DDPMScheduler", {}),
    "ddim, v": ("DDIMScheduler", {}),
    "pndm, v": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "euler, v": ("EulerDiscreteScheduler", {}),
    "euler ancestral, v": ("EulerAncestralDiscreteScheduler", {}),
    "heun, v": ("HeunDiscreteScheduler", {}),
    "dpm++ 2m, v": ("DPMSolverMultistepScheduler", {}),
}


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("steps", [5, 50])
@pytest.mark.parametrize("name", COSINE)
def test_on_the_cosine_schedule_we_are_closer_to_float64(name, steps, spacing, monkeypatch):
    """It begins at sigma = 20,000, where diffusers' Euler and Heun keep x0 + sigma eps in float32, and lose x0.

    So both trajectories are compared with ours in float64. Ours is nearer to it than 1e-4, and as near as diffusers'.
    """
    class_name, settings = COSINE[name]
    scheduler = getattr(diffusers, class_name).from_config(
        settings | V | {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": spacing}
    )
    config = dict(scheduler.config) | {"_class_name": class_name}
    schedule, sampler = schedule_from_config(config), sampler_from_config(config)
    theirs, own = their_trajectory(scheduler, steps, monkeypatch), our_trajectory(schedule, sampler, steps)
    rng = Noise()
    start = np.float32(noise_levels.noise_levels(schedule, steps, sampler).start) * rng.standard_normal()
    exact = reverse.sample(toy_model, schedule, SHAPE, rng, steps, sampler, x_T=start.astype(np.float64))
    reference = [x_t for _, x_t, _ in exact]
    assert max(distances(own, reference)) <= min(1e-4, 1.5 * max(distances(theirs, reference)) + 2e-6)


def test_the_settings_cover_every_sampler():
    assert {sampler_of(name) for name in SETTINGS} == set(SAMPLERS) - {"euler_maruyama"}  # which diffusers has not


def sampler_of(name):
    scheduler = scheduler_of(name, "leading")
    return sampler_from_config(dict(scheduler.config) | {"_class_name": type(scheduler).__name__}).name
