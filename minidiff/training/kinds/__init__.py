"""The kinds of run, a module for each kind of network."""
