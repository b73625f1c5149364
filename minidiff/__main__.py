"""`python -m minidiff` is `minidiff`."""

from minidiff.cli import main

main()
