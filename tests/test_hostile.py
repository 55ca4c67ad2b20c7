"""Files of strangers: configs, records, curves, archives, names. None runs anything, none leaves its folder.

Checkpoints have theirs in test_checkpoints.py, reports and the terminal in test_report.py and test_tables.py.
"""

import io
import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from test_bench import bench

from analysis import curves, load, render, schema, settings
from analysis.drawing import STYLE
from bench import archives, cell, config, run, signatures, trust
from bench.errors import UserError

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/golden_runs"

TARGETS = [
    "os.system", "posix.system", "subprocess.run", "subprocess.Popen", "builtins.exec", "builtins.eval", "pandas.read_pickle",
    "torch.load", "joblib.load", "numpy.load", "torch.hub.load", "pathlib.Path.write_text", "shutil.rmtree", "runpy.run_path",
    "importlib.import_module", "webbrowser.open", "hydra.utils.instantiate", "logging.os.system", "ctypes.CDLL",
    "bench.files.write", "bench.files.os.system", "bench.store.shutil.rmtree", "bench.datasets.np.load", "bench.cell.read",
    "bench.attacks.patterns.torch.load", "bench.models.torch.load", "bench.datasets._split",
    "bench.datasets.unpacked", "bench.tracking.Path", "bench.board.UserError", "bench.run.main", "bench",
    "${attack.name}", "bench.models.${oc.env:HOME}", "", 7, ["os.system"],
]  # fmt: skip
"""What a part of a config must not be: code of others, and what the bench's modules import or do for themselves."""

FILES = {
    "a callback": "hydra: {callbacks: {x: {_target_: pandas.read_pickle, filepath_or_buffer: MARK}}}",
    "the bench's callback, replaced": "hydra: {callbacks: {sweep: {_target_: pandas.read_pickle, filepath_or_buffer: MARK}}}",
    "a logging factory": "hydra: {job_logging: {handlers: {x: {(): pathlib.Path, path: MARK}}}}",
    "a logging class": "hydra: {job_logging: {handlers: {x: {class: logging.handlers.SocketHandler, host: h, port: 1}}}}",
    "an external object": "hydra: {hydra_logging: {handlers: {console: {stream: ext://os.environ}}}}",
    "a log elsewhere": "hydra: {job_logging: {handlers: {file: {filename: MARK}}}}",
    "a log above": "hydra: {job_logging: {handlers: {file: {filename: '${hydra.runtime.output_dir}/../x.log'}}}}",
    "a target in a list": "defense: {sweep: {points: [{_target_: os.system, command: 'touch MARK'}]}}",
    "a target below": "defense: {rule: {_target_: os.system, command: 'touch MARK'}}",
    "a target in the launcher": "hydra: {launcher: {additional_parameters: {x: {_target_: os.system}}}}",
    "another launcher": "hydra: {launcher: {_target_: hydra_plugins.x.y.os.system}}",
    "commands for the job": "hydra: {launcher: {setup: ['touch MARK']}}",
    "a line break in the job's script": 'hydra: {launcher: {comment: "gpu\\ntouch MARK"}}',
    "environment": "hydra: {job: {env_set: {LD_PRELOAD: MARK}}}",
    "environment, copied": "hydra: {job: {env_copy: [HOME]}}",
    "its own permission": "allow: [os]\nmodel: {_target_: os.path.join}",
    "permission by a sweep": "hydra: {sweeper: {params: {allow: '[os]'}}}\nallow: [os]",
    "permission below": "model: {_target_: os.path.join, allow: [os]}",
    "a token": "tracker: {token: abc}",
    "a password": "db_password: abc",
    "a key in the environment": "hydra: {job: {env_set: {WANDB_API_KEY: abc}}}",
    "a variable of the environment": "runs: '${oc.env:BACKPRUNE_TEST_SECRET}'",
    "a variable by a built name": "x: oc\nruns: '${${x}.env:BACKPRUNE_TEST_SECRET}'",
    "config out of text": "defense: '${oc.create:\"{_target_: os.system}\"}'",
    "text read as config": "runs: '${oc.decode:\"${oc.env:BACKPRUNE_TEST_SECRET}\"}'",
}
"""Config files that somebody may hand on as an experiment."""

