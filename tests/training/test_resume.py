"""A run that was stopped goes on as if it had not been: every loss to the last bit, every step once in the log."""

import os
import signal

import numba
import numpy as np
import pytest
import small_text
from small_runs import contents, go_on, new_run, pictures, read_safetensors, reopen, rows, tree

from minidiff import machine
from minidiff.errors import MinidiffError
from minidiff.formats.networks import save_network
from minidiff.models.vae import VAE
from minidiff.training import loop, start, start_text, state
from minidiff.training.kinds import text_run, unet_run, vae_run
from minidiff.training.log import read_log
from minidiff.training.loop import stoppable

STEPS = 12


class Lost(Exception):
    """The process ended, and with it all that was in memory."""


def lose_at(step):
    def on_step(stats):
        if stats.step == step:
            raise Lost

    return on_step


@pytest.fixture(scope="module", params=["numpy", "numba"])
def uninterrupted(request, tmp_path_factory):
    """The backend's name, and the folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    go_on(new_run(folder, STEPS, request.param))
    assert [int(row.split(",")[0]) for row in rows(folder)] == list(range(1, STEPS + 1))
    return request.param, folder


@pytest.mark.parametrize("stops", [[1], [4], [5], [11], [12], list(range(1, 12))])
def test_stopped_and_resumed(uninterrupted, tmp_path, stops):
    backend, whole = uninterrupted
    run = new_run(tmp_path / "run", STEPS, backend)
    for stop in stops:
        go_on(run, stop_at=stop)
        assert run.step == stop
        run = reopen(tmp_path / "run")
    go_on(run)
    assert contents(tmp_path / "run") == contents(whole)


@pytest.mark.parametrize("losses", [[1], [3], [4], [5], [8], [11], [7, 7, 10, 12]])
def test_lost_and_resumed(uninterrupted, tmp_path, losses):
    """Checkpoints are at 4 and 8: what came after the last one is done again, and stands in the log once."""
    backend, whole = uninterrupted
    new_run(tmp_path / "run", STEPS, backend)
    for lost in losses:
        with pytest.raises(Lost):
            go_on(reopen(tmp_path / "run"), on_step=lose_at(lost))
        assert rows(tmp_path / "run")[:lost] == rows(whole)[:lost]
        assert reopen(tmp_path / "run").step == (lost - 1) // 4 * 4
    go_on(reopen(tmp_path / "run"))
    assert contents(tmp_path / "run") == contents(whole)


@pytest.mark.skipif(machine.cores() < 2, reason="needs two cores")
def test_two_threads(tmp_path):
    numba.set_num_threads(2)
    for name in ("whole", "run"):
        new_run(tmp_path / name, 4, "numba")
    go_on(reopen(tmp_path / "whole"))
    go_on(reopen(tmp_path / "run"), stop_at=2)
    go_on(reopen(tmp_path / "run"))
    numba.set_num_threads(1)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_colours_flips_and_dropout(tmp_path):
    """Every use of randomness there is."""
    changes = dict(in_channels=3, out_channels=3, dropout=0.3, sample_size=(4, 2))
    whole = new_run(tmp_path / "whole", STEPS, **changes)
    go_on(whole)
    go_on(new_run(tmp_path / "run", STEPS, **changes), stop_at=5)
    go_on(reopen(tmp_path / "run"))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.parametrize("stop", [3, 4, 9])
def test_further_averages(uninterrupted, tmp_path, stop):
    """They resume to the last bit; without them weights, average, log and export are the same, bit for bit."""
    backend, plain = uninterrupted
    whole = new_run(tmp_path / "whole", STEPS, backend, emas=(0.5, 1))
    go_on(whole)
    go_on(new_run(tmp_path / "run", STEPS, backend, emas=(0.5, 1)), stop_at=stop)
    go_on(reopen(tmp_path / "run"))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    mine, theirs = (read_safetensors(state.state_file(folder))[0] for folder in (tmp_path / "whole", plain))
    assert mine.keys() - theirs.keys() == {"ema_0.5", "ema_1"}
    assert len({mine[name].tobytes() for name in ("ema", "ema_0.5", "ema_1")}) == 3
    for name, a in theirs.items():
        np.testing.assert_array_equal(mine[name], a)
    assert rows(tmp_path / "whole") == rows(plain)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_muon(tmp_path, backend):
    go_on(new_run(tmp_path / "whole", STEPS, backend, optimizer="muon"))
    go_on(new_run(tmp_path / "run", STEPS, backend, optimizer="muon"), stop_at=5)
    go_on(reopen(tmp_path / "run"))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_torn_line(tmp_path):
    go_on(new_run(tmp_path / "run"), stop_at=4)
    good = rows(tmp_path / "run")
    with open(tmp_path / "run" / "metrics.csv", "a") as file:
        file.write("5,0.123,4.5,0.1\n6,0.4")
    go_on(reopen(tmp_path / "run"), stop_at=5)
    assert rows(tmp_path / "run")[:4] == good
    assert [row.split(",")[0] for row in rows(tmp_path / "run")] == ["1", "2", "3", "4", "5"]


def test_checkpoints_change_nothing(uninterrupted, tmp_path):
    """However often it is saved, a run is the same."""
    backend, whole = uninterrupted
    go_on(new_run(tmp_path / "run", STEPS, backend), checkpoint_every=1)
    assert contents(tmp_path / "run") == contents(whole)


def test_pictures_change_nothing(tmp_path):
    """Sheets are drawn from the averaged weights, in place; the training goes on with its own."""
    go_on(new_run(tmp_path / "whole", 4))
    loop.fit(new_run(tmp_path / "run", 4), pictures(), 2, lambda stats: None, lambda step, loss: None, lambda: False)
    after = contents(tmp_path / "run")
    drawn = {name: after.pop(name) for name in [name for name in after if name.endswith(".png") or name == "samples"]}
    assert after == contents(tmp_path / "whole")
    assert set(drawn) == {"loss.png", "samples", "samples/step-000002.png", "samples/step-000004.png"}


def test_sheets_show_the_same_noise(tmp_path):
    """Two sheets of the same weights are the same, so what changes between sheets is the network."""
    run = new_run(tmp_path)
    first, second = (run.sample_images(3, steps=2) for _ in range(2))
    assert first.shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(first, second)


def test_a_finished_run_has_nothing_left(tmp_path):
    go_on(new_run(tmp_path / "run", 4))
    before = tree(tmp_path / "run")
    go_on(reopen(tmp_path / "run"))
    assert tree(tmp_path / "run") == before


@pytest.mark.parametrize("checkpoint_every", [2, 100])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path, checkpoint_every):
    """The state is that of the last checkpoint, whether the next one or ten bad gradients come first."""
    run = new_run(tmp_path / "run", 40)
    kept = 4 if checkpoint_every == 2 else 0
    said = "step 6: the weights are not finite" if kept else "step 16: .* not finite 10 times in a row"

    def poison(stats):
        if stats.step == 5:
            run.optimizer.p[...] = np.nan

    with (
        np.errstate(all="ignore"),
        pytest.raises(MinidiffError, match=f"{said}.*the checkpoint of step {kept} is kept"),
    ):
        go_on(run, checkpoint_every, on_step=poison)
    assert [row.split(",")[0] for row in rows(tmp_path / "run")] == [str(k) for k in range(1, 7 if kept else 16)]
    again = reopen(tmp_path / "run")
    assert again.step == kept
    assert all(np.isfinite(getattr(again.optimizer, name)).all() for name in state.BUFFERS)


@pytest.fixture
def bad_gradients(monkeypatch):
    """bad_gradients(steps): in these the answer of every network is no number."""

    def spoil(steps):
        train_step = unet_run.train_step

        def spoilt(model, schedule, optimizer, *rest, **options):
            def answer(*args, **kwargs):
                y = model(*args, **kwargs)
                if optimizer.step_count + 1 in steps:
                    y.data[...] = np.nan
                return y

            return train_step(answer, schedule, optimizer, *rest, **options)

        monkeypatch.setattr(unet_run, "train_step", spoilt)

    return spoil


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("stop", [4, 5, 6, 7])
def test_skipped_steps_are_skipped_again(tmp_path, bad_gradients, stop):
    bad_gradients({5, 6})
    go_on(new_run(tmp_path / "whole"))
    go_on(new_run(tmp_path / "run"), stop_at=stop)
    go_on(reopen(tmp_path / "run"))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    losses = read_log(tmp_path / "run" / "metrics.csv")[1]
    assert [k for k, loss in enumerate(losses, start=1) if not np.isfinite(loss)] == [5, 6]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_ten_in_a_row_are_counted_across_a_stop(tmp_path, bad_gradients):
    bad_gradients(range(5, 40))
    with pytest.raises(MinidiffError, match="step 14: .*the checkpoint of step 8 is kept"):
        run = new_run(tmp_path / "run", 40)
        go_on(run, 8, stop_at=8)
        run = reopen(tmp_path / "run")
        assert run.optimizer.skipped == 4
        go_on(run, 100)


def test_the_state_precedes_its_export(tmp_path, monkeypatch):
    """Where the process ends between the two, the export is behind, and settling the run writes it anew."""
    go_on(new_run(tmp_path / "run"), stop_at=4)
    before = tree(tmp_path / "run" / "unet")
    run = reopen(tmp_path / "run")

    def lost(run):
        raise Lost

    with monkeypatch.context() as patched, pytest.raises(Lost):
        patched.setattr(state, "export", lost)
        go_on(run, stop_at=5)
    assert tree(tmp_path / "run" / "unet") == before
    assert reopen(tmp_path / "run").step == 5
    assert tree(tmp_path / "run" / "unet") != before


# The command line


QUICK = ("--backend", "numpy", "--threads", 1, "--batch-size", 2, "--steps", 1)
STARTS = {
    "unet": ["train", "data"],
    "vae": ["train-vae", "data"],
    "text": ["train", "data", "--text", "--text-encoder", "texts"],
    "latent": ["train", "data", "--text", "--latent", "autoencoder"],
}


@pytest.fixture(params=STARTS)
def started(request, run, tmp_path, monkeypatch):
    """How a run of each kind was started, in the folder run, on captioned images at the path data."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"MERGES": 5, "SHEET_IMAGES": 2, "SHEET_STEPS": 2}.items():
        for module in (start_text, text_run, unet_run, vae_run):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(start, "open_dataset", lambda *_, **__: small_text.bars())
    (tmp_path / "data").mkdir()
    small_text.new_text_run(tmp_path / "texts", frozen=True)
    save_network(tmp_path / "autoencoder", small_text.AUTOENCODER.to_dict(), autoencoder().state_dict())
    code, out, err = run(*STARTS[request.param], "--out", "run", *QUICK)
    assert (code, err) == (0, "") and "Done: step 1." in out
    return STARTS[request.param]


