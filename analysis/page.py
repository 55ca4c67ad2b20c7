"""One HTML page that needs nothing else: data, script, style and pictures are in it, and it may load nothing.

What comes from records is data and stays data: it travels as JSON in a script element that no browser runs, and the
page's script puts it into text nodes only. A content security policy lets nothing run but that script, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.render import plain

Rows = Sequence[Mapping[str, Any]]
LONGEST = 2000  # characters of one text

UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What could end a script element, or begin a comment in one, as JSON's own escapes."""


def column(name: str, values: Iterable[Any], **facts: Any) -> dict[str, Any]:
    """A column as the page's script takes it: numbers as they are, texts as codes of a list of different ones.

    `facts`: what else the script is to know, such as `head` (what stands above it) or `hidden` (in the details only).
    """
    found = [clean(value) for value in values]
    if all(value is None or type(value) in (int, float) for value in found) and any(v is not None for v in found):
        return {"name": name, "numbers": found} | facts
    texts = ["" if value is None else str(value) for value in found]
    shown = {text: plain(text)[:LONGEST] for text in set(texts)}
    words = {word: code for code, word in enumerate(sorted(set(shown.values())))}
    codes = {text: words[word] for text, word in shown.items()}
    return {"name": name, "words": list(words), "codes": [codes[text] for text in texts]} | facts


def clean(value: Any) -> Any:
    """Numbers with six digits, None for what is no number, yes and no for booleans."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    number = float(value)
    return (
        (int(number) if number.is_integer() and abs(number) < 1e15 else float(f"{number:.6g}"))
        if math.isfinite(number)
        else None
    )


def columns(rows: Rows, first: Iterable[str] = (), **facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A column for each key of any row, those in `first` before the others; empty ones are left out.

    `facts`: as for `column`, each a mapping from the column's name, such as `digits={"acc": 1}`.
    """
    keys = dict.fromkeys(key for row in rows for key in row)
    found = []
    for key in [k for k in dict.fromkeys(first) if k in keys] + [k for k in keys if k not in set(first)]:
        made = column(key, (row.get(key) for row in rows))
        if made.get("words") != [""]:
            found.append(made | {fact: by[key] for fact, by in facts.items() if key in by})
    return found


def table(
    name: str, title: str, note: str, columns: Sequence[Mapping[str, Any]], rows: int, **facts: Any
) -> dict[str, Any]:
    """A sortable, filterable table. `rows`: how many. `facts`: what else the script is to know, such as `details`."""
    return {"id": name, "title": title, "note": note, "columns": list(columns), "rows": rows} | facts


def picture(name: str, data: bytes, kind: str) -> dict[str, str]:
    """`kind`: svg+xml or png. Shown as an image, so that not even an SVG could run anything."""
    return {"name": name, "url": f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"}


def page(
    title: str, facts: Sequence[str], tables: Sequence[Mapping[str, Any]], pictures: Sequence[Mapping[str, str]]
) -> str:
    """The page's text. `facts`: sentences below the title."""
    here = Path(__file__).parent
    script, style = ((here / f"report.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    data = json.dumps({"tables": tables, "pictures": pictures}, separators=(",", ":"), allow_nan=False)
    for character, escaped in UNSAFE.items():
        data = data.replace(character, escaped)
    policy = (
        f"default-src 'none'; script-src '{sha256(script)}'; style-src '{sha256(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    lead = "\n".join(f"<p>{html.escape(plain(fact))}</p>" for fact in facts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(plain(title))}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{html.escape(plain(title))}</h1>
{lead}
</header>
<nav id="tabs" role="tablist" aria-label="parts of this page"></nav>
<main id="main"></main>
<dialog id="details" aria-label="one run"></dialog>
<noscript>The tables of this page are drawn by the script inside it; nothing is loaded from anywhere.</noscript>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