TAGS = [
    "!!python/object/apply:os.system ['touch MARK']", "!!python/object/new:os.system ['touch MARK']",
    "!!python/name:os.system", "!!python/module:os", "!!python/object:bench.run.X {}", "!!python/tuple [1]",
]  # fmt: skip


@pytest.fixture
def mark(tmp_path):
    """A file that only a payload makes."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Composes the bench's config with somebody's experiment, as run.py does, and returns it as plain data."""
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", run.guarded)
    monkeypatch.setattr(sys, "argv", ["run.py", "experiment=theirs"])
    monkeypatch.setenv("BACKPRUNE_TEST_SECRET", "hunter2")
    before = dict(BaseContainer._resolvers)
    for name, function in {"run_id": lambda: "0", "cells": lambda: 1}.items():
        OmegaConf.register_new_resolver(name, function, replace=True)
    trust.forbid(OmegaConf.register_new_resolver)

    def made(text: str) -> dict:
        folder = tmp_path / "theirs/experiment"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "theirs.yaml").write_text(f"# @package _global_\n{text}\n")
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            words = [
                "experiment=theirs",
                "launcher=submitit_slurm",
                "threads=1",
                f"hydra.searchpath=[file://{folder.parent}]",
            ]
            monkeypatch.setattr(sys, "argv", ["run.py", *words])
            return run.plain(compose("config", words))

    yield made
    BaseContainer._resolvers = before


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_config_builds_the_benchs_parts_only(target, mark):
    """At whatever place it stands; what is permitted by its module is refused if it was made elsewhere."""
    for place in ({"model": {"_target_": target}}, {"defense": {"rule": [{"_target_": target}]}}):
        with pytest.raises(UserError, match="is nothing that a config may name"):
            trust.check(place, [])
            config.check(place.get("model", place.get("defense")), "model" if "model" in place else "defense")


def test_what_only_the_command_line_may_say(mark):
    """The same words are taken from the one who types."""
    for path, value in {"hydra.searchpath": ["pkg://x"], "hydra.job.env_set": {"A": "b"}, "allow": ["os"]}.items():
        node = made = {}
        for key in path.split(".")[:-1]:
            node = node.setdefault(key, {})
        node[path.rpartition(".")[2]] = value
        with pytest.raises(UserError, match="only taken from the command line"):
            trust.check(made, ["attack=badnets", f"{path}s=1"])
        trust.check(made, [f"{path}=1"])


def test_every_part_in_conf_is_permitted_and_found():
    names = set()
    for path in ROOT.glob("conf/**/*.yaml"):
        for where, value in trust.walk(OmegaConf.to_container(OmegaConf.load(path))):
            if where.endswith("_target_") and not where.startswith("hydra"):
                names.add(value)
    assert len(names) > 50
    for name in names:
        assert trust.permitted(name, []) and trust.own(signatures.find(name, ""), name, []), name


@pytest.mark.parametrize("name", FILES)
def test_a_strangers_config_is_refused_when_composed(name, foreign, mark):
    with pytest.raises(Exception) as caught:
        foreign(FILES[name].replace("MARK", str(mark)))
    causes, error = [], caught.value
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    assert any(isinstance(e, UserError) for e in causes), causes
    assert "hunter2" not in str(causes) and "abc" not in str(causes[0])


def test_a_harmless_config_of_a_stranger_is_composed(foreign):
    assert foreign("attack: {poison_rate: 0.05}")["attack"]["poison_rate"] == 0.05


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_makes_no_objects(tag, foreign, mark, tmp_path):
    text = tag.replace("MARK", str(mark))
    with pytest.raises(Exception, match=r"could not determine a constructor|not supported|Unsupported"):
        foreign(f"x: {text}")
    (tmp_path / "config.yaml").write_text(f"attack: {text}\n")
    with pytest.raises(ValueError):
        settings.read_settings(tmp_path / "config.yaml")


