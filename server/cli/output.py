"""Tables for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

UNBOUNDED = 1_000_000  # columns


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: list[str], rows: list[list[Any]], *, fold: bool = True) -> None:
    """fold: values that are too long for a terminal go on within their column; else the terminal
    breaks the line, so that they can be copied. Nothing is folded where no terminal is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(value)) for value in row))
    terminal = sys.stdout.isatty()
    console = Console(width=None if fold and terminal else UNBOUNDED)
    with console.capture() as shown_lines:
        console.print(table, soft_wrap=not (fold and terminal))
    print("\n".join(line.rstrip() for line in shown_lines.get().splitlines()))


def moment(text: str | None) -> str:
    """A time of an answer, ISO 8601 in UTC, as a person reads it: to the second."""
    return "∅" if text is None else text[:19].replace("T", " ")


def shown(value: Any) -> str:
    if value is None:
        return "∅"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def note(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def progress(what: str, total: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A bar on the terminal, if standard error is one. The given function is told what begins."""
    if quiet or not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(),
    )  # fmt: skip
    begun = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(name: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=f"{what} {name[-40:]}")
            begun += 1

        yield advance


def installed() -> str:
    """The version of this program."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ichibase")
    except PackageNotFoundError:
        return "not installed"
