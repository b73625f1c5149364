"""Small networks are faster on one thread."""

from one_thread import one_thread  # noqa: F401  for all tests of this folder