def test_nothing_happens_when_they_are_run(tmp_path, mark):
    """The bench itself, on the ones that Hydra alone would run: one sentence, exit status 1, no file but the bench's own."""
    for number, name in enumerate(("a callback", "a logging factory", "a token")):
        folder = tmp_path / f"theirs{number}/experiment"
        folder.mkdir(parents=True)
        (folder / "theirs.yaml").write_text("# @package _global_\n" + FILES[name].replace("MARK", str(mark)))
        status, said = bench(
            "experiment=theirs", f"hydra.searchpath=[file://{folder.parent}]", f"runs={tmp_path / 'runs'}"
        )
        assert status == 1 and said.count("error: ") == 1 and "Traceback" not in said, said
    assert not (tmp_path / "runs").exists()


RECORDS = {
    "NaN": ('"seed": 2', '"seed": NaN'),
    "Infinity": ('"max_drop": 3.0', '"max_drop": Infinity'),
    "1e999": ('"max_drop": 3.0', '"max_drop": 1e999'),
    "a number too long": ('"seed": 2', '"seed": ' + "9" * 5000),
    "above 100 %": ('"acc_fixed": ', '"acc_fixed": 1e3, "x": '),
    "a list for a name": ('"attack": ', '"attack": [], "x": '),
    "deep": ('"seed": 2', '"seed": ' + "[" * 50_000),
    "large": ('"seed": 2', '"seed": 2, "x": "' + "x" * (1 << 20) + '"'),
    "another schema": ('"schema": 1', '"schema": "1; DROP TABLE"'),
    "not text": ('"seed": 2', '"seed": \xff'),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_strangers_record_is_read_as_data(name, tmp_path):
    """Not counted, and said why; the bench takes the cell for unfinished. Neither needs more than a moment."""
    folder = tmp_path / "runs" / "digits/vgg5/badnets/clp/s2-0"
    folder.mkdir(parents=True)
    text = next(GOLDEN.rglob("record.json")).read_text()
    old, new = RECORDS[name]
    old = old if old in text else old.split(":")[0] + ": " + str(json.loads(text)[old.split('"')[1]])
    assert old in text
    (folder / "record.json").write_bytes(text.replace(old, new, 1).encode("latin-1"))
    rows, _ = load.read(tmp_path / "runs")
    assert [row["kind"] for row in rows] == ["damaged"] and len(rows[0]["what"]) < 300
    if name not in ("1e999", "above 100 %", "a number too long"):  # the bench itself reads no more than it prints
        assert cell.read(folder) is None or name in ("NaN", "Infinity", "a list for a name")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "link to a device", "link to a secret"])
def test_what_is_no_ordinary_file_is_not_read(kind, tmp_path):
    path, secret = tmp_path / "record.json", tmp_path / "secret"
    secret.write_text("hunter2")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if "device" in kind else secret)
    with pytest.raises((ValueError, OSError)) as caught:
        schema.read_record(path)
    assert "hunter2" not in str(caught.value)


CURVES = ["", "at,pruned\n1,2", "at,pruned,acc,asr,ra,select_acc\n1,=cmd|' /C calc'!A0,1,1,1,1",
          "at,pruned,acc,asr,ra,select_acc\n1,nan,1,1,1,1", "at,pruned,acc,asr,ra,select_acc\n1,1e999,1,1,1,1",
          "at,pruned,acc,asr,ra,select_acc\n1,1,1e9,1,1,1", "\x00" * 100, '"' + "x" * 200_000, "x" * (2 << 20)]  # fmt: skip


@pytest.mark.parametrize("text", CURVES, ids=range(len(CURVES)))
def test_a_strangers_curve_is_numbers_or_nothing(text, tmp_path):
    (tmp_path / "curve.csv").write_text(text)
    points, why = curves.read_curve(tmp_path / "curve.csv")
    assert points == [] and 0 < len(why) < 300


