"""A table in the terminal: as many attacks side by side as fit into its width, the others below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from analysis.render import Entry, Grid, Table, plain

STYLES = {"": "", "best": "bold green", "second": "italic cyan", "struck": "strike dim"}
HEADING = 28  # letters of a heading in a line, where what stands below it is no wider: a setting and its value
BETWEEN = 3  # letters between two columns
Bound = tuple[str, Sequence[str], int, int]
"""A group, or a part of one: its heading, its columns, and from where to where they stand in a row."""


def show(tables: Sequence[Table], console: Console) -> None:
    for table in tables:
        console.rule(Text(plain(table.title), style="bold"))
        console.print(Text(" ".join(map(plain, table.caption))), style="dim")
        for title, grid in [("", table.grid), *table.more]:
            if title:
                console.print(Text(f"{plain(title)}:"))
            for part in fitting(grid, console.width):
                console.print(drawn(part))
        for note in table.notes:
            console.print(Text(plain(note)), style="dim")


def fitting(grid: Grid, width: int) -> Iterator[Grid]:
    """The grid in pieces that are no wider than `width` letters, each beginning with its first column.

    A group is torn only where it is too wide by itself.
    """
    wide = [letters + BETWEEN for letters in widths(grid)]
    first, *others = bounds(grid, wide, width)
    taken: list[Bound] = []
    for bound in others:
        if taken and sum(sum(wide[a:b]) for _, _, a, b in [first, *taken, bound]) + 1 > width:
            yield piece_of(grid, [first, *taken])
            taken = []
        taken.append(bound)
    yield piece_of(grid, [first, *taken])


def bounds(grid: Grid, wide: Sequence[int], width: int) -> Iterator[Bound]:
    at = 0
    for heading, columns in grid.groups:
        end = at + len(columns)
        whole = heading and wide[0] + sum(wide[at:end]) + 1 <= width
        for piece in [columns] if whole else [[column] for column in columns]:
            yield heading, piece, at, at + len(piece)
            at += len(piece)


def widths(grid: Grid) -> list[int]:
    """Of each column in letters, so that no cell is broken; headings may be."""
    found = []
    for i, head in enumerate(heads(grid)):
        fixed = [f"{plain(text)}:" for text in grid.heads.values()] if i == 0 else []
        fixed += [plain(row[i].text) for row in grid.rows]
        broken = min(HEADING, max(map(cell_len, head.split("\n"))))
        found.append(max(broken, *map(cell_len, fixed)))
    return found


def heads(grid: Grid) -> list[str]:
    """What stands above each column: its name, and above that of a group's first column the group's heading."""
    return [
        f"{plain(heading)}\n{plain(name)}" if heading and i == 0 else plain(name)
        for heading, columns in grid.groups
        for i, name in enumerate(columns)
    ]


def piece_of(grid: Grid, bounds: Sequence[Bound]) -> Grid:
    rows = [[entry for _, _, a, b in bounds for entry in row[a:b]] for row in grid.rows]
    texts = sum(min(b, grid.texts) - a for _, _, a, b in bounds if a < grid.texts)
    return Grid([(heading, columns) for heading, columns, _, _ in bounds], rows, texts, grid.heads)


def drawn(grid: Grid) -> Drawn:
    """Where even the first column and one other are wider than the terminal, their cells are broken, never cut off."""
    table = Drawn(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for i, (head, letters) in enumerate(zip(heads(grid), widths(grid), strict=True)):
        table.add_column(Text(head), justify="left" if i < grid.texts else "right", max_width=letters, overflow="fold")
    for i, row in enumerate(grid.rows):
        if i in grid.heads:
            table.add_section()
            if grid.heads[i]:
                table.add_row(Text(f"{plain(grid.heads[i])}:", style="dim"))
        table.add_row(*map(text, row))
    return table


def text(entry: Entry) -> Text:
    return Text(plain(entry.text), style=STYLES[entry.style])
