"""A table as Markdown, LaTeX or CSV text. Names come from folders and files of others, so every text is escaped here."""

from __future__ import annotations

import csv
import io
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """One cell of a table. `style`: best, second, struck (its attack did not take) or nothing."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Grid:
    """`groups`: (heading, columns below it); an empty heading for columns that stand alone. `texts`: how many are no numbers.

    `heads`: row -> what the rows from there on have in common; there is a rule above it.
    """

    groups: Sequence[tuple[str, Sequence[str]]]
    rows: Sequence[Sequence[Entry]]
    texts: int
    heads: Mapping[int, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return [f"{heading} {column}".strip() for heading, columns in self.groups for column in columns]


WIDEST, BLOCK = 30, 17  # columns that can be read side by side on a screen or page; of each part where there are more
LETTERS = 7  # of a column of texts, which count as one column of numbers


def blocks(grid: Grid) -> list[Grid]:
    """A wide grid as several below each other, each with the first group's columns; a group of columns is never torn."""
    (first, *groups), kept = grid.groups, len(grid.groups[0][1])
    if grid.texts < kept:
        return [grid]
    longest = [max((len(row[i].text) for row in grid.rows), default=0) for i in range(kept, grid.texts)]
    wide = [1.0] * kept + [max(1.0, length / LETTERS) for length in longest]
    wide += [1.0] * (len(grid.columns) - len(wide))
    if sum(wide) <= WIDEST:
        return [grid]
    parts: list[list[int]] = [[]]
    starts = [kept + sum(len(columns) for _, columns in groups[:i]) for i in range(len(groups))]
    spans = [range(start, start + len(columns)) for start, (_, columns) in zip(starts, groups, strict=True)]
    for i in range(len(groups)):
        if parts[-1] and kept + sum(wide[c] for j in (*parts[-1], i) for c in spans[j]) > BLOCK:
            parts.append([])
        parts[-1].append(i)
    found = []
    for part in parts:
        columns = [*range(kept), *(c for i in part for c in spans[i])]
        rows = [[row[c] for c in columns] for row in grid.rows]
        texts = sum(c < grid.texts for c in columns)
        found.append(Grid([first, *(groups[i] for i in part)], rows, texts, grid.heads))
    return found


@dataclass(frozen=True)
class Table:
    title: str
    caption: Sequence[str]
    grid: Grid
    more: Sequence[tuple[str, Grid]]  # grids below the first, under their own titles
    notes: Sequence[str]


def listed(values: Iterable[Any], by: str = ", ") -> str:
    return by.join(map(str, values))


def plain(text: str) -> str:
    """Without line breaks and without control, direction or other unprintable characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


# -- Markdown ----------------------------------------------------------------------------------------------------------
MARKDOWN = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is a plain one


def md(text: str) -> str:
    return MARKDOWN.sub(r"\\\g<0>", plain(text))


MD_STYLES = {"": "{}", "best": "**{}**", "second": "_{}_", "struck": "~~{}~~"}


def markdown(tables: Sequence[Table], problems: Sequence[str]) -> str:
    parts = []
    for table in tables:
        parts += [f"### {md(table.title)}", " ".join(map(md, table.caption))]
        parts += map(md_grid, blocks(table.grid))
        for title, grid in table.more:
            parts += [f"{md(title)}:", *map(md_grid, blocks(grid))]
        parts += ["\n".join(f"- {md(note)}" for note in table.notes)] if table.notes else []
    if problems:
        parts += ["### Problems", "\n".join(f"- {md(problem)}" for problem in problems)]
    return "\n\n".join(parts) + "\n"


def md_grid(grid: Grid) -> str:
    """Columns are padded, so that the text is readable as it is."""
    head = [md(column) for column in grid.columns]
    body = []
    for i, row in enumerate(grid.rows):
        if grid.heads.get(i):
            body.append([f"_{md(grid.heads[i])}:_", *[""] * (len(row) - 1)])
        body.append([MD_STYLES[e.style].format(md(e.text)) if e.text else "" for e in row])
    widths = [max(3, *(len(row[i]) for row in [head, *body])) for i in range(len(head))]
    right = [i >= grid.texts for i in range(len(head))]
    lines = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)] for row in body]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    top = [c.ljust(w) for c, w in zip(head, widths, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [top, rule, *lines])


# -- LaTeX -------------------------------------------------------------------------------------------------------------
LATEX = {c: rf"\{c}" for c in "{}$&#_%"} | {c: f"{{{c}}}" for c in "[]*"}  # after \\ a bracket or star would be read
LATEX |= {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}"}
LATEX |= {">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"}
LATEX |= {"±": r"$\pm$", "†": r"$^{\dagger}$", "–": "--"}
TEX_STYLES = {"": "{}", "best": r"\textbf{{{}}}", "second": r"\textit{{{}}}", "struck": "({})"}
SPREAD = re.compile(r" \$\\pm\$ (\d+\.\d)")  # set small and low, so that more attacks fit on a page
FITTED = r"\setlength{\tabcolsep}{3pt}\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Shrinks a wide table to the line and leaves others as they are."""


