import gzip
import hashlib
import http.server
import io
import re
import sys
import tarfile
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minidiff_kernels.cpu import jit

from minidiff.data.cifar10 import CLASSES, RECORD, cache_dir, cifar10, download_cifar10, is_cifar10
from minidiff.errors import MinidiffError

FOLDER = "cifar-10-batches-bin"
BATCHES = [f"data_batch_{k}.bin" for k in range(1, 6)]
NAMES = [f"thing {k}" for k in range(10)]


def random_images(n, seed=0):
    """n images (n, 32, 32, 3), labels (n,), and the records of them."""
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(n, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(10, size=n, dtype=np.uint8)
    records = b"".join(
        bytes([label]) + b"".join(image[:, :, c].tobytes() for c in range(3))
        for image, label in zip(images, labels, strict=True)
    )
    return images, labels, records


def contents():
    """A small set: batch k has k images, the test batch 6."""
    files = {name: random_images(k, seed=k)[2] for k, name in enumerate(BATCHES, start=1)}
    files["test_batch.bin"] = random_images(6, seed=6)[2]
    files["batches.meta.txt"] = "\n".join([*NAMES, "", ""]).encode()
    files["readme.html"] = b"<html>"
    return files


def write_folder(root, files):
    (root / FOLDER).mkdir(parents=True)
    for name, data in files.items():
        (root / FOLDER / name).write_bytes(data)
    return root


def member(name, data=b"", kind=tarfile.REGTYPE, size=None, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data) if size is None else size, link
    return info, data


def tar_bytes(members):
    """A tar that holds just what it is told to, lies included."""
    blocks = b"".join(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512) for info, data in members)
    return blocks + bytes(1024)


def members(files):
    return [
        member(FOLDER, kind=tarfile.DIRTYPE),
        *(member(f"{FOLDER}/{name}", data) for name, data in files.items()),
    ]


def write_archive(path, members):
    path.write_bytes(gzip.compress(tar_bytes(members), 1))
    return path


def refused(path, match, split="train"):
    with pytest.raises(MinidiffError) as caught:
        cifar10(path, split)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert re.search(match, message.replace(str(path), "")), message


def check(path):
    train, test = cifar10(path), cifar10(path, "test")
    expected = [random_images(k, seed=k) for k in range(1, 7)]
    for dataset, parts in ((train, expected[:5]), (test, expected[5:])):
        images, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        assert (dataset.name, dataset.shape, dataset.classes) == ("CIFAR-10", (32, 32, 3), tuple(NAMES))
        np.testing.assert_array_equal(dataset.take(np.arange(len(dataset))), images)
        np.testing.assert_array_equal(dataset.labels, labels)
        assert dataset.labels.dtype == np.int64


def test_folder_and_the_folder_above(tmp_path):
    root = write_folder(tmp_path / "größe", contents())
    assert is_cifar10(root) and is_cifar10(root / FOLDER) and not is_cifar10(tmp_path)
    check(root)
    check(root / FOLDER)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_as_tarfile_writes_them(tmp_path, form):
    write_folder(tmp_path, contents())
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz", format=form) as archive:
        archive.add(tmp_path / FOLDER, arcname=FOLDER)  # with PAX_FORMAT, times go into extended headers
    check(tmp_path / "c.tar.gz")


def test_archive_in_any_order(tmp_path):
    check(write_archive(tmp_path / "c.tar.gz", members(contents())[::-1]))


def test_without_names_the_classes_are_the_official_ones(tmp_path):
    files = contents()
    del files["batches.meta.txt"]
    assert cifar10(write_folder(tmp_path, files)).classes == CLASSES
    assert cifar10(write_archive(tmp_path / "c.tar.gz", members(files))).classes == CLASSES


BROKEN = [
    ("data_batch_3.bin", b"", "data_batch_3.bin has 0 bytes"),
    ("data_batch_3.bin", bytes(RECORD - 1), "has 3072 bytes"),
    ("data_batch_3.bin", bytes(RECORD + 1), "has 3074 bytes"),
    ("data_batch_3.bin", bytes(RECORD) + b"\x0a" + bytes(RECORD - 1), "label 10 in record 1"),
    ("data_batch_5.bin", None, "data_batch_5.bin of CIFAR-10's binary version is missing"),
    ("batches.meta.txt", b"cat\ndog\n", "has 2 class names"),
    ("batches.meta.txt", b"\xff\xfe\0", "has 1 class names"),
]


@pytest.mark.parametrize("name, data, match", BROKEN)
def test_broken_files(tmp_path, name, data, match):
    files = {k: v for k, v in (contents() | {name: data}).items() if v is not None}
    refused(write_folder(tmp_path / "folder", files), match)
    refused(write_archive(tmp_path / "c.tar.gz", members(files)), match)


def test_the_test_split_needs_its_own_batch_only(tmp_path):
    files = contents()
    root = write_folder(tmp_path, {"test_batch.bin": files["test_batch.bin"]})
    assert len(cifar10(root, "test")) == 6
    refused(root, "data_batch_1.bin")


