"""The bench from the outside: what a user types, what lies on disk afterwards, and what goes wrong well."""

import json
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from cells import NARROW
from PIL import Image

from analysis.settings import read_settings
from bench import machine

ROOT = Path(__file__).parent.parent
PLAIN = ["train.epochs=1", "threads=1", "gate.max_drop=null"]
"""Without a clean model to compare with, unless a test is about it."""
QUICK = [*PLAIN, NARROW]
ENV = os.environ | {"WANDB_MODE": "", "WANDB_API_KEY": "", "OMP_NUM_THREADS": "1"}


def start(*words: str, cwd: Path = ROOT) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "bench/run.py"), *words]
    return subprocess.Popen(command, cwd=cwd, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def alone(*words: str) -> tuple[int, str]:
    """(exit status, everything it printed) of a process like any other, in the environment as it is now."""
    process = start(*words)
    out, err = process.communicate(timeout=300)
    return process.returncode, out + err


SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.warm"])


def bench(*words: str) -> tuple[int, str]:
    """As `alone`, quicker: forked from a process that has loaded torch but run nothing (warm.py).

    Not for what has children of its own (parallel launchers), nor for faults, which are armed when a process starts.
    """
    with tempfile.NamedTemporaryFile("r") as said:
        process = SERVER.Process(target=as_typed, args=(words, said.name))
        process.start()
        process.join(300)
        assert process.exitcode is not None, "it takes longer than five minutes"
        return process.exitcode, said.read()


def as_typed(words: tuple[str, ...], said: str) -> None:
    file = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ |= ENV
    os.chdir(ROOT)
    sys.argv = [str(ROOT / "bench/run.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def records(runs: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(runs.glob("*/*/*/*/*/record.json"))]


def cards(runs: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in runs.glob("backdoors/**/card.json")}


def leftovers(runs: Path) -> list[Path]:
    return [path for path in runs.rglob("*") if ".tmp-" in path.name]


def test_a_sweep_trains_each_model_once_and_never_repeats_a_cell(tmp_path):
    sweep = ["-m", "attack=badnets,none", "defense=none,clp,ft", *QUICK, f"runs={tmp_path}"]
    status, said = bench(*sweep)
    assert status == 0, said
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    made = cards(tmp_path)
    assert len(first) == 6 and len(made) == 2
    for record in records(tmp_path):
        assert record["schema"] == 1 and record["clean"] == 500 and record["triggered"] == 450
        assert record["acc"] == pytest.approx(100 * record["right"] / 500)
        assert {f"asr_{rule}" for rule in ("fixed", "clean_drop", "oracle")} <= record.keys()
    status, said = bench(*sweep)
    assert status == 0 and said.count("done already") == 6
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")} == first and cards(
        tmp_path
    ) == made
    folder = next(tmp_path.glob("digits/vgg5/badnets/clp/s*"))
    assert {"record.json", "curve.csv", "scores.csv", "layers.csv", "run.log", ".hydra"} == {
        p.name for p in folder.iterdir()
    }


def test_the_folder_depends_on_what_is_composed_not_on_what_was_typed(tmp_path):
    """Spelling out a default is the same cell; changing a defence's setting is another cell of the same backdoor."""
    base = ["defense=clp", *QUICK, f"runs={tmp_path}", f"train.precision={machine.precision('cpu')}"]
    assert bench(*base)[0] == 0
    status, said = bench(*base, "device=cpu", "train.precision=auto")
    assert status == 0 and "done already" in said
    assert all("auto" not in read_settings(path)["train.precision"] for path in tmp_path.rglob("config.yaml"))
    status, said = bench("attack=badnets", "defense.rule.at=3.0", "device=cpu", *base)
    assert status == 0 and "done already" in said
    assert bench("defense.rule.at=2.0", *base)[0] == 0
    assert bench("attack.poison_rate=0.05", *base)[0] == 0
    assert len(records(tmp_path)) == 3 and len(cards(tmp_path)) == 2


def test_a_picture_as_pattern_that_is_drawn_anew_is_another_attack(tmp_path):
    picture = tmp_path / "mine.png"
    words = [f"attack.pattern={picture}", "defense=none", *QUICK, f"runs={tmp_path / 'runs'}"]
    for shade in (200, 100):
        Image.new("RGB", (16, 16), (shade, 0, 0)).save(picture)
        status, said = bench(*words)
        assert status == 0 and "done already" not in said, said
    assert len(records(tmp_path / "runs")) == len(cards(tmp_path / "runs")) == 2
    status, said = bench(*words)
    assert status == 0 and "done already" in said


def test_a_poisoned_mix_goes_to_defences_that_need_one(tmp_path):
    """The record says how many images it had; a mix that cannot be drawn is one sentence, before anything is trained."""
    base = [*QUICK, f"runs={tmp_path}"]
    status, said = bench("-m", "defense=none,ep", "clean.mix=150", *base)
    assert status == 0, said
    assert {r["defense"]: (r["needs"], r["mix"]) for r in records(tmp_path)} == {
        "none": ("nothing", 0),
        "ep": ("poisoned", 150),
    }
    for size in ("100000", "0"):
        status, said = bench("defense=ep", f"clean.mix={size}", "seed=9", *base)
        assert status == 1 and "must be at least 1 and at most 1097" in said and "Traceback" not in said
    assert len(cards(tmp_path)) == 1


def test_a_clean_model_says_whether_the_attack_took(tmp_path):
    """It is trained once, is that of attack=none, and is not needed where nothing is compared with it."""
    base = ["defense=none", "train.epochs=2", "threads=1", NARROW, f"runs={tmp_path}"]
    assert bench("-m", "attack=badnets,blend,none", "gate.min_asr=101", *base)[0] == 0
    assert len(cards(tmp_path)) == 3
    found = {r["attack"]: r for r in records(tmp_path)}
    clean = found["none"]
    for record in found.values():
        assert record["clean_model"] == clean["backdoor"] and record["clean_model_acc"] == clean["acc_before"]
    assert clean["took"] and not found["badnets"]["took"]
    assert bench("attack=badnets", "gate.min_asr=0", "gate.max_drop=100", *base)[0] == 0
    assert [r["took"] for r in records(tmp_path) if r["attack"] == "badnets"].count(True) == 1
    assert bench("attack=badnets", "gate.max_drop=null", "seed=7", *base)[0] == 0
    assert len(cards(tmp_path)) == 4 and {r["clean_model"] for r in records(tmp_path) if r["seed"] == 7} == {None}


def test_the_same_config_gives_the_same_numbers(tmp_path):
    """In another folder, another process, and with the backdoor trained or only loaded."""
    for place in ("a", "b"):
        if place == "b":
            bench("defense=none", *QUICK, f"runs={tmp_path / place}")
        assert bench("defense=rnp", "defense.unlearn.epochs=2", *QUICK, f"runs={tmp_path / place}")[0] == 0
    one, two = (next(r for r in records(tmp_path / p) if r["defense"] == "rnp") for p in ("a", "b"))
    changing = ("seconds", "peak_memory", "digest_record")
    assert {k: v for k, v in one.items() if not k.startswith(changing)} == {
        k: v for k, v in two.items() if not k.startswith(changing)
    }
    curves = [next((tmp_path / p).glob("digits/*/*/rnp/*/curve.csv")).read_bytes() for p in ("a", "b")]
    assert curves[0] == curves[1]


WRONG = {
    "attack.poison_rate=1.5": "attack.poison_rate=1.5 must be a number above 0 and at most 1",
    "attack.poison_rate=lots": "attack.poison_rate=lots must be a number",
    "+attack.poisonrate=0.1": "did you mean 'poison_rate'",
    "attack.poisonrate=0.1": "did you mean 'poison_rate'",
    "defence=clp": "did you mean 'defense'",
    "defense=clpp": "did you mean 'clp'",
    "attack.target=10": "attack.target=10 does not exist: the data set has classes 0 to 9",
    "attack.victims=target attack.poison_rate=0.5": "attack.poison_rate=0.5 asks for 548 images, but attack.victims=target",
    "attack.pattern=missing.png": "neither a known pattern nor an image file",
    "selection.rule=best": "selection.rule=best is unknown",
    "clean.tune=1000": "only 200 are held out",
    "clean.source=train clean.tune=2000": "only 1097 are in the training set",
    "clean.source=test": "clean.source=test is unknown",
    "clean.balance=even": "clean.balance=even is unknown",
    "gate.min_asr=high": "gate.min_asr=high must be a number",
    "dataset=imagefolder": "dataset.root is not set",
    "dataset=cifar10 dataset.root=NOWHERE": "dataset.download=true fetches it",
    "dataset=cifar10 dataset.root=NOWHERE dataset.download=true": "put cifar-10-python.tar.gz",
    "model.checkpoint=": "model.checkpoint is empty",
    "device=nonsense": "device=nonsense cannot be used here",
    "runs=/dev/null/x": "cannot use /dev/null",
    "train.lr=1e30": "training diverged",
    "seed=abc": "seed=abc must be a whole number",
    "attack=none check=relearn gate.max_drop=null train.epochs=1": "this attack puts nothing on an image",
    "seed=null": "seed=null must be a whole number",
    "selection.max_drop=-1": "selection.max_drop=-1 must be at least 0",
    "dataset.mean=[]": "dataset.mean=[] must be numbers, one for each of 3 channels",
    "dataset.std=[a,b,c]": "dataset.std=['a', 'b', 'c'] must be numbers, one for each of 3 channels",
}


def test_wrong_input_is_one_clear_sentence(tmp_path):
    """Never a bare traceback, never a zero exit, no record; offline downloads need no network to fail here."""

    def one(case: str) -> tuple[int, str]:
        words = case.replace("NOWHERE", str(tmp_path / "nowhere")).split()
        return bench(*PLAIN, f"runs={tmp_path / 'runs'}", *words)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for case, (status, said) in zip(WRONG, pool.map(one, WRONG), strict=True):
            assert status == 1, f"{case}: {said}"
            assert WRONG[case] in said, f"{case}: {said}"
            assert "Traceback" not in said and "Error executing job" not in said, f"{case}: {said}"
    assert not records(tmp_path / "runs")


NAMELESS = {
    "seed=2,3 selection.max_drop=nan": "selection.max_drop=nan must be finite",
    "seed=2,3 dataset.std=[1,1,inf]": "dataset.std=[1, 1, inf] must be finite",
    "seed=2,3 clean=null": "clean=null must be settings",
    "~tracker": "tracker=null must be settings",
    "tracker=null": "tracker=null is no choice: there is: none, tensorboard, wandb.",
    "experiment=rnp_tabel1": "experiment=rnp_tabel1 does not exist: did you mean 'rnp_table1'",
    "seed=2,3 scale=cpu,cpuu": "scale=cpuu does not exist: did you mean 'cpu'",
    "then=tf": "then=tf does not exist: there is: ft.",
    "experiment=clp train=fast": "train=fast would be overwritten by experiment=clp",
    "experiment=clp,rnp_log": "one experiment per command",
    "attack=glob(xyz*)": "this sweep has no cell in it",
    "dataset=cifar10,gtsrb dataset.download=true": "in a sweep over datasets write ++dataset.download=VALUE",
    "launcher=joblib workers=0": "workers=0: there must be at least one",
    "runs=/tmp/ü": "a value with such characters needs quotes within the shell's, \"runs='/tmp/ü'\".",
    "check=again": "check=again does not exist: there is: relearn.",
    "runs=": "runs= must be a folder",
    "runs=null": "runs=null must be a folder",
}
if find_spec("ray") is None:
    NAMELESS["launcher=ray"] = "launcher=ray needs a package that is not installed: pip install 'backprune[ray]'"


def test_what_keeps_a_cell_from_being_named_is_said_before_it_has_a_folder(tmp_path):
    for case, says in NAMELESS.items():
        status, said = bench("-m", *PLAIN, f"runs={tmp_path / 'runs'}", *case.split())
        assert status == 1 and says in said and "Traceback" not in said and "resolving" not in said, f"{case}: {said}"
    assert not list(tmp_path.rglob("s[23]-*"))


def test_a_finished_cell_is_no_answer_to_settings_that_do_not_exist(tmp_path):
    words = ["attack=none", "defense=none", *QUICK, f"runs={tmp_path}"]
    assert bench(*words)[0] == 0
    for wrong in ("device=gpu", "retry=nver", "threads=0"):
        status, said = bench(*words, wrong)
        assert status == 1 and f"error: {wrong} " in said and "done already" not in said, said
    (record,) = tmp_path.rglob("record.json")
    assert not (record.parent / "error.txt").exists()


def test_other_images_in_the_same_folder_are_no_finished_cell(tmp_path):
    """Touched ones are the same: they are looked into. Without them the record stands."""
    root, draw = tmp_path / "images", np.random.default_rng(0)

    def paint(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place)

    for number in range(24):
        for part in ("train", "test"):
            paint(root / part / "ab"[number % 2] / f"{number}.png")
    words = [
        f"dataset.root={root}",
        "dataset.size=16",
        "dataset.heldout=8",
        "clean.tune=4",
        "clean.select=4",
        "attack=none",
    ]
    words += ["defense=none", "model=vgg5", "train=digits", "train.batch_size=8", *QUICK, f"runs={tmp_path / 'runs'}"]
    assert bench(*words)[0] == 0
    os.utime(root / "train/a/0.png", (1, 1))
    status, said = bench(*words)
    assert status == 0 and "done already" in said, said
    paint(root / "train/a/0.png")
    status, said = bench(*words)
    assert (
        status == 1 and "error: dataset.root=" in said and "holds other images" in said and "done already" not in said
    ), said
    root.rename(tmp_path / "gone")
    status, said = bench(*words)
    assert status == 0 and "done already" in said, said


def test_a_failed_cell_leaves_its_traceback_and_stops_nothing(tmp_path):
    status, said = bench("-m", "attack.pattern=missing.png,white3", "defense=none", *QUICK, f"runs={tmp_path}")
    assert status == 1 and "1 of 2 cells failed" in said and "neither a known pattern" in said
    assert len(records(tmp_path)) == 1
    (error,) = tmp_path.rglob("error.txt")
    assert "Traceback" in error.read_text()


def test_memory_that_is_not_there_fails_one_cell_and_secrets_are_nowhere(tmp_path, monkeypatch):
    """An allocation that the system refuses, for real: its sentence, traceback and settings are kept; no variable of the
    environment is in any file."""
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setitem(ENV, name, "hunter2hunter2")
    words = ["attack=none", "defense=none", *PLAIN, f"runs={tmp_path}"]
    status, said = bench("-m", "model.layers=[35184372088832],[8]", *words)
    assert status == 1 and "1 of 2 cells failed" in said and "this machine ran out of memory" in said, said
    (error,) = tmp_path.rglob("error.txt")
    assert "Traceback" in error.read_text() and "this machine ran out" in error.read_text().splitlines()[-1]
    assert "35184372088832" in (error.parent / ".hydra/config.yaml").read_text()
    assert len(records(tmp_path)) == 1 and not leftovers(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if b"hunter2" in path.read_bytes()] and "hunter2" not in said


def test_a_damaged_model_is_named_set_aside_and_made_again(tmp_path):
    base = ["attack=none", *QUICK, f"runs={tmp_path}"]
    assert bench("defense=none", *base)[0] == 0
    (card,) = cards(tmp_path)
    weights = card.parent / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    status, said = bench("defense=clp", *base)
    assert status == 0 and "is damaged" in said and "made again" in said
    (kept,) = card.parent.parent.glob("*.damaged-*/model.safetensors")
    assert kept.read_bytes() == content and weights.read_bytes() != content
    assert len(records(tmp_path)) == 2


def test_two_processes_train_one_model(tmp_path):
    words = ["train.epochs=6", "threads=1", f"runs={tmp_path}"]
    both = [start("defense=none", *words), start("defense=clp", *words)]
    said = ["".join(p.communicate(timeout=300)) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert len(cards(tmp_path)) == 2 and len(records(tmp_path)) == 2
    waited = [set(re.findall(r"another process is training this model, (\S+) \(", text)) for text in said]
    assert waited[0] | waited[1] and not waited[0] & waited[1], said  # two models: either process may train the second
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_loses_nothing_and_goes_on(tmp_path, blow):
    """Ctrl-C says so and exits with 130; after either, the same command finishes and leaves nothing half-made."""
    words = ["-m", "attack=none", "defense=none,clp", NARROW, f"runs={tmp_path}", "threads=1", "train.epochs=300"]
    process = start(*words)
    lock = None
    while lock is None and process.poll() is None:  # training has begun once its lock is there
        lock = next(tmp_path.glob("backdoors/*/*/*/.*.lock"), None)
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(blow)
    _, err = process.communicate(timeout=60)
    if blow == signal.SIGINT:
        assert process.returncode == 130 and "Interrupted" in err and "Traceback" not in err
    assert not records(tmp_path) and not cards(tmp_path)
    words[-1] = "train.epochs=1"
    status, said = bench(*words)
    assert status == 0, said
    assert len(records(tmp_path)) == 2 and len(cards(tmp_path)) == 1 and not leftovers(tmp_path)


PATIENT = """
import sys, time
from bench import cli
cli.stoppable()
try:
    import struck
    time.sleep(300)
except KeyboardInterrupt:
    sys.exit("whole" if hasattr(sys.modules.get("struck"), "end") else "torn")
"""


@pytest.mark.parametrize("blow", ["SIGINT", "SIGTERM"])
def test_an_interruption_waits_for_the_end_of_an_import(tmp_path, blow):
    """Within one, compiled code may run Python and abort the process when that raises. It ends what comes after, a sleep too."""
    (tmp_path / "struck.py").write_text(
        f"import signal, time\nsignal.raise_signal(signal.{blow})\ntime.sleep(0.1)\nend = 1"
    )
    env = ENV | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    process = subprocess.run([sys.executable, "-c", PATIENT], env=env, text=True, capture_output=True, timeout=120)
    assert process.stderr.splitlines()[-1:] == ["whole"], process.stderr


def test_help_is_for_people():
    status, said = bench("--help")
    assert status == 0
    for word in ("ASR", "attack=badnets", "make tables", "badnets, blend", "selection.max_drop"):
        assert word in said


def test_one_folder_for_two_cells_is_refused(tmp_path):
    """Hydra can be told to; a finished cell would be handed out as another."""
    words = (*PLAIN, "attack=none", "defense=none", f"runs={tmp_path / 'runs'}", f"hydra.run.dir={tmp_path / 'one'}")
    assert bench(*words)[0] == 0
    status, said = bench(*words, "seed=9")
    assert status == 1 and "holds another cell (none / none / seed 2): let the bench name the folders" in said
