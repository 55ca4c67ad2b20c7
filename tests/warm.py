"""What a process like `python bench/run.py` spends its first seconds on, done once for all that are forked from here: see
`server` in test_bench.py. Nothing of it is state of the bench."""

import importlib
import os
import sys
from pathlib import Path

from hydra.core.plugins import Plugins

from analysis import fingerprints

HERE = str(Path(__file__).parent)
os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"].removeprefix(HERE).removeprefix(os.pathsep)
sys.path.remove(HERE)

for name in ("bench.scene", "bench.record", "bench.sweep", "bench.turn", "bench.defenses.clp", "torch._dynamo"):
    importlib.import_module(name)  # the last one comes with the first optimiser
Plugins.instance()
fingerprints.fingerprint(fingerprints.SHARED)
