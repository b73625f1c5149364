"""The classifiers: shapes, gradients against torch's or numerical ones, and training."""

import numpy as np
import pytest
import torch
import torch.nn.functional as T
from against_torch import CONV_FLOOR, draw, nchw, rms_error, torch_layout
from small_runs import bars

from minidiff.data.batches import batch
from minidiff.data.imaging import to_float
from minidiff.engine.losses import cross_entropy
from minidiff.engine.optim import AdamW
from minidiff.engine.tensor import Tensor
from minidiff.errors import MinidiffError
from minidiff.models.classifier import EPS, GROUPS, WIDTHS, Classifier, NoisyClassifier
from minidiff.models.config import ClassifierConfig

LABELS = np.array([2, 0, 1])


def classifier(backend="numpy", channels=3, classes=4, widths=WIDTHS):
    return Classifier(channels, classes, np.random.default_rng(0), backend, widths)


@pytest.mark.parametrize("height, width, channels", [(28, 28, 1), (32, 32, 3), (5, 9, 3), (1, 1, 1)])
def test_images_of_any_size(height, width, channels):
    net, x = classifier(channels=channels), draw(2, height, width, channels)
    assert [a.shape for a in net.features_and_logits(x)] == [(2, 96), (2, 4)]
    np.testing.assert_array_equal(net(x).numpy(), net.features_and_logits(x)[1].numpy())


def test_number_of_parameters():
    assert sum(p.data.size for p in classifier(classes=10).parameters()) < 300_000


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="conv2d: the input has 1 channels"):
        classifier()(draw(2, 8, 8, 1))


def in_torch(weights, x, dtype):
    """The same network in torch: features, logits, and the gradient of all parameters."""
    p = torch_layout({name: torch.tensor(a, dtype=dtype) for name, a in weights.items()})
    p = {name: a.detach().requires_grad_() for name, a in p.items()}

    def conv(h, name, stride=1):
        return T.conv2d(h, p[f"{name}.weight"], p[f"{name}.bias"], stride, padding=1)

    def norm(h, name):
        return T.silu(T.group_norm(h, GROUPS, p[f"{name}.weight"], p[f"{name}.bias"], EPS))

    h = conv(nchw(torch.tensor(x, dtype=dtype)), "conv_in")
    means = []
    for i in range(3):
        h = conv(norm(h, f"downsamplers.{i}.norm"), f"downsamplers.{i}.conv", stride=2)
        if i < 2:
            inner = conv(norm(h, f"blocks.{i}.norm1"), f"blocks.{i}.conv1")
            h = h + conv(norm(inner, f"blocks.{i}.norm2"), f"blocks.{i}.conv2")
            means.append(h.mean((2, 3)))
    logits = T.linear(norm(h, "norm_out").mean((2, 3)), p["out.weight"], p["out.bias"])
    T.cross_entropy(logits, torch.tensor(LABELS)).backward()
    return torch.cat(means, 1).detach().numpy(), logits.detach().numpy(), flat({name: a.grad for name, a in p.items()})


def flat(gradients):
    return np.concatenate([gradients[name].numpy().ravel() for name in sorted(gradients)])


@pytest.mark.parametrize("widths", [WIDTHS, (8, 24, 16, 40)])
def test_the_classifier_equals_torch_s(backend, widths):
    """Error against float64 at most twice that of torch's float32, or the floor for convolutions."""
    net, x = classifier(backend.name, widths=widths), draw(3, 12, 12, 3)
    cross_entropy(net(x), LABELS).backward()
    gradients = torch_layout({name: torch.tensor(backend.to_numpy(p.grad)) for name, p in net.named_parameters()})
    ours = *(a.numpy() for a in net.features_and_logits(x)), flat(gradients)
    truth, float32 = (in_torch(net.state_dict(), x, dtype) for dtype in (torch.float64, torch.float32))
    for got, want, theirs in zip(ours, truth, float32, strict=True):
        assert rms_error(got, want) <= max(2 * rms_error(theirs, want), CONV_FLOOR)


def test_it_learns_two_classes():
    """Horizontal and vertical bars: over 95 % accuracy on held-out images after 25 steps."""
    net, train, test = classifier(channels=1, classes=2), bars(32 * 25), bars(200, seed=1)
    optimizer = AdamW(net.parameters(), 3e-3)
    for step in range(1, 26):
        x, labels = batch(train, step, 32, seed=0, flip=False)
        optimizer.zero_grad()
        cross_entropy(net(x), labels).backward()
        optimizer.step()
    logits = net(to_float(test.take(np.arange(200)))).numpy()
    assert (logits.argmax(1) == test.labels).mean() > 0.95


def noisy_classifier(channels=3):
    return NoisyClassifier(ClassifierConfig(channels, 8, ("a", "b", "c")), np.random.default_rng(0), "numpy")


@pytest.mark.parametrize("height, width, channels", [(28, 28, 1), (5, 9, 3), (1, 1, 1)])
def test_noisy_images_of_any_size(height, width, channels):
    net, x = noisy_classifier(channels), draw(2, height, width, channels)
    assert net(x, np.array([0.0, 1.0])).shape == (2, 3)


def test_the_logits_depend_on_the_noise_level():
    net, x = noisy_classifier(), draw(1, 8, 8, 3).repeat(3, 0)
    low, middle, high = net(x, np.array([0.999, 0.5, 0.001])).numpy()
    assert min(np.abs(low - middle).max(), np.abs(middle - high).max()) > 1e-3


def test_the_gradient_by_the_noisy_image():
    """Along itself its slope is its squared length, to 1 % in central differences of float32 logits."""
    net, alpha_bar, label = noisy_classifier(), np.array([0.5]), np.array([1])
    x = Tensor(draw(1, 8, 8, 3), net.backend, requires_grad=True)
    cross_entropy(net(x, alpha_bar), label).backward()
    step = 0.05 / np.linalg.norm(x.grad)
    after, before = (float(cross_entropy(net(x.data + h * x.grad, alpha_bar), label).numpy()) for h in (step, -step))
    np.testing.assert_allclose((after - before) / (2 * step), np.square(x.grad).sum(), rtol=0.01)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"classes": ["a"]}, "classes = .* is not supported: give a list of at least two names"),
        ({"classes": [1, 2]}, "classes = "), ({"sample_size": None}, "sample_size = None"),
        ({"layers": 2}, "layers = 2 is not supported: the key is not known"),
    ],
)  # fmt: skip
def test_configurations_of_a_classifier_that_are_refused(changes, match):
    with pytest.raises(MinidiffError, match=match):
        ClassifierConfig.of(noisy_classifier().config.to_dict() | changes)
