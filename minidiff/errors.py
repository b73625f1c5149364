"""The exceptions and warnings of minidiff."""


class MinidiffError(Exception):
    """One line: what is wrong, where, and what to do. The command line prints it and exits with code 2."""


class MinidiffWarning(UserWarning):
    """One line on what works, though not as its user may expect. The command line prints it."""


class NoSplit(MinidiffError):
    """The dataset has no such split."""
