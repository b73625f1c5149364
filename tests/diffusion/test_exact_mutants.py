"""Mutants: one deliberate mistake each, in a sampler, editing, a prediction target, a guidance rule or a likelihood.

Its check fails. The table names the function, the source text that is replaced, its replacement, and the check of
exact_checks.py.
"""

import inspect
import sys

import exact_checks as checks
import numpy as np
import pytest

from minidiff.diffusion import bound, editing, forward, guidance, likelihood, loss, noise_levels, reverse, sde, steps
from minidiff.diffusion.continuous import EDM, Flow
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.solvers import dpm_solver, edm, unipc
from minidiff.engine import gaussian

pytestmark = pytest.mark.slow  # all together

# the calls that several mutants fail
FORWARD_SDE = (checks.check_forward_sde, checks.even_schedule(200), range(115))
FORWARD_EDM = (checks.check_forward_sde, EDM(), np.geomspace(0.05, 1, 201))
FORWARD_FLOW = (checks.check_forward_sde, Flow(), np.linspace(0.05, 0.5, 201))
EULER_MARUYAMA_EDM = (checks.check_euler_maruyama, checks.euler_maruyama_edm_run)
LIKELIHOOD = (checks.check_likelihood, EDM())
ROUND_TRIP = (checks.check_round_trip, "v_prediction")
REPAINT = (checks.check_repaint,)
DDPM, FIXED_LARGE = Sampler("ddpm", clip=None), Sampler("ddpm", clip=None, variance="fixed_large")
SUM, SWAPPED = (f"fraction * {a} + (1 - fraction) * {b}" for a, b in (("largest", "smallest"), ("smallest", "largest")))
ANCESTRAL = Sampler("euler_ancestral", clip=None)
SDE_2M = (checks.check_ancestral, Sampler("dpmpp_2m_sde", clip=None), 2)
SDE_SINGLE = (checks.check_ancestral, Sampler("dpmpp_sde", clip=None), 2)
UNIPC = (checks.check_order, "unipc")
EULER_MARUYAMA = (checks.check_euler_maruyama, checks.sampler_run(Sampler("euler_maruyama", clip=None)))
CHURN = (checks.check_churn, "heun")

