"""The one error that a user is meant to read."""


class MinidiffError(Exception):
    """What was wrong, where, and what to do, in one line. The command line prints it and exits with 2."""


class NoSplit(MinidiffError):
    """A set of pictures has no such split."""