def tex(text: str) -> str:
    """Characters outside ASCII that are not ours become `?`: not every engine and font has them."""
    return "".join(LATEX.get(c, c if c.isascii() else "?") for c in plain(text))


def tex_number(text: str) -> str:
    return SPREAD.sub(r"$_{\\pm \1}$", tex(text))


def slug(text: str) -> str:
    """A name for files and labels: a to z and digits, everything else a single `-` between them."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def latex(tables: Sequence[Table]) -> str:
    lines = [r"% needs \usepackage{booktabs} and \usepackage{graphicx}"]
    for table in tables:
        label = slug(table.title)
        caption = " ".join(map(tex, [f"{table.title}.", *table.caption]))  # a paper has no other heading
        lines += [r"\begin{table}", r"\centering\small", rf"\caption{{{caption}}}"]
        lines += [rf"\label{{tab:{label}}}\par\medskip", *tex_grids(table.grid)]
        for title, grid in table.more:
            lines += [r"\par\medskip", rf"{tex(title)}:\par\smallskip", *tex_grids(grid)]
        lines += [rf"\par\smallskip\raggedright\footnotesize {tex(note)}" for note in table.notes]
        lines += [r"\end{table}", ""]
    return "\n".join(lines)


def tex_grids(grid: Grid) -> list[str]:
    """A wide grid in parts."""
    parts = [tex_grid(part) for part in blocks(grid)]
    return [*parts[0], *(line for part in parts[1:] for line in (r"\par\medskip", *part))]


def tex_grid(grid: Grid) -> list[str]:
    count = sum(len(columns) for _, columns in grid.groups)
    top, rules, first = [], [], 1
    for heading, columns in grid.groups:
        top.append(rf"\multicolumn{{{len(columns)}}}{{c}}{{{tex(heading)}}}")
        if heading:
            rules.append(rf"\cmidrule(lr){{{first}-{first + len(columns) - 1}}}")
        first += len(columns)
    above = [" & ".join(top) + r" \\", " ".join(rules)] if rules else []
    head = " & ".join(tex(column) for _, columns in grid.groups for column in columns) + r" \\"
    body = []
    for i, row in enumerate(grid.rows):
        if i in grid.heads:
            body += [r"\midrule"] if i else []
            body += [rf"\multicolumn{{{count}}}{{l}}{{\textit{{{tex(grid.heads[i])}}}}} \\"] if grid.heads[i] else []
        body.append(" & ".join(TEX_STYLES[e.style].format(tex_number(e.text)) for e in row) + r" \\")
    columns = "l" * grid.texts + "r" * (count - grid.texts)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *above, head, r"\midrule", *body, r"\bottomrule"]
    return [FITTED, *lines, r"\end{tabular}}"]


# -- CSV ---------------------------------------------------------------------------------------------------------------
def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([[csv_value(value) for value in row.values()] for row in rows])
    return out.getvalue()


def csv_value(value: Any) -> Any:
    """Numbers with four decimals; a text that a spreadsheet would run as a formula gets an apostrophe."""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, str):
        text = plain(value)
        return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
    return value


# -- in a document -----------------------------------------------------------------------------------------------------
def between(document: str, name: str, text: str) -> str:
    """The document with `text` between its lines `<!-- name -->` and `<!-- end of name -->`. Raises ValueError without them."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, found, rest = document.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"it has no lines '{begin}' and '{end}' to put the text between")
    return f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}"


# -- files -------------------------------------------------------------------------------------------------------------
def write(path: Path, data: str | bytes) -> None:
    """Complete under a temporary name, then renamed: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:16]}")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
