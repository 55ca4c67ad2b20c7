"""BackPrune: a bench of pruning defences against backdoored image classifiers."""

__version__ = "0.1.0"

from analysis.revisions import PROTOCOL as PROTOCOL