def tar(path: Path, *members: tuple[str, dict, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, facts, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in facts.items():
                setattr(info, key, value)
            file.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, *members: tuple[str, int, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, mode, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return path


TARS = {
    "above": [("../executed", {}, b"x")],
    "far above": [("a/../../../executed", {}, b"x")],
    "absolute": [("/tmp/backprune-executed", {}, b"x")],
    "a drive": [("C:\\executed", {}, b"x")],
    "a link": [("l", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, b"")],
    "through a link": [("l", {"type": tarfile.SYMTYPE, "linkname": ".."}, b""), ("l/executed", {}, b"x")],
    "a hard link": [("l", {"type": tarfile.LNKTYPE, "linkname": "../executed"}, b"")],
    "a device": [("d", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b"")],
    "a pipe": [("p", {"type": tarfile.FIFOTYPE}, b"")],
    "a folder above": [("../executed", {"type": tarfile.DIRTYPE}, b"")],
    "case": [("train/a.png", {}, b"x"), ("train/A.PNG", {}, b"y")],
    "twice": [("a.png", {}, b"x"), ("a.png", {}, b"y")],
    "a file as a folder": [("a", {}, b"x"), ("a/b", {}, b"y")],
    "control characters": [("a\x1b[2Jb", {}, b"x")],
    "a bomb": [("a", {}, bytes(3 << 20))],
}


@pytest.mark.parametrize("name", TARS)
def test_archives_stay_in_their_folder(name, tmp_path, mark, monkeypatch):
    monkeypatch.setattr(archives, "RATIO", 2)
    (tmp_path / "in").mkdir()
    archive = tar(tmp_path / "in/x.tar.gz", *TARS[name])
    with pytest.raises(UserError):
        archives.unpacked(archive, tmp_path / "in/cache")
    assert not list((tmp_path / "in/cache").iterdir()) and {p.name for p in tmp_path.iterdir()} == {"in"}
    assert not Path("/tmp/backprune-executed").exists()


ZIPS = {
    "above": [("../executed", 0o100644, b"x")],
    "a link": [("l", 0o120777, b"/etc/passwd")],
    "a device": [("d", 0o020644, b"")],
    "a bomb": [("a", 0o100644, bytes(3 << 20))],
}


@pytest.mark.parametrize("name", ZIPS)
def test_zips_too(name, tmp_path, mark, monkeypatch):
    monkeypatch.setattr(archives, "RATIO", 2)
    with pytest.raises(UserError):
        archives.unpacked(zipped(tmp_path / "x.zip", *ZIPS[name]), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_an_ordinary_archive_is_unpacked_once(tmp_path, monkeypatch):
    """As are its folders; it is read again only if it changed."""
    folder = {"type": tarfile.DIRTYPE}
    one = tar(
        tmp_path / "x.tar.gz", ("./train", folder, b""), ("./train/a/1.png", {}, b"1"), ("test/a/2.png", {}, b"2")
    )
    place = archives.unpacked(one, tmp_path / "cache")
    assert (place / "train/a/1.png").read_bytes() == b"1" and (place / "test/a/2.png").read_bytes() == b"2"
    two = zipped(tmp_path / "x.zip", ("train/a/1.png", 0o100644, b"1"))
    assert (archives.unpacked(two, tmp_path / "cache") / "train/a/1.png").read_bytes() == b"1"
    monkeypatch.setattr(archives, "unpack", None)
    assert archives.unpacked(one, tmp_path / "cache") == place
    (tmp_path / "y.tar.gz").write_bytes(one.read_bytes()[:90])
    monkeypatch.undo()
    with pytest.raises(UserError, match="cannot be read as an archive"):
        archives.unpacked(tmp_path / "y.tar.gz", tmp_path / "cache")


NAMES = ["=1+1", "+1", "-1", "@x", "\t=1", " =1", "$\\frac{$", "\\input{/etc/passwd}", "\\write18{x}", "a & b", "x_{", "%", "|a|",
         "<script>alert(1)</script>", "![x](http://h)", "[x](javascript:x)", "`x`", "\x1b]0;x\x07", "a\u202eb"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_text_in_every_sink(name):
    value = render.csv_value(name)
    assert not value.lstrip().startswith(("=", "+", "-", "@")) and value.isprintable()
    tex = render.tex(name)
    assert "\\input" not in tex and "\\write" not in tex and "<" not in tex and tex.isprintable()
    md = render.md(name)
    assert "<script" not in md.replace("\\<", "") and "](" not in md.replace("\\]", "") and md.isprintable()
    with plt.rc_context(STYLE):
        figure = plt.figure()
        figure.text(0, 0, name)
        figure.savefig(io.BytesIO(), format="svg")
        plt.close(figure)


def test_the_payloads_are_enough():
    counts = [TARGETS, FILES, TAGS, RECORDS, CURVES, TARS, ZIPS, NAMES]
    assert sum(map(len, counts)) >= 60
