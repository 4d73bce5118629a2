"""Secrets at rest: AES-256-GCM with a key file of the node, so that no dump of a database has
them in clear."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE = 12


def key_path(data_dir: Path) -> Path:
    """Where a node keeps its key. It is in no backup; nodes with one control database share it."""
    return data_dir / "secrets" / "functions_key"


class VaultError(RuntimeError):
    """A secret cannot be read with this node's key."""


class Vault:
    """The key is made on first use, in a file that only the node's account reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cipher: AESGCM | None = None

    def seal(self, project_id: str, name: str, value: str) -> bytes:
        nonce = os.urandom(NONCE)
        bound = f"{project_id}/{name}".encode()
        return nonce + self._key().encrypt(nonce, value.encode(), bound)

    def open(self, project_id: str, name: str, sealed: bytes) -> str:
        """VaultError when it was sealed with another key, or for another name."""
        bound = f"{project_id}/{name}".encode()
        try:
            return self._key().decrypt(sealed[:NONCE], sealed[NONCE:], bound).decode()
        except InvalidTag:
            raise VaultError(
                f"the secret {name} was stored with another key than {self.path}"
            ) from None

    def _key(self) -> AESGCM:
        if self._cipher is None:
            self._cipher = AESGCM(self._read())
        return self._cipher

    def _read(self) -> bytes:
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            self._make()
            raw = self.path.read_bytes()
        if len(raw) != 32:
            raise VaultError(f"{self.path} is not a key of 32 bytes")
        return raw

    def _make(self) -> None:
        """Another process may do the same at this moment: the first one's key counts."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(32))
            os.fsync(file.fileno())
        try:
            os.link(partial, self.path)
        except FileExistsError:
            pass
        finally:
            partial.unlink()
