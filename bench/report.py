"""The parts of a benchmark run one after the other, and their figures shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

Results = dict[str, dict[str, Any]]


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