MUTANTS = [
    # samplers
    (reverse.ddim, "(x0_hat, eps_hat, alpha_bar,", "(x0_hat, x_t, alpha_bar,", (checks.check_order, "ddim")),
    (reverse.ddim, "eta = sampler.eta", "eta = 0.0", (checks.check_eta,)),
    (steps.ddim_update, "eps_coef * eps_hat", "eps_coef**2 * eps_hat", (checks.check_order, "euler")),
    (steps.ddim_update, "math.sqrt(alpha_bar_prev) * x0_hat", "alpha_bar_prev * x0_hat", (checks.check_order, "ddim")),
    (steps.ddim_update, "1 - alpha_bar_prev - sigma**2", "1 - alpha_bar_prev", (checks.check_ancestral, ANCESTRAL)),
    (steps.ddim_update, "+ sigma * z", "+ sigma**2 * z", (checks.check_eta,)),
    (reverse.euler_ancestral, "eta=1.0", "eta=0.7", (checks.check_ancestral, ANCESTRAL)),
    (edm.heun, "mean = (d + d_prev) / 2", "mean = (d - d_prev) / 2", (checks.check_order, "heun")),
    (edm.heun, "x_prev, step.i - 1)", "x_prev, step.i)", (checks.check_order, "heun", "sample")),
    (edm.heun_over_t, "(v + predict(x_prev, step.t_prev)) / 2", "v", (checks.check_order, "heun", "flow")),
    (edm.heun, "estimate(predict(x_t, t), x_t", "estimate(predict(x_t, step.t), x_t", CHURN),
    (edm.euler, "here.i, here.schedule", "step.i, levels.schedule", (checks.check_churn, "euler")),
    (edm.churned, "math.sqrt(1 - ratio)", "(1 - ratio)", CHURN),
    (edm.churned, "math.sqrt(ratio) * x_t", "x_t", CHURN),
    (edm.churned, "sampler.churn_noise *", "1.05 *", CHURN),
    (noise_levels._raised_by_churn, "(lowest <= sigma) & ", "", (checks.check_churn, "heun", (0.2, 4.0))),
    (noise_levels.time_of, "np.log(sigma), np.log", "sigma, np.log", CHURN),
    (reverse.dpmpp_2m, "h / h_last / 2", "h / h_last", (checks.check_order, "dpmpp_2m")),
    (reverse.dpmpp_2m, "x0_hat - x0_last", "x0_last - x0_hat", (checks.check_order, "dpmpp_2m")),
    (reverse.dpmpp_2m, "eta = 1.0 if", "eta = 0.8 if", SDE_2M),
    (reverse.dpmpp_2m, "(h / h_last / 2) * (x0_hat - x0_last)", "0", SDE_2M),
    (dpm_solver.dpmpp_sde, "middle.alpha_bar, 1.0, first", "middle.alpha_bar, 0.0, first", SDE_SINGLE),
    (dpm_solver.dpmpp_sde, "math.sqrt(sigma * sigma_prev)", "sigma_prev", SDE_SINGLE),
    (dpm_solver.dpmpp_sde, "step_noise(first, second, sigma, sigma_prev)", "second", SDE_SINGLE),
    (dpm_solver.step_noise, "sigma_prev / total", "sigma_prev / sigma", SDE_SINGLE),
    (unipc.unipc, "x0_hat - points[0].x0_hat", "points[0].x0_hat - x0_hat", UNIPC),
    (unipc.unipc, "last.x_t, i + 1)", "last.x_t, i)", UNIPC),
    (unipc.unipc, "here = here._replace", "_ = here._replace", UNIPC),
    (unipc.mean_of_parabola, "- 2 * b1 / h", "- b1 / h", UNIPC),
    (unipc.mean_of_parabola, "weight_before / u *", "weight_before *", UNIPC),
    (reverse.euler_maruyama, "-math.log(alpha_bar),", "-math.log(alpha_bar) / 2,", EULER_MARUYAMA),
    (reverse.euler_maruyama, "math.sqrt(1 - alpha_bar)", "(1 - alpha_bar)", EULER_MARUYAMA),
    (reverse.pndm, "[predict(x_t, t), *history[:3]]", "[*history[-3:], predict(x_t, t)]", (checks.check_pndm,)),
    (steps.p_sample, "variance) ** 0.5 * z", "variance) * z", (checks.check_ancestral, DDPM)),
    (steps.reverse_variance, "schedule.betas if", "schedule.alphas if", (checks.check_ancestral, FIXED_LARGE)),
    (forward.q_posterior, "np.sqrt(alpha_bar_prev) * betas", "alpha_bar_prev * betas", (checks.check_ancestral, DDPM)),
    (forward.q_posterior, "(1 - alpha_bar_prev)", "(1 - schedule.alphas_cumprod)", (checks.check_ancestral, DDPM)),
    # inversion and inpainting
    (editing._inverse_steps, "+ math.sin(d) * v", "- math.sin(d) * v", ROUND_TRIP),
    (editing._inverse_steps, "/ math.cos(d)", "* math.cos(d)", ROUND_TRIP),
    (editing._inverse_steps, "(x_prev + math", "(x_t + math", ROUND_TRIP),
    (editing._inverse_steps, "range(fixed_point + 1)", "range(1)", ROUND_TRIP),
    (editing._inverse_steps, "np.full(len(x_t), t)", "np.full(len(x_t), 0)", ROUND_TRIP),
    (editing._inverse_steps, "x0_hat, eps_hat, i)", "x0_hat, eps_hat, 0)", (checks.check_inversion_order, 5)),
    (editing._angle, "math.sqrt(1 - alpha_bar)", "(1 - alpha_bar)", (checks.check_inversion_order, 5)),
    (editing.repaint, "i - 1, fresh", "i, fresh", (checks.check_repaint_known,)),
    (editing.repaint, "math.sqrt(1 - beta) * x_prev", "(1 - beta) * x_prev", REPAINT),
    (editing.repaint, "math.sqrt(beta) * fresh", "beta * fresh", REPAINT),
    (editing.repaint, "(mask, unknown, known)", "(~mask, unknown, known)", REPAINT),
    (editing.repaint, "resample - 1 if", "0 if", REPAINT),
    # SDE and ODE
    (sde.euler_maruyama, "math.sqrt(abs(dt))", "abs(dt)", EULER_MARUYAMA_EDM),
    (sde.euler_maruyama, "sde.f(x, t) * dt", "sde.f(x, t) * abs(dt)", (checks.check_euler_maruyama,)),
    (sde.reverse_sde, "- sde.g(t) ** 2", "- sde.g(t)", (checks.check_euler_maruyama,)),
    (sde.reverse_sde, "- sde.g(t) ** 2", "+ sde.g(t) ** 2", (checks.check_euler_maruyama,)),
    (sde.probability_flow, "0.5 * ", "", (checks.check_probability_flow,)),
    (sde.score_of, "math.sqrt(1 - float(alpha_bar(t)))", "(1 - float(alpha_bar(t)))", (checks.check_euler_maruyama,)),
    (sde.vp_sde, "-0.5 * beta(t)", "0.5 * beta(t)", FORWARD_SDE),
    (sde.vp_sde, "math.sqrt(beta(t))", "beta(t)", FORWARD_SDE),
    (sde.vp_sde, "2 * (1 -", "(1 -", FORWARD_EDM),
    (sde.ve_sde, "math.sqrt(2 * sigma2", "math.sqrt(sigma2", EULER_MARUYAMA_EDM),
    (sde.log_sigma_slope, "high - low)", "high - low) / 2", FORWARD_SDE),
    (sde.log_sigma_slope, "1 / (t * (1 - t))", "1 / t", FORWARD_FLOW),
    # prediction targets and the loss
    (forward.target, "return eps - x0", "return x0 - eps", (checks.check_target, "flow")),
    (forward.target, "x0 - c_skip * x", "x0 + c_skip * x", (checks.check_target, "edm")),
    (forward.target, "/ c_out)", "* c_out)", (checks.check_minimiser, "edm")),
    (forward.target, "return eps\n", "return x0\n", (checks.check_minimiser, "epsilon")),
    (forward.target, "return x0\n", "return -x0\n", (checks.check_minimiser, "sample")),
    (forward.v_from_x0_eps, "- noise * x0", "+ noise * x0", (checks.check_target, "v_prediction")),
    (forward.x0_from_v, "- noise * v", "+ noise * v", (checks.check_target, "v_prediction")),
    (forward.eps_from_v, "noise * x_t", "signal * x_t", (checks.check_target, "v_prediction")),
    (forward.x0_from_eps, "/ signal", "/ signal**2", (checks.check_target, "epsilon")),
    (forward.eps_from_x0, "/ noise", "", (checks.check_target, "sample")),
    (forward.x0_and_eps, "x_t + signal * prediction", "x_t - signal * prediction", (checks.check_target, "flow")),
    (forward.x0_and_eps, "c_skip * x + c_out", "c_skip * x - c_out", (checks.check_target, "edm")),
    (forward.q_sample, "noise * eps", "noise**2 * eps", (checks.check_minimiser, "epsilon")),
    (forward.signal_and_noise, "np.sqrt(1 - alpha_bar)", "1 - alpha_bar", (checks.check_minimiser, "v_prediction")),
    (loss.training_loss, "x0, t, eps), weight", "x0, t, -eps), weight", (checks.check_minimiser, "epsilon")),
    (loss.min_snr_weight, "x0_weight / snr(schedule, t)", "x0_weight", (checks.check_min_snr, "epsilon")),
    (loss.min_snr_weight, "* (1 - alpha_bar)\n", "* alpha_bar\n", (checks.check_min_snr, "v_prediction")),
    (loss.min_snr_weight, "np.minimum", "np.maximum", (checks.check_min_snr, "sample")),
    # guidance
    (guidance.guided, "p_null + float(scale)", "p_cond + float(scale)", (checks.check_guidance,)),
    (guidance.guided, "float(scale) * (p_cond", "float(scale - 1) * (p_cond", (checks.check_guidance,)),
    (guidance._guided_model, "lowest <= t[0]", "lowest < t[0]", (checks.check_guidance,)),
    (guidance._guided_model, "<= highest", "< highest", (checks.check_autoguidance,)),
    (guidance.autoguided, "p_weak + float(scale)", "p + float(scale)", (checks.check_autoguidance,)),
    (guidance.autoguided, "float(scale) * (p -", "float(scale - 1) * (p -", (checks.check_autoguidance,)),
    (guidance.autoguided, "(p - p_weak), p", "(p_weak - p), p", (checks.check_autoguidance,)),
    (guidance.classifier_guided, "-noise * float", "noise * float", (checks.check_classifier_guidance,)),
    (guidance.classifier_guided, "-noise * float", "-(noise**2) * float", (checks.check_classifier_guidance,)),
    (guidance.classifier_guided, "float(scale) *", "float(scale - 1) *", (checks.check_classifier_guidance,)),
    (guidance.classifier_guided, "-noise / signal", "noise / signal", (checks.check_classifier_guidance, "sample")),
    (guidance.classifier_guided, "-noise / signal", "-noise", (checks.check_classifier_guidance, "v_prediction")),
    (guidance.classifier_gradient, "type(-len(x_t))", "type(len(x_t))", (checks.check_classifier_gradient,)),
    (guidance.classifier_gradient, "type(-len(x_t))", "type(-1)", (checks.check_classifier_gradient,)),
    (guidance._rescaled, "without.std(", "without.var(", (checks.check_rescale,)),
    (guidance._rescaled, "float(1 - rescale)", "1.0", (checks.check_rescale,)),
    # likelihoods
    (likelihood._slope, "- noise2 * x[0].size", "+ noise2 * x[0].size", LIKELIHOOD),
    (likelihood._slope, "noise * divergence", "noise2 * divergence", LIKELIHOOD),
    (likelihood._slope, "- noise2 * x, ", "- noise * x, ", LIKELIHOOD),
    (likelihood._runge_kutta, "d1 + 2 * d2", "d1 + d2", LIKELIHOOD),
    (likelihood.log_likelihood, "log_prior + divergence", "log_prior - divergence", LIKELIHOOD),
    (likelihood.log_likelihood, "D * math.log(2 * math.pi)", "math.log(2 * math.pi)", LIKELIHOOD),
    (likelihood._log_sigma_range, "math.log(high)", "math.log(high) / 2", LIKELIHOOD),
    (likelihood._divergence, "/ (2 * h)", "/ h", LIKELIHOOD),
    (likelihood._random_signs, "math.sqrt(probes)", "probes", (checks.check_hutchinson,)),
    (likelihood.ode_bits_per_dim, "- math.log(BYTE_WIDTH)", "+ math.log(BYTE_WIDTH)", (checks.check_ode_bits,)),
    (likelihood.ode_bits_per_dim, ") / math.log(2)", ")", (checks.check_ode_bits,)),
    (gaussian.gaussian_kl, "ratio - 1 - xp.log(ratio)", "ratio - 1 + xp.log(ratio)", (checks.check_bound,)),
    (gaussian.gaussian_kl, "(mean - mean_hat) ** 2", "(mean - mean_hat)", (checks.check_bound,)),
    (bound._estimate, "len(levels.ts) - 1 - i", "i", (checks.check_bound,)),
    (gaussian.byte_nll, "(-0.5, 0.5)", "(-1.0, 1.0)", (checks.check_bound,)),
    (bound.bits_per_dim, "np.sqrt(variance)", "variance", (checks.check_bound,)),
    (bound.bits_per_dim, "(end - start) * _step_kl", "_step_kl", (checks.check_bound,)),
    # learned variance and importance sampling
    (steps.learned_log_variance, SUM, SWAPPED, (checks.check_learned_variance,)),
    (steps.learned_log_variance, SUM, SWAPPED, (checks.check_learned_loss,)),
    (steps.learned_log_variance, "fraction = (v + 1) / 2", "fraction = v", (checks.check_learned_variance,)),
    (steps.learned_log_variance, "fraction = (v + 1) / 2", "fraction = v", (checks.check_learned_loss,)),
    (steps.reverse_variance, "np.exp(", "(", (checks.check_learned_variance,)),
    (loss._variational_terms, '"fixed_small"', '"fixed_large"', (checks.check_learned_loss,)),
    (loss._variational_terms, "(images, x0_hat)", "(x0_hat, x0_hat)", (checks.check_learned_loss,)),
    (loss.importance_sample, "np.sqrt(np.mean(", "(np.mean(", (checks.check_importance_sampling,)),
    (loss.importance_sample, "1 / (p[t] * T)", "p[t] * T", (checks.check_importance_sampling,)),
    (loss.importance_sample, "np.cumsum(p)", "np.cumsum(p[::-1])", (checks.check_importance_sampling,)),
    (loss.record_losses, "[*history[i, 1:], loss]", "[*history[i, :-1], loss]", (checks.check_importance_sampling,)),
]  # fmt: skip


