"""The whole in one file: it imports nothing of the package, and its gradients, losses and samples are the package's."""

import ast
import inspect
import sys
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

import minidiff as md
from minidiff import nano

WIDTHS = (8, 16)
LR = 2e-3


def test_it_imports_numpy_pillow_and_the_standard_library_alone():
    imported = set()
    for node in ast.walk(ast.parse(Path(nano.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module)
    assert {name.partition(".")[0] for name in imported} <= {"numpy", "PIL"} | sys.stdlib_module_names


# Gradients, in float64: the rounding of a central difference is about 1e-16 |y| / h, its truncation h^2, far below the
# tolerance of 1e-7 for h = 1e-5 and values about 1.


def checked(op, *shapes):
    """Compare the gradient of sum(dy * op(...)) by every entry of every input with a central difference."""
    rng = np.random.default_rng(0)
    inputs = [nano.Tensor(rng.standard_normal(shape), needs_grad=True) for shape in shapes]
    dy = rng.standard_normal(np.shape(op(*inputs).data))

    def loss():
        nano.TAPE.clear()
        y = op(*inputs)
        return nano.Tensor(np.sum(y.data * dy), (y,), lambda one: (one * dy,))

    loss().backward()
    gradients = [x.grad for x in inputs]
    for x, gradient in zip(inputs, gradients, strict=True):
        difference = np.empty_like(x.data)
        for i in np.ndindex(x.data.shape):
            value = x.data[i]
            above, below = (loss_with(x, i, value + h, loss) for h in (1e-5, -1e-5))
            x.data[i] = value
            difference[i] = (above - below) / 2e-5
        assert_allclose(gradient, difference, rtol=1e-7, atol=1e-7)


def loss_with(x, i, value, loss):
    x.data[i] = value
    return loss().data


CASES = {
    "add": (nano.add, (2, 3), (2, 3)),
    "add, a vector to all pixels": (nano.add, (2, 3, 3, 4), (2, 4)),
    "concat": (nano.concat, (2, 2, 2, 3), (2, 2, 2, 1)),
    "upsample": (nano.upsample, (2, 2, 3, 2)),
    "every_second": (nano.every_second, (2, 4, 2, 3)),
    "embedding": (lambda table: nano.embedding(table, np.array([2, 0, 2])), (3, 2)),
    "silu": (nano.silu, (2, 5)),
    "linear": (nano.linear, (2, 3, 4), (5, 4), (5,)),
    "conv2d": (nano.conv2d, (2, 4, 3, 2), (3, 3, 3, 2), (3,)),
    "conv2d, 1x1": (nano.conv2d, (2, 3, 3, 2), (3, 1, 1, 2), (3,)),
    "group_norm": (lambda *inputs: nano.group_norm(*inputs, groups=2), (2, 3, 2, 4), (4,), (4,)),
    "attention": (nano.attention, (2, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4)),
    "mse": (lambda x: nano.mse(x, np.ones((2, 3))), (2, 3)),
    "add, of one tensor": (lambda x: nano.add(x, nano.silu(x)), (2, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_finite_differences(case):
    checked(*CASES[case])


def test_every_operation_has_a_case():
    operations = {
        name for name, f in inspect.getmembers(nano, inspect.isfunction) if "return Tensor(" in inspect.getsource(f)
    }
    assert operations == {case.partition(",")[0] for case in CASES}


def test_a_wrong_gradient_is_found():
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        checked(lambda x: nano.Tensor(x.data**2, (x,), lambda dy: (2.0001 * dy * x.data,)), (2, 3))


# The package's network, loss, optimiser and sampler on the same weights and noise.


@pytest.fixture
def unet():
    return nano.UNet(WIDTHS, np.random.default_rng(0))


def twin(unet):
    """The package's network with the weights of nano's, in their precision."""
    config = md.UNetConfig(
        sample_size=nano.SIZE, block_out_channels=unet.widths, layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, attention_head_dim=None,
        num_class_embeds=3,
    )  # fmt: skip
    other = md.UNet(config, rng=None, backend="numpy")
    state = {name: p.data for name, p in unet.params.items()}
    other.check_shapes({name: data.shape for name, data in state.items()})
    for name, p in other.named_parameters():
        p.data = state[name].copy()
    return other


def schedule():
    return md.cosine_schedule(nano.T, prediction_type="sample")


def batches(steps=20, n=4):
    """(x0, t, eps, labels) for every step, some labels null."""
    rng = np.random.default_rng(1)
    for _ in range(steps):
        x0, labels = nano.batch(rng, n)
        labels[rng.random(n) < 0.2] = nano.NULL
        yield x0, rng.integers(0, nano.T, n), rng.standard_normal(x0.shape, np.float32), labels


def averaged(unet):
    return nano.UNet(unet.widths, unet.rng, {name: nano.Tensor(p.data.copy()) for name, p in unet.params.items()})


def losses(unet):
    """nano's: the loss of each of 20 training steps, then that of the averaged weights on one more batch."""
    average = averaged(unet)
    optimizer = nano.AdamW([*unet.params.values()], [*average.params.values()])
    *training, last = batches(21)
    found = []
    for batch in training:
        loss = nano.training_loss(unet, *batch)
        loss.backward()
        optimizer.step(LR)
        found.append(float(loss.data))
    return [*found, float(nano.training_loss(average, *last).data)]


@pytest.fixture(scope="module")
def expected():
    """The package's."""
    unet = twin(nano.UNet(WIDTHS, np.random.default_rng(0)))
    optimizer = md.AdamW(unet.parameters(), lr=LR, clip=1.0, ema=0.99)
    *training, last = batches(21)
    found = []
    for batch in training:
        optimizer.zero_grad()
        loss = md.training_loss(unet, schedule(), *batch)
        loss.backward()
        optimizer.step()
        found.append(float(loss.numpy()))
    with optimizer.averaged():
        return [*found, float(md.training_loss(unet, schedule(), *last).numpy())]


def test_twenty_losses_equal_the_packages(unet, expected):
    found = losses(unet)
    assert_allclose(found, expected, rtol=1e-5)
    assert len(set(found)) == 21


@pytest.mark.parametrize("name", ["conv_in.weight", "mid_block.attentions.0.to_k.weight", "class_embedding.weight"])
def test_one_changed_weight_changes_the_losses(unet, expected, name):
    unet.params[name].data.flat[0] += 0.01
    assert not np.allclose(losses(unet), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("changed", [{"decay": 0.0}, {"b2": 0.99}, {"eps": 1e-6}, {"ema": 0.5}])
def test_another_optimiser_changes_the_losses(unet, expected, changed, monkeypatch):
    monkeypatch.setattr(nano.AdamW, "step", partialmethod(nano.AdamW.step, **changed))
    assert not np.allclose(losses(unet), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("steps", [7, 10])
def test_guided_samples_equal_the_packages(unet, steps):
    """In float64, except the timestep's embedding, whose rounding of 6e-8 grows with every step and with guidance."""
    for p in unet.params.values():
        p.data = p.data.astype(np.float64)
    x_T, labels = np.random.default_rng(2).standard_normal((4, 16, 16, 3)), np.array([0, 1, 1, 0])
    model = md.guided(twin(unet), null=nano.NULL, scale=3.0)
    expected = md.sample(model, schedule(), x_T.shape, np.random.default_rng(3), steps=steps, cond=labels, x_T=x_T)
    found = nano.sample(averaged(unet), x_T, labels, steps=steps, scale=3.0)
    states = [(x_t, expected_x_t) for x_t, (_, expected_x_t, _) in zip(found, expected, strict=True)]
    assert len(states) == steps
    for x_t, expected_x_t in states:
        assert x_t.dtype == np.float64
        assert_allclose(x_t, expected_x_t, rtol=0, atol=1e-6)


# The program.


def test_batches_are_images_of_cats_and_dogs():
    images, labels = nano.batch(np.random.default_rng(0), 64)
    assert images.shape == (64, 16, 16, 3) and images.dtype == np.float32
    assert images.min() >= -1 and images.max() <= 1
    assert labels.tolist() == [nano.CAT] * 32 + [nano.DOG] * 32
    assert len(np.unique(images, axis=0)) == 64


SAMPLE = nano.sample


def run(monkeypatch, path, *options):
    monkeypatch.setattr(nano, "WIDTHS", (8, 8))
    monkeypatch.setattr(nano, "sample", partial(SAMPLE, steps=1))
    monkeypatch.setattr(sys, "argv", ["nano", "--out", str(path), *options])
    nano.main()
    with Image.open(path) as sheet:
        return np.asarray(sheet)


def test_the_program_writes_a_sheet_of_64_images(tmp_path, monkeypatch, capsys):
    first, again, other = (
        run(monkeypatch, tmp_path / "sheet.png", "--steps", "2", "--seed", seed) for seed in ("0", "0", "1")
    )
    assert first.shape[0] == first.shape[1] and first.shape[0] % 8 == 0
    assert (first == again).all() and (first != other).any()
    assert "step 2/2" in capsys.readouterr().out


def test_ctrl_c_ends_training_and_the_sheet_is_written(tmp_path, monkeypatch, capsys):
    def interrupted(optimizer, lr, step=nano.AdamW.step):
        step(optimizer, lr)
        if optimizer.k == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(nano.AdamW, "step", interrupted)
    run(monkeypatch, tmp_path / "sheet.png", "--steps", "100")
    assert "stopped" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nano", "--out", str(tmp_path / "missing" / "x.png")])
    with pytest.raises(SystemExit) as stopped:
        nano.main()
    assert stopped.value.code == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without space")
def test_a_full_disk_is_one_message(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nano", "--out", "/dev/full", "--steps", "0"])
    with pytest.raises(SystemExit) as stopped:
        nano.main()
    assert stopped.value.code == 2
    assert "argument --out: [Errno 28] No space left on device" in capsys.readouterr().err


def test_a_negative_seed_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nano", "--out", str(tmp_path / "x.png"), "--seed", "-1"])
    with pytest.raises(SystemExit) as caught:
        nano.main()
    assert caught.value.code == 2
    assert not (tmp_path / "x.png").exists()
    assert "argument --out or --seed: expected non-negative integer" in capsys.readouterr().err