def autoencoder(seed=0):
    return VAE(small_text.AUTOENCODER, np.random.default_rng(seed), "numpy")


def test_every_kind_of_run_is_resumed_from_its_folder_alone(started, run, tmp_path, monkeypatch):
    """From another folder, too; by the options that it was started with; with data that were moved."""
    (tmp_path / "elsewhere").mkdir()
    with monkeypatch.context() as patched:
        patched.chdir("elsewhere")
        code, out, err = run("train", "--out", "../run", "--resume", "--steps", 2)
    assert (code, err) == (0, "") and "Done: step 2." in out
    for arguments in (["train", "data"], started[:1], started, [*started, "--batch-size", 2, "--seed", 0]):
        assert run(*arguments, "--out", "run", "--resume")[::2] == (0, "")
    (tmp_path / "data").rename("moved")
    code, _, err = run("train", "--out", "run", "--resume", "--steps", 3)
    assert code == 2 and f"its dataset is no longer at {tmp_path / 'data'}; give its path as DATA" in err
    code, out, _ = run("train", "moved", "--out", "run", "--resume", "--steps", 3)
    assert code == 0 and "Done: step 3." in out
    code, out, _ = run("train", "--out", "run", "--resume", "--steps", 4)
    assert code == 0 and "Done: step 4." in out


