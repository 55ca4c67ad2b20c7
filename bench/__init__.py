"""BackPrune: a bench of pruning defences against backdoored image classifiers."""

__version__ = "0.1.0"

PROTOCOL = 1
"""Counts up when a change to the code changes what a stored backdoor or a finished cell means.
It is part of every key, so that results made before such a change are never mistaken for new ones."""
