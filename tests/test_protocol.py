# ruff: noqa: E501 - a bug is a line of source, whatever its length
"""The protocol holds, in memory, through power cuts, full disks and three workers at once; and bugs in it are found.

Stated as functions in protocol.py, so that each can be held against ours and against ours with a bug put in.
"""

import protocol
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import files, shelf, turn


@pytest.fixture
def own():
    """A copy of the module, whose `os` may be changed."""
    return protocol.mutant(files, "import os\n", "import os\n")


def test_what_is_acknowledged_survives_a_power_cut_and_nothing_is_ever_torn(own):
    assert protocol.power(own) > 1000


def test_three_workers_and_one_result(own):
    protocol.walks(own, 300)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), max_size=60), st.integers(0, 99))
def test_three_workers_in_an_order_of_hypothesis(order, seed):
    steps = iter(order)

    def choose(alive):
        who, dies = next(steps, (0, 1))
        return alive[who % len(alive)], dies == 0

    protocol.walk(protocol.mutant(files, "import os\n", "import os\n"), choose, seed=seed)


def test_a_failing_file_system_is_reported_and_leaves_nothing_half_made(own):
    protocol.refusals(own)


def test_turns(tmp_path):
    protocol.turns(protocol.mutant(turn, "import time\n", "import time\n"), tmp_path)


def test_shelves(tmp_path):
    protocol.shelves(protocol.mutant(shelf, "import json\n", "import json\n"), tmp_path)


BUGS = {
    "a file is not synced": (files, "power", "                os.fsync(file)\n        finally", "                pass\n        finally"),
    "a published name is not synced": (files, "power", '    faults.hit("publish.folder")\n    settle(path.parent)\n', ""),
    "a replaced name is not synced": (files, "power", "        settle(path.parent)\n\n\ndef write_all", "        pass\n\n\ndef write_all"),
    "a folder's files are not synced": (files, "power", "        settle(*(temporary / name for name in os.listdir(temporary)))\n", ""),
    "a folder's names are not synced": (files, "power", "        settle(temporary)\n", ""),
    "a new folder's name is not synced": (files, "power", "        settle(folder.parent)\n", ""),
    "a folder made on the way is not synced": (files, "power", "    else:\n        settle(path.parent)\n", ""),
    "several files are not synced": (files, "power", "        settle(*made.values())\n", ""),
    "the names of several files are not synced": (files, "power", "    settle(folder)\n\n\ndef _whole", "    pass\n\n\ndef _whole"),
    "written in place": (files, "power", "    temporary = path.with_name(f\".tmp-{uuid.uuid4().hex[:16]}\")\n    left", "    temporary = path\n    left"),
    "replaced instead of linked": (files, "walks", "os.link(temporary, path)", "os.replace(temporary, path)"),
    "looked first, then replaced": (
        files,
        "walks",
        "            os.link(temporary, path)\n",
        "            if os.path.lexists(path):\n                raise FileExistsError(17, '')\n            os.rename(temporary, path)\n",
    ),
    "who came second is told that it won": (files, "walks", "                mine = False", "                mine = True"),
    "a lost reply counts as a failure": (files, "walks", ".st_nlink == 2", ".st_nlink == 3"),
    "a short write counts as whole": (files, "power", "while left:", "if left:"),
    "a failure leaves the temporary file": (files, "refusals", "        _remove(temporary)  # a full disk would stay full otherwise\n", ""),
    "a failure to sync is swallowed": (files, "refusals", "        os.fsync(file)\n    except", "        with suppress(OSError):\n            os.fsync(file)\n    except"),
    "a lock is broken by the file's age": (turn, "turns", "time.monotonic() - since > GRACE", "time.time() - beat.stat().st_mtime > GRACE"),
    "a lock is broken by the wall clock": (turn, "turns", "time.monotonic()", "time.time()"),
    "nobody looks at other machines": (turn, "turns", "        elsewhere(beat, clock)\n", ""),
    "who died is waited for": (turn, "turns", 'now.split(" ")[0] != here()', "True"),
    "it goes on counting": (turn, "turns", "                beat.unlink(missing_ok=True)\n", "                pass\n"),
    "who was taken over goes on counting": (turn, "turns", " and ours(beat)", ""),
    "who was taken over ends the other's count": (turn, "turns", "if ours(beat):", "if True:"),
    "a digest is not compared": (shelf, "shelves", "or files.sha256(ordinary(folder / name)) != expected", ""),
    "the card is not compared": (shelf, "shelves", 'if named.pop("card") != ', 'if named.pop("card") and not '),
    "who waited does not look again": (shelf, "shelves", "    with turn(folder, doing):\n        if found := usable(folder):\n            return found\n", "    with turn(folder, doing):\n"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_bugs_in_the_protocol_are_found(bug, tmp_path):
    module, check, old, new = BUGS[bug]
    broken = protocol.mutant(module, old, new, 5 if bug == "a lock is broken by the wall clock" else 1)
    arguments = [tmp_path] if check in ("turns", "shelves") else []
    with pytest.raises((AssertionError, FileExistsError)):
        getattr(protocol, check)(broken, *arguments)
