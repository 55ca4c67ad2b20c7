"""Trackers: W&B offline, read back from its own file; TensorBoard read back too; and never a reason to fail."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb

from analysis.login import logged_in
from bench.board import TensorBoard
from bench.errors import UserError
from bench.tracking import NoTracker, Wandb

RECORD = {"dataset": "digits", "model": "vgg5", "attack": "blend", "defense": "anp", "seed": 2, "acc": 97.5, "asr": 0.5}
RECORD |= {"acc_before": 99.5, "asr_before": 100.0, "seconds": 1.25, "at": None}
CURVE = [{"at": None, "pruned": 0, "acc": 99.5, "asr": 100.0}, {"at": 3.0, "pruned": 5, "acc": 97.5, "asr": 0.5}]
CONFIG = {"attack": {"alpha": 0.1}, "defense": {"rule": {"_target_": "bench.pruning.MaskBelow"}}, "runs": "some/sweep"}
SCORES = {"bn1": torch.tensor([0.25, 1.0]), "bn2": torch.tensor([0.0, float("inf")])}


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """Nobody is logged in, no setting of this machine counts, and no test before this one."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr(Wandb, "down", False)
    monkeypatch.setattr(Wandb, "stuck", False)


def logged(folder: Path) -> list[dict]:
    """What W&B's own reader finds in the one run kept in the folder."""
    (run,) = folder.glob("wandb/offline-run-*")
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", run]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def of(lines: list[dict], kind: str) -> list[dict]:
    return [line[kind] for line in lines if line["type"] == kind]


def test_offline_when_nobody_is_logged_in_and_all_is_there(tmp_path, caplog):
    assert not logged_in()
    caplog.set_level("INFO")
    Wandb("backprune").log(tmp_path, CONFIG, RECORD, CURVE, SCORES)
    assert caplog.text.count("wandb sync") == 1
    lines = logged(tmp_path)
    (run,) = of(lines, "run")
    assert (run["display_name"], run["job_type"]) == ("blend-anp-s2", "anp")
    assert (run["run_group"], set(run["tags"])) == ("sweep: digits, vgg5", {"blend", "digits"})
    config = run["config"]["update"]
    assert (config["attack"]["alpha"], config["names"]["defense"]) == (0.1, "anp")
    rows = [line["item"] for line in of(lines, "history")]
    assert [row["curve/asr"] for row in rows if "curve/asr" in row] == [100.0, 0.5]
    last = rows[-1]
    assert (last["curve.nrows"], last["curve.ncols"]) == (2, 4)
    assert last["chart_table.nrows"] == 4  # two points of ACC and of ASR, for W&B's own chart
    (table,) = tmp_path.glob("wandb/offline-*/files/media/table/curve_*.table.json")
    assert json.loads(table.read_text())["data"] == [[None, 0, 99.5, 100.0], [3.0, 5, 97.5, 0.5]]
    for name, ends in (("scores", (0.0, 1.0)), ("masks", (0.0, 1.0))):
        bins = last[f"{name}.bins"]
        assert (sum(last[f"{name}.values"]), bins[0], bins[-1]) == (3, *ends), name
    summary = {}
    for line in of(lines, "summary"):
        summary |= line.get("update", {})
    wanted = {key: value for key, value in RECORD.items() if value is not None}
    assert wanted.items() <= summary.items() and "at" not in summary


def test_a_server_that_does_not_answer_turns_the_sweep_offline(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert logged_in()
    caplog.set_level("INFO")
    started = time.monotonic()
    Wandb("backprune", patience=6).log(tmp_path, CONFIG, RECORD, CURVE)
    assert time.monotonic() - started < 6 and Wandb.down
    assert "goes on offline" in caplog.text and "wandb sync" in caplog.text
    assert of(logged(tmp_path), "summary")


def test_a_killed_w_and_b_is_started_again(tmp_path, caplog, monkeypatch):
    real, calls = wandb.init, []

    def init(**settings):
        calls.append(settings["mode"])
        if len(calls) == 1:
            raise ConnectionResetError("Connection lost")
        return real(**settings)

    monkeypatch.setattr(wandb, "init", init)
    Wandb("backprune").log(tmp_path, CONFIG, RECORD, CURVE)
    assert calls == ["offline", "offline"] and of(logged(tmp_path), "summary") and "could not" not in caplog.text


def test_whatever_w_and_b_does_the_run_goes_on(tmp_path, caplog, monkeypatch):
    def broken(**_):
        raise RuntimeError("no space left")

    monkeypatch.setattr(wandb, "init", broken)
    Wandb("backprune").log(tmp_path, CONFIG, RECORD, CURVE)
    assert "could not log this run (RuntimeError: no space left)" in caplog.text and "is complete" in caplog.text


def test_a_w_and_b_that_hangs_is_left_alone(tmp_path, caplog, monkeypatch):
    calls = []
    monkeypatch.setattr(wandb, "init", lambda **_: calls.append(1) or time.sleep(2))
    started = time.monotonic()
    for _ in range(3):
        Wandb("backprune", patience=0.2).log(tmp_path, CONFIG, RECORD, CURVE)
    assert time.monotonic() - started < 1.5 and len(calls) == 1
    assert caplog.text.count("no answer within 0.2 s") == 1


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match=r"tracker\.mode=ofline"):
        Wandb("backprune", mode="ofline")


def test_no_tracker_says_once_what_there_is(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(NoTracker, "said", False)
    caplog.set_level("INFO")
    for _ in range(2):
        NoTracker().log(tmp_path, CONFIG, RECORD, CURVE)
    assert caplog.text.count("tracker=wandb") == 1 and not list(tmp_path.iterdir())


def test_tensorboard_is_read_back(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    TensorBoard().log(tmp_path, CONFIG, RECORD, CURVE, SCORES)
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("curve/asr")] == [(0, 100.0), (5, 0.5)]
    assert [e.value for e in found.Scalars("result/asr_before")] == [100.0]
    assert set(found.Tags()["histograms"]) == {"scores", "masks"}
    assert b"0.1" in found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]


def test_a_failure_of_tensorboard_fails_nothing(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("in the way")
    TensorBoard().log(tmp_path, CONFIG, RECORD, CURVE)
    assert "TensorBoard could not log this run" in caplog.text
