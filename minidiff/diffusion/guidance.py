"""Guidance: a model whose prediction is moved further towards its condition, or away from its own errors.

    classifier-free     p_null + w (p_cond - p_null)                            `guided`
    autoguidance        p_weak + w (p - p_weak)                                 `autoguided`
    by a classifier     eps_hat - sqrt(1 - alpha_bar) s grad log p(y | x_t)     `classifier_guided`

Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022 (arXiv 2207.12598); Karras et al., "Guiding a Diffusion Model
with a Bad Version of Itself", 2024 (arXiv 2406.02507); Dhariwal & Nichol, "Diffusion Models Beat GANs on Image
Synthesis", 2021 (arXiv 2105.05233). The first two hold for every prediction type: at fixed x_t all predictions are
affine in one another. Each function here takes two settings more:

    rescale   how far the prediction's standard deviation is moved to that without guidance, 0 to 1 (phi in Lin et al.
              eq. 15, 16)
    interval  guidance is applied at timesteps lowest <= t <= highest (Kynkäänniemi et al. 2024, arXiv 2404.07724)

A guided model's prediction is in host memory. A learned variance is not guided: it is that of the model without
guidance, for `guided` the conditional one.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.diffusion.forward import signal_and_noise, target
from minidiff.diffusion.model import Model, evaluate_all
from minidiff.diffusion.schedule import AnySchedule
from minidiff.diffusion.sde import continuous_time
from minidiff.engine.losses import cross_entropy
from minidiff.engine.tensor import Tensor, enable_grad

ALWAYS = (0, float("inf"))  # the interval of all timesteps
Gradient = Callable[[np.ndarray, np.ndarray, Any], np.ndarray]  # of x_t, t and the labels


def guided(
    model: Model,
    null: int | np.ndarray,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] = ALWAYS,
    negative: int | None = None,
) -> Model:
    """Classifier-free guidance: p_null + scale (p_cond - p_null), by one evaluation on a batch twice as large.

    A model that was trained with its labels replaced by the null class now and then makes both predictions.
    null      the null class; for text, the embeddings of the empty prompt, or of a negative prompt
    scale     guidance scale: 1 is the conditional prediction, 0 the unconditional one (w + 1 in the paper)
    negative  a class in the place of null, from which guidance leads away

    cond is labels (N,) int, or embeddings (N, S, D). Outside the interval the prediction is the conditional one.
    """

    def both(x_t: np.ndarray, t: np.ndarray, cond: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        null_cond = np.full_like(cond, null if negative is None else negative)
        twice, conds = np.concatenate([x_t, x_t]), np.concatenate([cond, null_cond])
        p_cond, p_null = np.split(evaluate_all(model, twice, np.concatenate([t, t]), conds), 2)  # (N, H, W, C) each
        return p_null + float(scale) * (p_cond - p_null), p_cond

    return _guided_model(both, model, scale != 1, rescale, interval)


def autoguided(
    model: Model,
    weak_model: Model,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] = ALWAYS,
) -> Model:
    """Autoguidance: p_weak + scale (p - p_weak), away from what a weaker version of the model predicts.

    weak_model  has the model's prediction type and takes the same cond: a smaller network, or one trained for fewer
                steps, such as an earlier checkpoint of the same run
    scale       guidance scale: 1 is the model's own prediction

    cond is as the model takes it, None for an unconditional one. Outside the interval the prediction is the model's.
    """

    def both(x_t: np.ndarray, t: np.ndarray, cond: Any) -> tuple[np.ndarray, np.ndarray]:
        p, p_weak = evaluate_all(model, x_t, t, cond), evaluate_all(weak_model, x_t, t, cond)
        return p_weak + float(scale) * (p - p_weak), p

    return _guided_model(both, model, scale != 1, rescale, interval)


def classifier_guided(
    model: Model,
    schedule: AnySchedule,
    gradient: Gradient,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] = ALWAYS,
) -> Model:
    """Classifier guidance: eps_hat - sqrt(1 - alpha_bar) scale gradient (Dhariwal & Nichol 2021, eq. 14).

    model     unconditional, of the schedule's prediction type, whatever that is
    gradient  gradient(x_t, t, labels) -> grad log p(y | x_t), (N, H, W, C): `classifier_gradient`
    scale     of the gradient: 1 is the conditional distribution p(x_t) p(y | x_t), 0 the unconditional one

    cond is labels (N,) int of the classifier. Outside the interval the prediction is the unconditional one.
    """
    real_time = continuous_time(schedule)

    def unconditional(x_t: np.ndarray, t: np.ndarray, cond: np.ndarray) -> np.ndarray:
        return evaluate_all(model, x_t, t)

    def both(x_t: np.ndarray, t: np.ndarray, cond: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        signal, noise = signal_and_noise(real_time, t, x_t)
        prediction = evaluate_all(model, x_t, t)
        eps_change = -noise * float(scale) * gradient(x_t, t, cond)
        x0_change = -noise / signal * eps_change  # x_t = signal x0 + noise eps stays
        change = target(real_time, x0_change, t, eps_change)  # linear in x0 and eps
        return prediction[..., : x_t.shape[-1]] + change, prediction

    return _guided_model(both, unconditional, scale != 0, rescale, interval)


def classifier_gradient(classifier: Callable[[Tensor, np.ndarray], Tensor], schedule: AnySchedule) -> Gradient:
    """grad log p(y | x_t) of a classifier of noisy images, by its backward pass.

    classifier(x_t, alpha_bar) -> logits (N, K) takes x_t (N, H, W, C) as a Tensor on `classifier.backend`, and the
    noise level of each image, (N,): `NoisyClassifier`, which any schedule can use.
    The function that is returned raises IndexError for a label that the classifier does not have.
    """
    real_time, backend = continuous_time(schedule), getattr(classifier, "backend")  # noqa: B009  of a callable

    def gradient(x_t: np.ndarray, t: np.ndarray, labels: np.ndarray) -> np.ndarray:
        x = Tensor(x_t, backend, requires_grad=True)
        with enable_grad():
            loss = cross_entropy(classifier(x, real_time.alpha_bar(t)), labels)  # -mean of log p(y | x_t)
        loss.backward(x_t.dtype.type(-len(x_t)))  # of its sum: each image's own gradient
        return backend.to_numpy(x.grad)

    return gradient


def _guided_model(
    both: Callable[..., tuple[np.ndarray, np.ndarray]],
    unguided: Model,
    has_effect: bool,
    rescale: float,
    interval: tuple[float, float],
) -> Model:
    """The guided prediction, the first of both(x_t, t, cond), rescaled to the second; elsewhere the unguided model's.

    A learned variance is the second's: (N, H, W, 2 C) then.
    has_effect: whether the guidance scale has any.
    """
    lowest, highest = interval

    def predict(x_t: np.ndarray, t: np.ndarray, cond: Any = None) -> np.ndarray:
        if not has_effect or not lowest <= t[0] <= highest:
            return evaluate_all(unguided, x_t, t, cond)
        (prediction, _), (without, v) = (np.split(p, [x_t.shape[-1]], -1) for p in both(x_t, t, cond))
        if rescale:
            prediction = _rescaled(prediction, without, rescale)
        return np.concatenate([prediction, v], -1) if v.size else prediction

    return predict


def _rescaled(prediction: np.ndarray, without: np.ndarray, rescale: float) -> np.ndarray:
    """Each image's prediction with its standard deviation moved towards that of the one without guidance."""
    axes = (1, 2, 3)
    ratio = without.std(axes, keepdims=True) / prediction.std(axes, keepdims=True)  # (N, 1, 1, 1)
    return (float(rescale) * ratio + float(1 - rescale)) * prediction
