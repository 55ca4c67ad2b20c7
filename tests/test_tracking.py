"""W&B offline, read back from its own file; and never a reason to fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.tracking import Wandb, logged_in

RECORD = {"dataset": "digits", "model": "vgg5", "attack": "blend", "defense": "clp", "seed": 2, "acc": 97.5, "asr": 0.5}
CURVE = [{"at": None, "pruned": 0, "asr": 100.0}, {"at": 3.0, "pruned": 5, "asr": 0.5}]


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """Nobody is logged in, and no setting of this machine counts."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def test_offline_when_nobody_is_logged_in(nobody, tmp_path, caplog):
    assert not logged_in()
    caplog.set_level("INFO")
    Wandb("backprune").log(tmp_path, {"attack": {"alpha": 0.1}}, RECORD, CURVE)
    assert "wandb sync" in caplog.text
    (run,) = tmp_path.glob("wandb/offline-run-*")
    wandb = Path(sys.executable).with_name("wandb")
    said = subprocess.run([wandb, "leet", "inspect", "--json", run], capture_output=True, text=True, check=True).stdout
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    text = json.dumps(lines)
    for word in ("blend-clp-s2", "digits-vgg5", "clp", "alpha", "asr"):
        assert word in text
    (table,) = run.rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [[None, 0, 100.0], [3.0, 5, 0.5]]


def test_a_failure_of_wandb_fails_nothing(nobody, tmp_path, caplog):
    (tmp_path / "wandb").write_text("in the way")
    Wandb("backprune", mode="nonsense").log(tmp_path, {}, RECORD, CURVE)
    assert "could not log this run" in caplog.text and "is complete" in caplog.text
