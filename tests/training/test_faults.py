"""What goes wrong around a run: a disk that fills up, a folder that cannot be written, a second process, lost pictures.

A run that is broken off so is told in one line, keeps its last checkpoint, and goes on as if nothing had been.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import small_runs
from PIL import Image
from small_runs import contents, go_on, kept_states, new_run, refused, reopen, rows, tree

from minidiff.data import open_dataset
from minidiff.errors import MinidiffError
from minidiff.formats.run_lock import lock_run
from minidiff.formats.weights import open_safetensors
from minidiff.training import state

STEPS, EVERY = 12, 3


def mounted(*arguments) -> bool:
    """Whether mount(8), which wants root's rights, did that."""
    tool = shutil.which("mount")
    return bool(tool) and subprocess.run([tool, *map(str, arguments)], capture_output=True).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def read_only(folder: Path):
    """Within this block nobody may write there: root may where modes forbid it, but not on a read-only mount."""
    if os.getuid() != 0:
        modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*")) if path.is_dir()}
        for path in modes:
            path.chmod(0o555)
        yield
        for path, mode in modes.items():
            path.chmod(mode)
        return
    if not mounted("--bind", folder, folder):
        pytest.skip("needs a user other than root, or root's right to mount")
    try:
        assert mounted("-o", "remount,bind,ro", folder)
        yield
    finally:
        unmount(folder)


posix = pytest.mark.skipif(os.name != "posix", reason="needs file modes")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run to which nothing happens."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    go_on(new_run(folder, STEPS), EVERY)
    return folder


# A folder that cannot be written


def hold(folder):
    with lock_run(folder):
        pass


@posix
def test_a_read_only_folder(tmp_path):
    """Neither a new run nor one that is there; it can be opened, though."""
    go_on(new_run(tmp_path / "shared" / "run"), stop_at=4)
    before = tree(tmp_path)
    with read_only(tmp_path / "shared"):
        for name in ("run", "new", "new/deep"):
            match = f"{name}: (Read-only file system|Permission denied); choose a folder that can be written"
            refused(hold, tmp_path / "shared" / name, match=match)
        assert state.open_run(tmp_path / "shared" / "run").step == 4
    assert tree(tmp_path) == before


@posix
def test_a_folder_that_turns_read_only(tmp_path, whole):
    """In the midst of training: a line that names what could not be written, and the checkpoint before stays."""
    folder = tmp_path / "run"
    with ExitStack() as stack:

        def turn(stats):
            if stats.step == 5:
                stack.enter_context(read_only(folder))

        with pytest.raises(MinidiffError, match="cannot be written .*the checkpoint of step 3 is kept in") as caught:
            go_on(new_run(folder, STEPS), EVERY, on_step=turn)
    assert "\n" not in str(caught.value)
    run = reopen(folder)
    assert run.step == 3
    go_on(run, EVERY)
    assert contents(folder) == contents(whole) and kept_states(folder) == kept_states(whole)


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(kilobytes): a file system of that size; called again, the same one of another size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mounted("-t", "tmpfs", "-o", "size=64k", "none", disk):
        pytest.skip("needs root's right to mount a small file system")

    def sized(kilobytes):
        assert mounted("-o", f"remount,size={kilobytes}k", disk)
        return disk

    yield sized
    unmount(disk)


