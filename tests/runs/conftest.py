"""What all tests of runs share."""

from one_thread import one_thread  # noqa: F401  for all of them
