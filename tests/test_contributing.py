"""CONTRIBUTING.md promises that two files make a defence. They are taken from it and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_ten_line_defence(tmp_path):
    for folder in ("bench", "analysis", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"`((?:bench|conf)/defen\w+/loudest\.\w+)`:\n\n```\w+\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    for path, content in blocks:
        (tmp_path / path).write_text(content)
    command = [
        sys.executable,
        tmp_path / "bench/run.py",
        "defense=loudest",
        "train.epochs=1",
        f"runs={tmp_path}/runs",
    ]
    env = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs/digits/vgg5/badnets/loudest").glob("s*")  # not the lock beside it
    assert {"record.json", "curve.csv", "scores.csv"} <= {path.name for path in folder.iterdir()}
    assert len((folder / "curve.csv").read_text().splitlines()) > 5
