"""The MLP on points: equal to torch's, forward and backward; its configuration."""

import numpy as np
import pytest
import torch
import torch.nn.functional as T
from small_runs import refused

from minidiff.models.blocks import timestep_embedding
from minidiff.models.mlp import MLP, SCALE, SINUSOIDS, MLPConfig, default_mlp

CONFIG = MLPConfig(in_channels=2, hidden_size=16, num_layers=3, num_class_embeds=3)
X, T_, LABELS = np.random.default_rng(1).standard_normal((5, 1, 1, 2), np.float32), np.arange(5) * 100, np.arange(5) % 3


def mlp(config=CONFIG, backend="numpy"):
    return MLP(config, np.random.default_rng(0), backend)


def in_torch(weights, x):
    """The same network on torch's tensors."""

    def linear(name, h):
        return T.linear(h, weights[f"{name}.weight"], weights[f"{name}.bias"])

    sinusoids = torch.tensor(timestep_embedding(T_, SINUSOIDS, True, 0))
    temb = linear("time_embedding.linear_2", T.silu(linear("time_embedding.linear_1", sinusoids)))
    temb = temb + weights["class_embedding.weight"][torch.tensor(LABELS)]
    h = linear("linear_in", SCALE * x[:, 0, 0])
    for i in range(3):
        h = h + linear(f"layers.{i}", T.silu(h + temb))
    return linear("linear_out", T.silu(h))[:, None, None]


def test_it_equals_torch_s(backend):
    net = mlp(backend=backend.name)
    weights = {name: torch.tensor(a, requires_grad=True) for name, a in net.state_dict().items()}
    want, got = in_torch(weights, torch.tensor(X)), net(X, T_, cond=LABELS)
    np.testing.assert_allclose(got.numpy(), want.detach().numpy(), rtol=1e-5, atol=1e-6)
    dy = np.random.default_rng(2).standard_normal(X.shape, np.float32)
    got.backward(dy)
    want.backward(torch.tensor(dy))
    for name, p in net.named_parameters():
        np.testing.assert_allclose(backend.to_numpy(p.grad), weights[name].grad.numpy(), rtol=1e-4, atol=1e-5)


def test_inputs_that_do_not_fit():
    net, plain = mlp(), mlp(MLPConfig(num_class_embeds=None))
    for call, match in (
        (lambda: net(X[..., :1], T_, LABELS), r"x_t has shape \(5, 1, 1, 1\), the network takes \(N, 1, 1, 2\)"),
        (lambda: net(X[:, 0, 0], T_, LABELS), r"x_t has shape \(5, 2\)"),
        (lambda: net(X, T_[:2], LABELS), r"t has shape \(2,\), x_t holds 5 points: give \(5,\)"),
        (lambda: net(X, T_, LABELS[:2]), r"cond has shape \(2,\)"),
        (lambda: net(X, T_), "give cond, class labels"),
        (lambda: plain(X, T_, LABELS), "and to no other"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_the_configuration_in_a_file():
    assert CONFIG.to_dict()["_class_name"] == "MLP" and MLPConfig.of(CONFIG.to_dict()) == CONFIG
    for change, match in (
        ({"hidden_size": 0}, "MLP configuration: hidden_size = 0 is not supported: give an integer from 1 to 4096"),
        ({"num_layers": 2.0}, "num_layers = 2.0"),
        ({"act_fn": "relu"}, "the key is not known"),
        ({"_class_name": "UNet2DModel"}, "only MLP is read here"),
    ):
        refused(MLPConfig.of, {**CONFIG.to_dict(), **change}, match=match)


def test_the_default():
    assert default_mlp((1, 1, 1)) == MLPConfig(in_channels=1)
    assert default_mlp((1, 1, 2), 8, 2, 3) == MLPConfig(2, 8, 2, 3)
    refused(default_mlp, (1, 1, 2), 5000, match="hidden_size = 5000 is not supported")
