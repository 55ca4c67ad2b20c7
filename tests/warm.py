"""What a process like `python bench/run.py` spends its first seconds on, done once for all that are forked from here: see
`SERVER` in test_bench.py. Nothing of it is state of the bench."""

import importlib

from hydra.core.plugins import Plugins

from analysis import fingerprints

for name in ("bench.scene", "bench.record", "bench.sweep", "bench.turn", "bench.defenses.clp", "torch._dynamo"):
    importlib.import_module(name)  # the last one comes with the first optimiser
Plugins.instance()
fingerprints.fingerprint(fingerprints.SHARED)
