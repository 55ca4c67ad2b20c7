"""The rules of the house, read from the source itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("bench/**/*.py"), *ROOT.glob("analysis/*.py"), *ROOT.glob("benchmarks/**/*.py")])

ALLOWED = {  # module (or package) -> what of the project it may import; imports point one way
    "bench.errors": set(),
    "bench.progress": set(),
    "bench.faults": set(),
    "bench.files": {"bench.faults", "analysis.sealing"},
    "bench.turn": {"bench.faults", "bench.files"},
    "bench.resume": {"bench.faults", "bench.files"},
    "bench.shelf": {"bench.errors", "bench.faults", "bench.files", "bench.turn"},
    "bench.data": {"bench.errors"},
    "bench.models": {"bench.errors"},
    "bench.zoo": {"bench.errors"},
    "bench.layers": {"bench.errors"},
    "bench.flow": {"bench.errors"},
    "bench.dense": {"bench.errors", "bench.files", "bench.flow"},
    "bench.pruning": {"bench.errors", "bench.layers"},
    "bench.tac": {"bench.attacks", "bench.data", "bench.files", "bench.layers", "bench.training"},
    "bench.plan": {"bench.errors"},
    "bench.compiling": set(),
    "bench.streaming": {"bench.data", "bench.errors"},
    "bench.training": {"bench.compiling", "bench.data", "bench.errors", "bench.plan", "bench.progress",
                       "bench.resume", "bench.streaming"},
    "bench.attacks": {"bench.attacks", "bench.data", "bench.errors"},
    "bench.defenses": {"bench.defenses", "bench.data", "bench.errors", "bench.layers", "bench.pruning", "bench.tac",
                       "bench.training"},
    "bench.decode": {"bench.errors", "bench.files", "bench.progress"},
    "bench.archives": {"bench.errors", "bench.files"},
    "bench.datasets": {"bench.archives", "bench.data", "bench.decode", "bench.errors"},
    "bench.metrics": {"bench.attacks", "bench.data", "bench.errors", "bench.training"},
    "bench.prefix": {"bench.metrics"},
    "bench.curve": {"bench.data", "bench.defenses", "bench.metrics", "bench.prefix"},
    "bench.chosen": {"bench.defenses", "bench.pruning", "analysis.operating_point"},
    "bench.choices": {"bench.errors"},
    "bench.cli": {"bench.errors"},
    "bench.cell": {"analysis", "analysis.schema", "bench.cli", "bench.errors", "bench.faults", "bench.files", "bench.parts"},
    "bench.trust": {"bench.errors"},
    "bench.sweep": {"bench.errors", "bench.files", "bench.progress", "bench.turn"},
    "bench.machine": {"bench", "bench.errors"},
    "bench.tracking": {"bench.errors", "analysis.login"},
    "bench.board": {"bench.errors", "bench.tracking"},
    "bench.signatures": {"bench.errors"},
    "bench.config": {"bench", "bench.trust", "bench.companions", "bench.errors", "bench.files", "bench.machine",
                     "bench.signatures", "analysis.operating_point", "analysis.revisions"},
    "bench.doctor": {"bench.files"},
    "bench.upkeep": {"analysis.schema", "bench.cell", "bench.doctor", "bench.files", "bench.shelf"},
    "bench.store": {"bench", "bench.attacks", "bench.files", "bench.shelf", "bench.upkeep"},
    "bench.repeat": {"bench.attacks", "bench.data", "bench.training"},
    "bench.victim": {"bench", "bench.attacks", "bench.config", "bench.data", "bench.errors", "bench.foreign", "bench.machine",
                     "bench.metrics", "bench.models", "bench.repeat", "bench.resume", "bench.shelf", "bench.store", "bench.tac",
                     "bench.training", "analysis.fingerprints"},
    "bench.record": {"bench", "bench.attacks", "bench.cell", "bench.curve", "bench.metrics",
                     "bench.pruning", "bench.repeat", "bench.scene", "bench.store",
                     "analysis.fingerprints", "analysis.operating_point", "analysis.revisions"},
    "bench.scene": {"bench", "bench.attacks", "bench.chosen", "bench.config", "bench.curve", "bench.data", "bench.defenses",
                    "bench.errors", "bench.machine", "bench.metrics", "bench.pruning", "bench.store", "bench.streaming",
                    "bench.victim"},
    "bench.companions": {"bench.errors", "bench.files"},
    "bench.foreign": {"bench.attacks", "bench.checkpoints", "bench.companions", "bench.data", "bench.errors", "bench.naming",
                      "bench.parts"},
    "bench.attacks.imported": {"bench.attacks", "bench.checkpoints", "bench.companions", "bench.data", "bench.errors",
                               "bench.foreign"},
    "bench.purified": {"bench.cell", "bench.chosen", "bench.dense", "bench.errors", "bench.files", "bench.scene"},
    "bench.rebuilt": set(),
    "bench.pickles": {"bench.rebuilt"},
    "bench.pieces": set(),
    "bench.checkpoints": {"bench.errors", "bench.pickles", "bench.pieces", "bench.rebuilt"},
    "bench.naming": {"bench.errors"},
    "bench.relearn": {"bench.chosen", "bench.data", "bench.errors", "bench.metrics", "bench.plan", "bench.scene",
                      "bench.training"},
    "bench.parts": {"bench.errors"},
    "bench.stored": {"analysis.schema", "analysis.settings", "bench.config", "bench.errors", "bench.parts", "bench.purified",
                     "bench.scene", "bench.shelf", "bench.signatures", "bench.store"},
    "bench.backdoorbench": {"bench.attacks", "bench.data", "bench.purified", "bench.scene"},
    "bench.api": {"bench.attacks", "bench.chosen", "bench.cli", "bench.config", "bench.data", "bench.defenses", "bench.errors",
                  "bench.metrics", "bench.models", "bench.pruning", "bench.run", "bench.stored", "bench.training"},
    "bench.export": {"bench.backdoorbench", "bench.config", "bench.errors", "bench.metrics", "bench.purified", "bench.scene",
                     "bench.stored"},
    "analysis": {"analysis"},
    "benchmarks": {"benchmarks", "bench", "analysis.render"} | {  # what it times, and what makes its tables
        f"bench.{part}" for part in ("attacks", "curve", "data", "datasets", "defenses", "errors", "files", "layers", "machine",
                                     "metrics", "models", "plan", "pruning", "training")},
}  # fmt: skip


SHARED = {"__init__", "base", "counts", "encoder", "features", "generators", "patterns"}
"""Files beside the methods that hold no method: what several share, and networks that a method's file has no room for."""


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def part(module: str, known=tuple(ALLOWED)) -> str | None:
    """The entry of ALLOWED that a module belongs to."""
    return next((k for k in sorted(known, key=len, reverse=True) if module == k or module.startswith(f"{k}.")), None)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_one_way(path):
    me = name(path)
    if me in ("bench", "bench.run"):  # run.py puts everything together
        return
    assert part(me), f"{me} has no entry in ALLOWED: say what it may import"
    for module in imports(path):
        if module.split(".")[0] in ("bench", "analysis", "benchmarks") and module != "bench":
            other = "bench" if module == "bench.PROTOCOL" or module == "bench.__version__" else part(module) or module
            wanted = {part(a) or a for a in ALLOWED[part(me)]} | ALLOWED[part(me)]
            assert other in wanted or module in wanted, f"{me} imports {module}"