def train(folder) -> tuple[int, str]:
    """A process that trains there to the end: its exit code, and the last line of what it complained of."""
    command = [sys.executable, small_runs.__file__, folder, str(STEPS), str(EVERY), "numpy"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    return done.returncode, done.stderr.strip().splitlines()[-1] if done.stderr else ""


# A state is 166 kB and an export 44: it fills up in the first state, in its export, at a checkpoint, or never.
SIZES = [100, 180, 230, 300, 380, 400, 420, 540, 560, 580, 600, 720, 740, 760, 780]


@pytest.mark.soak
@pytest.mark.parametrize("kilobytes", SIZES)
def test_a_full_disk(small_disk, whole, kilobytes):
    folder = small_disk(kilobytes) / "run"
    code, said = train(folder)
    assert (code, said) == (0, "") or (code == 1 and re.search("MinidiffError: .*No space left on device", said))
    assert not list(folder.rglob("*.part"))
    if state.state_file(folder).exists():
        for path in (folder / "training").iterdir():
            open_safetensors(path)  # every state is whole
        step = state.open_run(folder).step
        assert step == 0 or rows(folder)[:step] == rows(whole)[:step]
    small_disk(10_000)
    assert train(folder) == (0, "")
    after = contents(folder)
    after.pop(".lock")
    assert after == contents(whole) and kept_states(whole).items() <= kept_states(folder).items()


@pytest.mark.soak
def test_some_of_these_disks_are_too_small_and_some_are_not(small_disk):
    """Lest the test above has nothing to do."""
    codes = []
    for kilobytes in (SIZES[0], SIZES[7], 10_000):
        folder = small_disk(kilobytes) / "run"
        codes.append(train(folder)[0])
        shutil.rmtree(folder, ignore_errors=True)
    assert codes == [1, 1, 0]


# A second process


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, small_runs.__file__, folder, "100000", "1000", "numpy"]
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    )
    while not first.stdout.readline().startswith("step"):
        assert first.poll() is None
    refused(hold, folder, match="run: another process is training here; wait for it, or stop it")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    hold(folder)


# Pictures


def test_pictures_may_go_while_a_run_learns_from_them(tmp_path):
    """They are all read, and found good, before the first step."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save(tmp_path / "data" / f"{i}.png")
    losses = []
    for name in ("stays", "goes"):
        dataset = open_dataset(str(tmp_path / "data"))

        def lose(stats, name=name):
            if name == "goes" and stats.step == 2:
                shutil.rmtree(tmp_path / "data")

        go_on(new_run(tmp_path / name, STEPS), EVERY, on_step=lose, dataset=dataset)
        losses.append(rows(tmp_path / name))
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


# A folder that is moved, a log that is replaced


def shift_run(folder):
    folder.rename(folder.with_name("moved"))


def remove_log(folder):
    (folder / "metrics.csv").unlink()


def rewrite_log(folder):
    """As editors do."""
    (folder / "new").write_bytes((folder / "metrics.csv").read_bytes())
    (folder / "new").replace(folder / "metrics.csv")


@pytest.mark.skipif(sys.platform == "win32", reason="needs to rename what is open")
@pytest.mark.parametrize("change", [shift_run, remove_log, rewrite_log])
def test_a_log_that_is_no_longer_there(tmp_path, whole, change):
    """Nothing is saved where the log of its steps is missing, and the checkpoint before can be resumed."""
    folder = tmp_path / "run"

    def changed(stats):
        if stats.step == 5:
            change(folder)

    match = "metrics.csv: was moved, removed or replaced during training; put it back, .* checkpoint of step 3 is kept"
    with pytest.raises(MinidiffError, match=match):
        go_on(new_run(folder, STEPS), EVERY, on_step=changed)
    if change is remove_log:
        return
    assert folder.exists() == (change is rewrite_log)  # not made anew
    folder = next(tmp_path.iterdir())
    run = reopen(folder)
    assert run.step == 3
    go_on(run, EVERY)
    assert contents(folder) == contents(whole) and kept_states(folder) == kept_states(whole)


@pytest.mark.skipif(sys.platform == "win32", reason="needs to rename what is open")
def test_a_run_moved_while_it_is_measured(tmp_path, monkeypatch):
    """Validation takes long, between the last line of the log and the state."""
    folder = tmp_path / "run"
    run = new_run(folder, STEPS)
    monkeypatch.setattr(small_runs.loop, "validation_loss", lambda *run: shift_run(folder))
    with pytest.raises(MinidiffError, match="metrics.csv: was moved"):
        go_on(run, EVERY)
    assert not folder.exists()
