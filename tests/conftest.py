"""Fixtures for all tests. `backend` is each backend in turn; a new one is added to BACKENDS."""

import signal
import sys

import pytest
import which_cupy  # noqa: F401  (before anything asks for CuPy)
from hypothesis import settings
from threadpoolctl import threadpool_limits

from minidiff.engine.backend import Backend, get_backend

BACKENDS = ("numpy", "numba", "cupy")

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
# A background job ignores SIGINT, and nohup SIGHUP; the commands that tests start would inherit that and never stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # a handler, which children reset to the default
threadpool_limits(1, "blas")  # NumPy's products are small here, and threads that wait for them spin


@pytest.fixture(params=BACKENDS)
def backend(request) -> Backend:
    return get_backend(request.param)


@pytest.fixture
def run(capsys, monkeypatch):
    """run(*arguments) -> exit code of the command line, what was printed, what was printed on stderr."""
    from minidiff.cli.app import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["minidiff", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return run


@pytest.fixture
def folder(tmp_path):
    """A pipeline folder."""
    from small_runs import network, unet_of

    import minidiff as md
    from minidiff.formats.networks import save_pipeline, save_unet

    save_unet(unet_of(network()), tmp_path / "net" / "unet")
    save_pipeline(tmp_path / "net", md.cosine_schedule(20, "v_prediction"))
    return tmp_path / "net"
