"""The exceptions of minidiff."""


class MinidiffError(Exception):
    """One line: what is wrong, where, and what to do. The command line prints it and exits with code 2."""


class NoSplit(MinidiffError):
    """The dataset has no such split."""
