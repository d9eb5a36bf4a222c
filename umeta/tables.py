"""Results files as tables: `python -m umeta.tables README.md` rewrites the tables between its markers.

A marker names the files, own results and published numbers alike:

    <!-- results: results/omniglot.json results/omniglot_published.json -->
    <!-- end -->
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from umeta import artifacts
from umeta.report import cell, markdown

MARKER = re.compile(r"(<!-- results: (?P<files>[^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(files: list[Path]) -> str:
    """One Markdown table of all rows: means and 95 % intervals, what it took, where it comes from."""
    lines: list[tuple[str, dict[str, Any], str, str]] = []
    columns: list[str] = []
    seen: set[str] = set()
    for path in files:
        for result in artifacts.read_json(path):
            for name, cells in result["rows"].items():
                columns += [column for column in cells if column not in columns]
                own = name == result["title"]
                if own or name not in seen:
                    lines.append((name, cells, minutes(result) if own else "", source(result, path)))
                    seen.add(name)
    body = [
        [name, *(cell(cells[c]) if c in cells else "" for c in columns), took, origin]
        for name, cells, took, origin in lines
    ]
    return markdown([["", *columns, "minutes", "source"], *body])


def minutes(result: dict[str, Any]) -> str:
    """Minutes of each stage."""
    return ", ".join(f"{stage} {value:.1f}" for stage, value in result.get("minutes", {}).items())


def source(result: dict[str, Any], path: Path) -> str:
    """Where a row comes from: a citation, or the results file, seed and commit."""
    if "source" in result:
        return result["source"]
    p = result["protocol"]
    return f"[{path.name}](results/{path.name}), seed {result['seed']}, {p['inference']}, commit {result['commit']}"


def rewrite(text: str, root: Path) -> str:
    """The text with every marked table made anew."""
    return MARKER.sub(lambda m: f"{m[1]}{table([root / f for f in m['files'].split()])}\n{m[3]}", text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        target = Path(name)
        artifacts.write_text(target, rewrite(target.read_text(encoding="utf-8"), target.parent))
