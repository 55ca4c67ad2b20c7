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
    """The grid in pieces that are no wider than `width` letters, each beginning with its first column."""
    bounds, at = [], 0
    for heading, columns in grid.groups:
        for piece in [columns] if heading else [[column] for column in columns]:
            bounds.append((heading, piece, at, at + len(piece)))
            at += len(piece)
    wide = [max(cell_len(plain(text)) for text in texts) + 3 for texts in columns_of(grid)]
    first, *others = bounds
    taken: list[tuple[str, Sequence[str], int, int]] = []
    for bound in others:
        if taken and sum(sum(wide[a:b]) for _, _, a, b in [first, *taken, bound]) + 1 > width:
            yield piece_of(grid, [first, *taken])
            taken = []
        taken.append(bound)
    yield piece_of(grid, [first, *taken])


def columns_of(grid: Grid) -> Iterator[list[str]]:
    for i, column in enumerate(name.rpartition(" ")[2] or name for name in grid.columns):
        heads = [f"{text}:" for text in grid.heads.values()] if i == 0 else []
        yield [column, *heads, *(row[i].text for row in grid.rows)]


def piece_of(grid: Grid, bounds: Sequence[tuple[str, Sequence[str], int, int]]) -> Grid:
    rows = [[entry for _, _, a, b in bounds for entry in row[a:b]] for row in grid.rows]
    texts = sum(min(b, grid.texts) - a for _, _, a, b in bounds if a < grid.texts)
    return Grid([(heading, columns) for heading, columns, _, _ in bounds], rows, texts, grid.heads)


def drawn(grid: Grid) -> Drawn:
    table = Drawn(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    column = 0
    for heading, columns in grid.groups:
        for i, name in enumerate(columns):
            lines = (
                f"{plain(heading) if i == 0 else ''}\n{plain(name)}" if any(h for h, _ in grid.groups) else plain(name)
            )
            table.add_column(Text(lines), justify="left" if column < grid.texts else "right", no_wrap=True)
            column += 1
    for i, row in enumerate(grid.rows):
        if i in grid.heads:
            table.add_section()
            if grid.heads[i]:
                table.add_row(Text(f"{plain(grid.heads[i])}:", style="dim"))
        table.add_row(*map(text, row))
    return table


def text(entry: Entry) -> Text:
    return Text(plain(entry.text), style=STYLES[entry.style])
