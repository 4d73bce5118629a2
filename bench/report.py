"""The parts of a benchmark run one after the other, and their figures shown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

Results = dict[str, dict[str, Any]]


def arguments(
    text: str | None, parts: Iterable[str] = (), *, timed: bool = False
) -> argparse.ArgumentParser:
    """What every benchmark takes. timed: how long and how often it measures, too."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="*", action="extend", default=[],
                        choices=list(parts) or None)  # fmt: skip
    if timed:
        parser.add_argument("--seconds", type=float, default=4.0)
        parser.add_argument("--rounds", type=int, default=3)
    return parser


def run_parts(parts: dict[str, Callable[[], dict[str, Any]]], only: list[str]) -> Results:
    """Figures by part, of all parts or of those named."""
    results: Results = {}
    for name, part in parts.items():
        if only and name not in only:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = part()
    return results


def show(results: Results, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(results, indent=1))
        return
    for name, figures in results.items():
        print(name)
        for key, value in figures.items():
            shown = f"{value:,.2f}" if isinstance(value, float) else str(value)
            print(f"  {key:26} {shown}")
