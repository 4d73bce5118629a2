"""The files a node keeps in its data folder, secrets with mode 0600."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from pathlib import Path

LOCK_TRIES = 10  # a command that looks whether a node runs has the lock for a moment


class InUseError(RuntimeError):
    """Another node runs on this data folder."""


class DataDir:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = root / "run"
        self.secrets = root / "secrets"
        self.node_file = self.run / "node.json"
        self.admin_token_file = self.secrets / "admin_token"
        self.service_key_file = self.secrets / "default_service_key"
        self._lock = -1
        self.held = False  # whether this process has the lock

    def prepare(self) -> None:
        """Makes the folders and takes the lock; InUseError when another node holds it."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.run.mkdir(mode=0o700, exist_ok=True)
        self.secrets.mkdir(mode=0o700, exist_ok=True)
        (self.run / "metrics").mkdir(mode=0o700, exist_ok=True)
        self._lock = os.open(self.run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.02)
            else:
                self.held = True
                return
        raise InUseError(
            f"a node already runs on {self.root}; stop it, or choose another --data-dir"
        )

    def secret(self, name: str) -> str:
        """A random secret that is made once and kept."""
        path = self.secrets / name
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            value = secrets.token_urlsafe(32)
            self.write(path, value + "\n")
            return value

    @staticmethod
    def write(path: Path, text: str) -> None:
        """Replaces a file as a whole, readable by its owner only."""
        partial = path.with_name(f"{path.name}.new")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        partial.replace(path)
