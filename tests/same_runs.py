"""Whether two folders of runs hold the same results: python tests/same_runs.py ONE OTHER (lists what differs, exit status 1).

Compared: which cells there are, all of each record but what a clock or a memory gauge said, the commit, and the digest over
all of it; every byte of curves and scores, and the digests of the stored models' weights.
"""

import hashlib
import json
import sys
from pathlib import Path

MEASURED = ("seconds", "peak_memory", "commit", "digest_record")


def content(runs: Path) -> dict[str, object]:
    """What a result is, by the path of the file (and field) that holds it."""
    found: dict[str, object] = {}
    for path in sorted(p for p in runs.rglob("*") if p.name in ("record.json", "card.json", "curve.csv", "scores.csv")):
        where = str(path.relative_to(runs))
        if path.name == "record.json":
            record = json.loads(path.read_text())
            found |= {f"{where} {key}": value for key, value in record.items() if not key.startswith(MEASURED)}
        elif path.name == "card.json":
            digests = json.loads(path.read_text())["sha256"]
            found |= {f"{where} {name}": digest for name, digest in digests.items() if name != "card"}
        else:
            found[where] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(one: Path, other: Path) -> list[str]:
    a, b = content(one), content(other)
    return [
        f"{key}: {a.get(key, 'absent')} | {b.get(key, 'absent')}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


if __name__ == "__main__":
    one, other = map(Path, sys.argv[1:3])
    found = differences(one, other)
    cells, models = (len(list(one.rglob(name))) for name in ("record.json", "card.json"))
    print("\n".join(found[:50]) if found else f"{other.name} = {one.name}: {cells} cells, {models} models")
    sys.exit(1 if found or not cells else 0)
