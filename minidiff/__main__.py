"""The entry point: `python -m minidiff` is `minidiff`.

The command line takes a second to import, and so it is imported here, where Ctrl-C is one line already.
"""

import os
import signal


def main() -> None:
    """Run the command line; Ctrl-C is one line on stderr and exit code 130 from here on."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else it is ignored, as in a shell's background job
        signal.signal(signal.SIGINT, _stop)
    from minidiff.cli.app import main as run

    try:
        signal.signal(signal.SIGINT, before)
        run()
    except KeyboardInterrupt:  # in the few lines before the command line's own handling
        _stop()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done: what Python still cleans up is not to be broken off


def _stop(*_: object) -> None:
    """Leave at once: a KeyboardInterrupt amid their imports is swallowed by some libraries, and garbled by others."""
    os.write(2, b"minidiff: stopped\n")
    os._exit(130)


if __name__ == "__main__":
    main()