def mutated(function, old, new):
    """The function with its source text changed in one place."""
    source = inspect.getsource(function)
    assert source.count(old) == 1, f"{function.__name__} has {source.count(old)} of {old!r}: choose another text"
    defined = {}
    exec(source.replace(old, new), function.__globals__, defined)
    return defined[function.__name__]


def replace_everywhere(monkeypatch, function, mutant):
    """Put the mutant wherever a module, or the table of sampling loops, refers to the function."""
    for module in [m for name, m in sys.modules.items() if name.partition(".")[0] in ("minidiff", "exact_checks")]:
        for name, value in list(vars(module).items()):
            if value is function:
                monkeypatch.setattr(module, name, mutant)
    for name, value in reverse.SAMPLING_LOOPS.items():
        if value is function:
            monkeypatch.setitem(reverse.SAMPLING_LOOPS, name, mutant)


@pytest.mark.parametrize(("function", "old", "new", "check"), MUTANTS, ids=lambda x: getattr(x, "__name__", None))
def test_a_mutant_fails(monkeypatch, function, old, new, check):
    replace_everywhere(monkeypatch, function, mutated(function, old, new))
    with pytest.raises(AssertionError), np.errstate(all="ignore"):
        check[0](*check[1:])


def test_an_unchanged_function_passes(monkeypatch):
    """The machinery alone makes no check fail."""
    replace_everywhere(monkeypatch, reverse.ddim, mutated(reverse.ddim, "eta = sampler.eta", "eta = sampler.eta * 1"))
    checks.check_order("ddim")
