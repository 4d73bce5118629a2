"""What a folder takes on disk, looked at again and again while commands fill it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path


def taken(folder: Path, most_bytes: int, most_entries: int) -> tuple[int, int]:
    """(bytes on disk, entries) in a folder; counting ends once either is beyond its most. A file
    of several names counts once for each."""
    size = entries = 0
    left = [str(folder)]
    while left:
        try:
            with os.scandir(left.pop()) as found:
                for entry in found:
                    try:
                        told = entry.stat(follow_symlinks=False)
                    except OSError:  # gone meanwhile
                        continue
                    size += told.st_blocks * 512
                    entries += 1
                    if size > most_bytes or entries > most_entries:
                        return size, entries
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
        except OSError:
            continue
    return size, entries


class Quota:
    """exceeded: whether the folder has been found to take more."""

    def __init__(self, folder: Path, most_bytes: int, most_entries: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self.most_entries = most_entries
        self.exceeded = False

    def check(self) -> bool:
        """Whether it takes no more than it may."""
        size, entries = taken(self.folder, self.most_bytes, self.most_entries)
        self.exceeded |= size > self.most_bytes or entries > self.most_entries
        return not self.exceeded

    async def watch(self, seconds: float, end: Callable[[], None]) -> None:
        """Looks so often until cancelled; calls `end` once when it takes too much."""
        while await asyncio.to_thread(self.check):
            await asyncio.sleep(seconds)
        end()