@pytest.mark.parametrize(
    ("library", "only"),
    [
        ("hydra", {"bench.run"}),
        ("omegaconf", {"bench.run"}),
        ("wandb", {"bench.tracking", "analysis.dashboard"}),
        ("torch", None),
    ],
)
def test_libraries_stay_where_they_belong(library, only):
    users = {name(p) for p in SOURCES if any(m.split(".")[0] == library for m in imports(p))}
    if only is None:
        assert not {u for u in users if u.startswith("analysis")}, "analysis reads files; it needs no torch"
    else:
        assert users == only


def test_no_module_of_bench_hides_the_standard_library():
    """`python bench/run.py` puts bench/ first on the path."""
    assert not {p.stem for p in ROOT.glob("bench/*")} & set(sys.stdlib_module_names)


def test_a_finished_cell_loads_nothing_heavy():
    """What run.py imports before it knows that there is work to do must start in an instant."""
    code = (
        "import sys; from bench import cell, cli, config, sweep; print({'torch', 'pandas', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_weights_are_never_unpickled():
    """torch.load has one place, behind a guard; everything else reads safetensors."""
    for path in SOURCES:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        loads = [call for call in calls if ast.unparse(call.func) in ("torch.load", "torch.jit.load", "pickle.load")]
        assert not loads or name(path) == "bench.checkpoints", f"{path}: weights are read by bench.checkpoints"
        for call in loads:
            assert "weights_only=True" in ast.unparse(call), path


def test_every_method_file_has_its_config_and_paper():
    for kind in ("attacks", "defenses"):
        files = {p.stem for p in ROOT.glob(f"bench/{kind}/*.py")} - SHARED
        configs = {p.stem for p in (ROOT / "conf" / kind[:-1]).glob("*.yaml")}
        assert files == configs
        for path in sorted(ROOT.glob(f"bench/{kind}/*.py")):
            if path.stem in files - {"none", "random"}:
                assert "Departures:" in (ast.get_docstring(ast.parse(path.read_text())) or ""), path


def test_tables_set_apart_what_the_bench_tells_apart():
    """A cell's id and a row's settings leave out the same things, so that a new setting splits no table."""
    from analysis import settings
    from bench import config

    assert config.HOW | {"seed"} == settings.HOW
    assert settings.CARRIED_OUT == config.CARRIED_OUT
    assert {f"dataset.{key}" for key in config.DEFAULT} == settings.WHERE
    assert dict(settings.LATER) == config.LATER | {"model.checkpoint": None}


def test_files_stay_short():
    """What a method's first lines say of its paper and its departures is not to be squeezed: they do not count there."""
    for path in SOURCES:
        lines = len(path.read_text().splitlines())
        method = path.parent.name in ("attacks", "defenses") and path.stem not in SHARED
        if method:
            lines -= len((ast.get_docstring(ast.parse(path.read_text())) or "").splitlines())
        limit = 82 if method else 150 if path.stem == "run" else 270
        assert lines <= limit, f"{path} has {lines} lines, more than {limit}"
