"""Bounds of time on a machine that may be slow, or have other things to do."""

from __future__ import annotations

import subprocess
import sys
import time

INTERPRETER_SECONDS = 0.1  # that one starts in on a quiet machine, with what slowness() imports


def slowness():
    """How many times longer something takes here and now than on a quiet machine, 1 or more: what
    starting an interpreter takes, by the clock. For bounds that only tell quick from stuck."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import asyncio, ssl, json, http.client"], check=True)
    return max(1.0, (time.monotonic() - began) / INTERPRETER_SECONDS)


def within(seconds, bound):
    """Whether so many seconds are below the bound, on this machine."""
    return seconds < bound or seconds < bound * slowness()


def quickest(attempt, enough, tries=3):
    """The fewest seconds that an attempt gives; more are made until one is below `enough`. For what
    the product promises, and keeps whenever the machine gives it the time."""
    best = attempt()
    for _ in range(tries - 1):
        if best < enough:
            break
        best = min(best, attempt())
    return best