def test_options_that_differ_are_named_with_both_values(started, run, tmp_path):
    """Where an option is none of the run's kind, that it was started without it."""
    others = small_text.new_text_run(tmp_path / "others", frozen=True)
    for p in others.pipeline.text_encoder.parameters():
        p.data[...] += 1
    others.prepare()
    save_network(tmp_path / "other", small_text.AUTOENCODER.to_dict(), autoencoder(1).state_dict())
    differing = {
        ("--batch-size", 3): "with --batch-size 2, not 3",
        ("--objective", "sample"): "with --objective v_prediction, not sample",
        ("--text",): "without --text",
        ("--by-class",): "without --by-class",
        ("--recipe", "small-cpu"): "without --recipe",
        ("--latent", "other"): "without --latent",
        ("--text-encoder", "others"): "without --text-encoder",
    }
    if started[0] == "train-vae":
        differing["--objective", "sample"] = "without --objective"
    if "--text" in started:
        differing["--text",] = None
    elif started[0] == "train":
        differing["--recipe", "small-cpu"] = "with --batch-size 2, not 64"
    if "--latent" in started:
        differing["--latent", "other"] = "with --latent run/vae, not other"
    if "--text-encoder" in started:
        differing["--text-encoder", "others"] = "with --text-encoder run/text_encoder, not others"
    before = tree(tmp_path)
    for option, said in differing.items():
        code, _, err = run("train", "--out", "run", "--resume", *option)
        want = f"minidiff: run: was started {said}; leave it out, or start a new run\n"
        assert (code, err) == ((2, want) if said else (0, ""))
    assert tree(tmp_path) == before


def test_a_new_run_wants_data(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("train", "train-vae"):
        code, _, err = run(command, "--out", "run")
        assert code == 2 and "DATA is missing: give cats_dogs, cifar10, " in err and "--resume" in err
    assert tree(tmp_path) == {}


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_and_the_second_breaks_off(number):
    notices = []
    before = signal.getsignal(number)
    with stoppable(lambda: notices.append(number)) as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop() and notices == [number]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert notices == [number]
    assert signal.getsignal(number) is before


def test_a_hangup_that_is_ignored_stays_so():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stoppable(lambda: None) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop()
    signal.signal(signal.SIGHUP, before)


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Lost), stoppable(lambda: None):
        raise Lost
    assert signal.getsignal(signal.SIGINT) is before
