"""W&B dashboards as code: a workspace and a report over the runs that `tracker=wandb` logged.

What they show is bench/tracking.py's: the record in the summary, the curve in the history under `curve/…`, the defence as
job type. Which attacks and tables the report has comes from the records on disk.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis import command, render, tables
from analysis.load import load
from analysis.login import logged_in

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

BEFORE_AFTER = ("asr_before", "asr", "acc_before", "acc", "ra")
PLAIN = re.compile(r"[\w.-]+")  # filters are sentences that wandb-workspaces parses: other names are left to the table
COST = ("seconds", "seconds_curve", "peak_memory_mib")


def after_panels() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    summary = wr.SummaryMetric
    percent = (0, 100)
    return [
        wr.ScatterPlot(title="ACC against ASR", x=summary("asr"), y=summary("acc"), range_x=percent, range_y=percent),
        *(
            wr.BarPlot(title=f"{name} by defence", metrics=[key], groupby="JobType", range_x=percent)
            for name, key in (("ASR after", "asr"), ("ASR before", "asr_before"), ("ACC after", "acc"), ("RA after", "ra"))
        ),
    ]  # fmt: skip


def curve_panels() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.LinePlot(title=f"{key.upper()} against pruned channels", x="curve/pruned", y=[f"curve/{key}"], title_x="pruned",
                    title_y=f"{key.upper()} (%)", range_y=(0, 100), smoothing_factor=0, max_runs_to_show=100)
        for key in ("asr", "acc", "ra")
    ]  # fmt: skip


def cost_panels() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [wr.BarPlot(title=f"{key} by defence", metrics=[key], groupby="JobType") for key in COST]


def workspace(entity: str, project: str) -> Workspace:
    """Sections for the operating points, the curves, the channels' scores and the cost; runs by attack, then defence."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    media: list[Any] = [wr.MediaBrowser(title="Curve, scores and masks", media_keys=["curve", "scores", "masks"])]
    columns: list[Any] = [f"summary:{key}" for key in BEFORE_AFTER]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="BackPrune",
        sections=[
            ws.Section(name="After the defence", panels=after_panels(), is_open=True),
            ws.Section(name="Curves", panels=curve_panels(), is_open=True),
            ws.Section(name="Curve tables and histograms", panels=media, is_open=False),
            ws.Section(name="Cost", panels=cost_panels(), is_open=False),
        ],
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Summary("attack"), ws.Metric("JobType")],
            order=[ws.Ordering(ws.Summary("asr"), ascending=True)],
            pinned_columns=columns,
        ),
    )


def report(entity: str, project: str, attacks: Sequence[str], markdown: str) -> Report:
    """The table as it is printed here, then for each attack its runs, operating points and curves."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    blocks: list[Any] = [wr.TableOfContents(), wr.MarkdownBlock(text=markdown)]
    for attack in attacks:
        chosen = expr.And(expr.Summary("attack") == attack)
        runs = wr.Runset(name=attack, filters=chosen, groupby=["JobType"])  # without a project: the report's own
        blocks += [wr.H1(attack), wr.PanelGrid(runsets=[runs], panels=[*after_panels(), *curve_panels()])]
    everything = wr.Runset(name="all", groupby=["JobType"])
    blocks += [wr.H1("Cost"), wr.PanelGrid(runsets=[everything], panels=cost_panels())]
    return wr.Report(
        entity=entity,
        project=project,
        title="BackPrune: pruning defences against backdoors",
        description="Made by python -m analysis.dashboard",
        blocks=blocks,
        width="fluid",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "dashboard",
        "Builds a W&B workspace and report for the runs that tracker=wandb logged; saves both when somebody is logged in, "
        "else writes what would be saved as workspace.json and report.json.",
        "dashboards",
    )
    parser.add_argument("--project", default="backprune", help="as in tracker.project (backprune)")
    parser.add_argument("--entity", help="the team or user that owns the project (the one who is logged in)")
    parser.add_argument("--offline", action="store_true", help="save nothing, whoever is logged in")
    options = parser.parse_args(arguments)
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        return command.refuse("Dashboards need a package that is not here: pip install wandb-workspaces.")
    frame, _ = load(options.runs)
    if not len(frame):
        return command.no_cell(options.runs)
    attacks = sorted(filter(PLAIN.fullmatch, set(frame["attack"])), key=lambda name: (name == "none", name))
    markdown = tables.make(options.runs, "clean_drop")[0]["table.md"]
    online = logged_in() and not options.offline
    entity = options.entity or os.environ.get("WANDB_ENTITY") or (own_entity() if online else "")
    made: dict[str, Any] = {
        "workspace": workspace(entity, options.project),
        "report": report(entity, options.project, attacks, markdown),
    }
    if online:
        for what in made.values():
            try:
                what.save()
            except Exception as error:  # whatever a server says
                return command.refuse(
                    f"W&B did not save it ({type(error).__name__}: {str(error)[:300]}); --offline writes it here."
                )
            print(what.url)
        return 0
    out = options.out or options.runs / "dashboards"
    try:
        for name, what in made.items():
            text = json.dumps(what._to_model().model_dump(mode="json", by_alias=True, exclude_none=True), indent=1)
            render.write(out / f"{name}.json", text + "\n")
    except OSError as error:
        return command.no_room(out, error)
    why = "Nothing saved, as asked" if options.offline else "Nobody is logged in to W&B (`wandb login`)"
    print(f"{why}; what would be saved is in {out}: workspace.json, report.json.")
    return 0


def own_entity() -> str:
    """The one who is logged in; asks the server."""
    import wandb

    return str(wandb.Api().default_entity or "")


if __name__ == "__main__":
    sys.exit(main())
