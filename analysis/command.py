"""What the commands of analysis/ have in common: where they read, where they write, and what they say when they cannot."""

import argparse
import sys
from pathlib import Path

from analysis import render


def parser(name: str, description: str, folder: str) -> argparse.ArgumentParser:
    """With --runs and --out; `folder` is where the files go by default, inside the results; empty if there are none."""
    found = argparse.ArgumentParser(prog=f"python -m analysis.{name}", description=description)
    found.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where the results are (runs)")
    if folder:
        found.add_argument("--out", type=Path, metavar="DIR", help=f"where the files go ({folder}, inside the results)")
    return found


def document(found: argparse.ArgumentParser) -> None:
    """Adds --into: a Markdown file that the printed text is put into as well."""
    found.add_argument(
        "--into", type=Path, metavar="FILE", help="also put it into this Markdown file, between its marks"
    )


def put_into(path: Path, name: str, text: str) -> int:
    """Returns the exit status."""
    try:
        render.write(path, render.between(path.read_text(encoding="utf-8"), name, text))
    except OSError as error:
        return refuse(f"cannot write {path}: {error.strerror}.")
    except ValueError as error:
        return refuse(f"cannot put the table into {path}: {error}.")
    return 0


def refuse(sentence: str) -> int:
    """Says it, and returns the exit status."""
    print(sentence, file=sys.stderr)
    return 1


def no_cell(runs: Path) -> int:
    return refuse(f"There is no finished cell in {runs}: run bench/run.py first, or say --runs DIR.")


def no_room(out: Path, error: OSError) -> int:
    return refuse(f"cannot write to {out}: {error.strerror}. Choose another place with --out DIR.")
