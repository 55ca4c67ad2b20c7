"""W&B's workspace and report as code: what would be saved, built from the golden runs, and what a server's refusal does."""

import json
import shutil
from pathlib import Path

import pytest

from analysis import dashboard
from bench.curve import COLUMNS

pytest.importorskip("wandb_workspaces")

GOLDEN = Path(__file__).parent / "golden_runs"
RECORD = json.loads(next(GOLDEN.glob("digits/*/blend/clp/*/record.json")).read_text())


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def panels(node):
    """All panels of a spec, wherever they are."""
    if isinstance(node, dict):
        if "viewType" in node:
            yield node
        for value in node.values():
            yield from panels(value)
    elif isinstance(node, list):
        for value in node:
            yield from panels(value)


def shown(spec) -> set[str]:
    """The names of everything that the panels plot."""
    found = set()
    for panel in panels(spec):
        config = panel["config"]
        found |= set(config.get("metrics", [])) | {config.get("xAxis"), config.get("yAxis")}
    return {name.removeprefix("summary:") for name in found if name}


def test_the_specs_show_what_runs_have_logged(tmp_path, capsys):
    """Every name in a panel is a column of a record or of a curve: a renamed column would leave an empty panel."""
    assert dashboard.main(["--runs", str(GOLDEN), "--out", str(tmp_path), "--project", "mine", "--entity", "us"]) == 0
    assert "Nobody is logged in" in capsys.readouterr().out
    workspace, report = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("workspace", "report"))
    for spec in (workspace, report):
        assert {"asr", "acc", "asr_before", "seconds", "curve/asr"} <= shown(spec)
        assert shown(spec) <= set(RECORD) | {f"curve/{column}" for column in COLUMNS}
    assert (workspace["entity"], workspace["project"]) == ("us", "mine")
    assert [s["name"] for s in workspace["spec"]["section"]["panelBankConfig"]["sections"]][:2] == [
        "After the defence",
        "Curves",
    ]
    text = json.dumps(report)
    assert all(f'"{attack}"' in text for attack in ("badnets", "blend", "none")) and "| defence" in text


def test_saved_when_logged_in_and_a_refusal_is_one_sentence(tmp_path, capsys, monkeypatch):
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

    saved = []
    for kind in (Workspace, Report):
        monkeypatch.setattr(kind, "save", lambda self: saved.append(self.project))
        monkeypatch.setattr(kind, "url", "https://somewhere")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    call = ["--runs", str(GOLDEN), "--out", str(tmp_path), "--entity", "us"]
    assert dashboard.main([*call, "--offline"]) == 0 and not saved
    assert dashboard.main(call) == 0
    assert saved == ["backprune", "backprune"] and capsys.readouterr().out.count("https://somewhere") == 2

    def refused(self):
        raise ValueError("permission denied")

    monkeypatch.setattr(Workspace, "save", refused)
    assert dashboard.main(call) == 1
    assert "W&B did not save it (ValueError: permission denied)" in capsys.readouterr().err


def test_a_hostile_name_is_no_filter(tmp_path):
    """wandb-workspaces parses filters as text."""
    shutil.copytree(GOLDEN / "digits", tmp_path / "runs" / "digits")
    for path in (tmp_path / "runs").glob("digits/*/blend/*/*/record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"attack": "it's"}))
    assert dashboard.main(["--runs", str(tmp_path / "runs")]) == 0
    spec = json.loads((tmp_path / "runs" / "dashboards" / "report.json").read_text())
    values = [f["value"] for b in spec["spec"]["blocks"] for r in b.get("metadata", {}).get("runSets", [])
              for f in r["filters"]["filters"]]  # fmt: skip
    assert values == ["badnets", "none"]


def test_no_cell_is_said(tmp_path, capsys):
    assert dashboard.main(["--runs", str(tmp_path)]) == 1
    assert "no finished cell" in capsys.readouterr().err
