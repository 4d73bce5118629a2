"""What a password must be, and its hash: made by the node's process for that (main.py), or in
threads of the worker's own while there is none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from argon2.exceptions import InvalidHashError

from ichicore.errors import ApiError
from server.auth.hashing import Busy, HashThreads
from server.auth.hashsocket import Away, HashClient
from server.auth.inputs import normalized_password
from server.base.project import Project

MIN_LENGTH, MAX_LENGTH = 8, 128
# KiB times passes of an imported hash: less than a second of a core, in which others wait.
MOST_WORK = 1 << 20


class Passwords:
    """Hashes and verifies, for one worker. socket: where the process listens."""

    def __init__(self, socket: Path | None = None) -> None:
        self._client = None if socket is None else HashClient(socket)
        self._own: HashThreads | None = None
        _common()  # takes a while, which should not be that of the first request that needs them

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._own is not None:
            self._own.close()

    async def hash(self, project: Project, password: str) -> str:
        """The argon2id hash of a password that `check_strength` let pass. ApiError 429."""
        turn = _turn(project)
        answer = await self._ask(hash=password, **turn)
        if answer is not None:
            return str(answer["hash"])
        own = self._threads()
        return str(await self._try(own, own.hasher.hash, password, **turn))

    async def verify(
        self, project: Project, password: str, stored: str | None
    ) -> tuple[bool, bool]:
        """(right, stored should be replaced by a new hash). stored None costs the same and is
        never right. ApiError 429."""
        turn = _turn(project)
        answer = await self._ask(verify=password, stored=stored, **turn)
        if answer is not None:
            return answer["right"] is True, answer["stale"] is True
        own = self._threads()
        right, stale = await self._try(own, own.hasher.verify, password, stored, **turn)
        return right, stale

    async def _ask(self, **message: Any) -> dict[str, Any] | None:
        """None when there is no process to ask."""
        if self._client is None:
            return None
        try:
            return await self._client.ask(**message)
        except Away:
            return None
        except Busy:
            raise _busy() from None

    def _threads(self) -> HashThreads:
        if self._own is None:
            self._own = HashThreads()
        return self._own

    @staticmethod
    async def _try(
        own: HashThreads, work: Callable[..., Any], *arguments: object, **turn: Any
    ) -> Any:
        try:
            return await own.run(work, *arguments, **turn)
        except Busy:
            raise _busy() from None


def _turn(project: Project) -> dict[str, Any]:
    """Whose turn a hash takes."""
    return {"project": project.id, "weight": project.limits.cpu_weight}


def _busy() -> ApiError:
    return ApiError(
        429, "rate_limited", "Too many sign-ins at this moment; try again shortly.",
        headers=(("retry-after", "1"),),
    )  # fmt: skip


def check_strength(password: str, *context: str | None) -> None:
    """ApiError 400 weak_password unless it is 8 to 128 characters, not among the most common ones
    and not derived from `context` (the address, the app's name)."""
    if len(password) < MIN_LENGTH:
        raise _weak(f"A password needs at least {MIN_LENGTH} characters.")
    if len(password) > MAX_LENGTH:
        raise _weak(f"A password has at most {MAX_LENGTH} characters.")
    plain = normalized_password(password).casefold()
    if _digest(plain) in _common() or _digest(plain.rstrip("0123456789!.?*#")) in _common():
        raise _weak("This password is among the most common ones; choose another.")
    if len(set(plain)) < 3 or _is_run(plain):
        raise _weak("This password is too easy to guess; choose another.")
    for word in context:
        if word and plain in (word.casefold(), word.casefold().partition("@")[0]):
            raise _weak("The password must not be the address or the name of the app.")


def is_known_hash(stored: str) -> bool:
    """Whether an imported hash is one that we can verify at bounded cost."""
    if stored.startswith(("$2a$", "$2b$", "$2y$")):
        parts = stored.split("$")
        return len(stored) == 60 and parts[2].isdigit() and 4 <= int(parts[2]) <= 14
    if not stored.startswith(("$argon2id$", "$argon2i$")) or len(stored) > 256:
        return False
    from argon2 import extract_parameters

    try:
        given = extract_parameters(stored)
    except InvalidHashError:
        return False
    work = given.memory_cost * given.time_cost
    return work <= MOST_WORK and given.memory_cost <= 262_144 and given.parallelism <= 8


def _weak(message: str) -> ApiError:
    return ApiError(400, "weak_password", message)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()


def _is_run(text: str) -> bool:
    """abcdefgh, 98765432 and the like."""
    steps = {ord(b) - ord(a) for a, b in pairwise(text)}
    return len(steps) == 1


@lru_cache(maxsize=1)
def _common() -> frozenset[bytes]:
    """Short digests of the common passwords: a tenth of the memory of the texts."""
    from zxcvbn.frequency_lists import FREQUENCY_LISTS

    return frozenset(_digest(word) for word in FREQUENCY_LISTS["passwords"] if len(word) >= 6)