def test_a_file_that_is_a_folder_is_not_there(tmp_path):
    (write_folder(tmp_path, {}) / FOLDER / BATCHES[0]).mkdir()
    refused(tmp_path, "data_batch_1.bin of CIFAR-10's binary version is missing")


def test_a_too_large_file(tmp_path):
    write_folder(tmp_path, contents())
    with open(tmp_path / FOLDER / BATCHES[1], "wb") as file:
        file.truncate(RECORD * 10**6)  # sparse: it takes no room
    refused(tmp_path, "larger than any file")


@pytest.mark.parametrize(
    "extra",
    [
        member("../evil", b"x"),
        member(f"{FOLDER}/../../evil", b"x"),
        member("/etc/evil", b"x"),
        member(f"/{FOLDER}/data_batch_1.bin", b"x"),
        member(f"{FOLDER}//data_batch_1.bin", b"x"),
        member("data_batch_1.bin", b"x"),
        member("elsewhere/data_batch_1.bin", b"x"),
        member(f"{FOLDER}/data_batch_6.bin", bytes(RECORD)),
        member(f"{FOLDER}/an extended header", b"x"),
        member(f"{FOLDER}/sub", kind=tarfile.DIRTYPE),
        member(FOLDER, b"x"),
        member(f"{FOLDER}/data_batch_1.bin", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member(f"{FOLDER}/data_batch_1.bin", kind=tarfile.LNKTYPE, link=f"{FOLDER}/test_batch.bin"),
        member(f"{FOLDER}/data_batch_1.bin", kind=tarfile.FIFOTYPE),
        member(f"{FOLDER}/data_batch_1.bin", kind=tarfile.CHRTYPE),
        member(f"{FOLDER}/data_batch_1.bin", kind=tarfile.DIRTYPE),
        member(f"{FOLDER}/data_batch_1.bin", kind=tarfile.GNUTYPE_SPARSE),
        member("././@LongLink", b"x" * 200, kind=tarfile.GNUTYPE_LONGNAME),
        member("böse\n", b"x"),
    ],
)
def test_unexpected_members(tmp_path, monkeypatch, extra):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    files = {name: data for name, data in contents().items() if name != "data_batch_1.bin"}
    path = write_archive(tmp_path / "c.tar.gz", [*members(files), extra])
    refused(path, "no file of CIFAR-10's binary version")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["c.tar.gz", "here"]


def test_a_member_twice(tmp_path):
    files = members(contents())
    refused(write_archive(tmp_path / "c.tar.gz", files + files[1:2]), "holds data_batch_1.bin twice")
    refused(write_archive(tmp_path / "c.tar.gz", files[:1] + files), f"holds {FOLDER} twice")


@pytest.mark.parametrize(
    "oversized",
    [
        member(f"{FOLDER}/data_batch_1.bin", size=10_001 * RECORD),
        member(f"{FOLDER}/data_batch_1.bin", size=10**15),
        member(f"{FOLDER}/data_batch_1.bin", size=-512),
        member(f"{FOLDER}/batches.meta.txt", size=4097),
        member(f"{FOLDER}/readme.html", size=2**16 + 1),
        member(FOLDER, kind=tarfile.DIRTYPE, size=512),
        member("PaxHeader", kind=tarfile.XHDTYPE, size=2**40),
    ],
)
def test_oversized_members(tmp_path, oversized):
    refused(write_archive(tmp_path / "c.tar.gz", [oversized]), f"has {oversized[0].size} bytes, not 0 to")


def test_a_member_shorter_than_it_claims(tmp_path):
    path = tmp_path / "c.tar.gz"
    path.write_bytes(gzip.compress(member(f"{FOLDER}/data_batch_1.bin", size=RECORD)[0].tobuf() + bytes(99)))
    refused(path, "ends within data_batch_1.bin")


def test_a_gzip_bomb_behind_the_last_member(tmp_path):
    (tmp_path / "c.tar.gz").write_bytes(gzip.compress(tar_bytes(members(contents())) + bytes(2**24), 1))
    refused(tmp_path / "c.tar.gz", "goes on after its last file")


def test_truncated_archives(tmp_path):
    path = write_archive(tmp_path / "c.tar.gz", members(contents()))
    whole = path.read_bytes()
    for length in [*range(1, 40), *range(40, len(whole), 997), *range(len(whole) - 20, len(whole))]:
        path.write_bytes(whole[:length])
        refused(path, "damaged")
        refused(path, "damaged", "test")


def test_a_flipped_bit_in_the_pixels(tmp_path):
    path = tmp_path / "c.tar.gz"
    data = bytearray(gzip.compress(tar_bytes(members(contents())), 0))  # stored, so that only the sum tells
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    refused(path, "damaged")


@given(junk=st.binary(max_size=2048))
def test_any_bytes_are_refused(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("cifar") / "c.tar.gz"
    good = tar_bytes(members(contents()))
    for data in (junk, gzip.compress(junk, 1), gzip.compress(good[:512] + b"\1" + junk + good[512:], 1)):
        path.write_bytes(data)
        refused(path, "damaged|is missing|no file of|goes on|not 0 to")


def test_the_pickled_version_is_refused(tmp_path):
    path = write_archive(tmp_path / "c.tar.gz", [member("cifar-10-batches-py/data_batch_1", b"\x80\4.")])
    refused(path, "Python version, a pickle.*get the binary version")
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\4.")
    for folder in (tmp_path, tmp_path / "cifar-10-batches-py"):
        assert is_cifar10(folder)
        refused(folder, "Python version, a pickle.*get the binary version")


def test_paths_and_splits_that_are_none(tmp_path):
    refused(tmp_path / "missing", "is missing")
    refused(tmp_path / ("x" * 300), "is missing")
    with pytest.raises(MinidiffError, match="valid: no such split"):
        cifar10(write_folder(tmp_path, contents()), "valid")


@pytest.mark.parametrize(
    "platform, variable, home",
    [
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
        ("darwin", None, "Library/Caches"),
    ],
)
def test_cache_dir(monkeypatch, platform, variable, home):
    monkeypatch.setattr(sys, "platform", platform)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert cache_dir() == Path.home() / home / "minidiff"
    if variable:
        monkeypatch.setenv(variable, "/elsewhere")
        assert cache_dir() == Path("/elsewhere/minidiff")


def no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="needs XDG's folders")
def test_a_user_without_a_home(monkeypatch):
    """As in a container under a number that no user has."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(MinidiffError, match="no home folder is known: set XDG_CACHE_HOME"):
        cache_dir()
    assert not jit.user_cache_dir().parent.is_dir()  # of kernels nothing is kept, and they say so


@pytest.fixture
def server(monkeypatch):
    """Serves an archive on this machine and makes it the official one; `serve` changes what is sent."""
    official = gzip.compress(tar_bytes(members(contents())), 1)
    served = {"body": official, "length": True, "status": 200}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(served["status"])
            if served["length"]:
                self.send_header("Content-Length", str(len(official)))
            self.end_headers()
            try:
                self.wfile.write(served["body"])
            except OSError:
                pass  # the client has had enough

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr("minidiff.data.cifar10.URL", f"http://127.0.0.1:{running.server_port}/c.tar.gz")
        monkeypatch.setattr("minidiff.data.cifar10.LENGTH", len(official))
        monkeypatch.setattr("minidiff.data.cifar10.SHA256", hashlib.sha256(official).hexdigest())
        monkeypatch.setattr("minidiff.data.cifar10.CHUNK", 1000)
        yield served
        running.shutdown()
        thread.join()


def test_download(tmp_path, server, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "another disk"))  # whence no rename leads here
    told = []
    folder = tmp_path / "new" / "cache"
    path = download_cifar10(folder, lambda done, total: told.append((done, total)))
    assert path == folder / "cifar-10-binary.tar.gz" and list(folder.iterdir()) == [path]
    check(path)
    total = len(server["body"])
    assert told == [(min(k, total), total) for k in range(1000, total + 1000, 1000)]
    assert download_cifar10(folder) == path


def one_bit_off(body):
    return body[:-1] + bytes([body[-1] ^ 1])


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda body: {"body": one_bit_off(body)}, "wrong checksum"),
        (lambda body: {"body": body[:-1]}, r"gave \d+ of \d+ bytes"),
        (lambda body: {"body": b""}, r"gave 0 of \d+ bytes"),
        (lambda body: {"body": body + bytes(10**6), "length": False}, r"gave more than \d+ bytes"),
        (lambda body: {"status": 404}, "cannot be fetched .*404"),
    ],
)
def test_a_download_that_fails_leaves_nothing_behind(tmp_path, server, change, match):
    told, official = [0], len(server["body"])
    server.update(change(server["body"]))
    with pytest.raises(MinidiffError, match=match) as caught:
        download_cifar10(tmp_path, lambda done, total: told.append(done))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert told[-1] <= official + 1000  # a server that goes on and on is not listened to


def test_a_failed_download_keeps_the_file_that_was_there(tmp_path, server):
    path = download_cifar10(tmp_path)
    server["body"] = one_bit_off(server["body"])
    with pytest.raises(MinidiffError, match="wrong checksum"):
        download_cifar10(tmp_path)
    check(path)


def test_an_interrupted_download_leaves_nothing_behind(tmp_path, server):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_cifar10(tmp_path, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_no_network(tmp_path, server, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as closed:
        port = closed.server_port
    monkeypatch.setattr("minidiff.data.cifar10.URL", f"http://127.0.0.1:{port}/c.tar.gz")
    with pytest.raises(MinidiffError, match="cannot be fetched .*check network"):
        download_cifar10(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_speaks_no_http(tmp_path, server, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(b"not the archive"))
    with pytest.raises(MinidiffError, match=r"gave 15 of \d+ bytes"):
        download_cifar10(tmp_path)


def test_a_cache_that_cannot_be_made(tmp_path, server):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MinidiffError, match="cannot be fetched"):
        download_cifar10(tmp_path / "file" / "cache")
