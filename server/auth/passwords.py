"""Password hashes: argon2id in a bounded pool of threads, and what a password must be.

The hash takes about 25 ms of a core and 19 MiB. It runs in few threads of low priority, so that
the event loop and the database are served first while sign-ins saturate the machine; what does
not fit the queue is refused at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

import bcrypt
from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from ichicore.errors import ApiError
from server.auth.inputs import normalized_password

MEMORY_KIB = 19_456  # with two passes and one lane: the OWASP minimum for argon2id
PASSES = 2
LANES = 1
NICENESS = 15
QUEUE_PER_THREAD = 20  # about half a second of waiting
MIN_LENGTH, MAX_LENGTH = 8, 128
MAX_ATTEMPT = 1_024  # imported passwords may be longer than what we take now

Answer = TypeVar("Answer")


class Passwords:
    """Hashes and verifies. One per worker process; threads: at most that many hashes at once."""

    def __init__(self, threads: int | None = None, queue: int | None = None) -> None:
        self.threads = threads or max(1, os.cpu_count() or 1)
        self.queue = queue if queue is not None else self.threads * QUEUE_PER_THREAD
        self.waiting = 0
        self._hasher = PasswordHasher(
            time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, type=Type.ID
        )
        self._pool = ThreadPoolExecutor(self.threads, "password", initializer=_give_way)
        # Verified in place of a missing hash, so that unknown addresses take the same time.
        self._nobody = self._hasher.hash(secrets.token_hex(16))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str:
        """The argon2id hash of a password that `check_strength` let pass."""
        return await self._run(self._hasher.hash, normalized_password(password))

    async def verify(self, password: str, stored: str | None) -> tuple[bool, bool]:
        """(right, stored should be replaced by a new hash). stored None costs the same and is
        never right."""
        if len(password) > MAX_ATTEMPT:
            password, stored = password[:MAX_ATTEMPT], None
        return await self._run(self._verify, password, stored)

    def _verify(self, password: str, stored: str | None) -> tuple[bool, bool]:
        if stored is None:
            self._verify_argon(password, self._nobody)
            return False, False
        if stored.startswith(("$2a$", "$2b$", "$2y$")):
            # bcrypt reads 72 bytes and this library refuses more instead of cutting
            try:
                return bcrypt.checkpw(password.encode()[:72], stored.encode()), True
            except ValueError:
                return False, False
        right = self._verify_argon(normalized_password(password), stored)
        return right, right and self._hasher.check_needs_rehash(stored)

    def _verify_argon(self, password: str, stored: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[..., Answer], *arguments: object) -> Answer:
        if self.waiting >= self.queue:
            raise ApiError(
                429,
                "rate_limited",
                "Too many sign-ins at this moment; try again shortly.",
                headers=(("retry-after", "1"),),
            )
        self.waiting += 1
        try:
            future = self._pool.submit(work, *arguments)
            return await asyncio.wrap_future(future)
        finally:
            self.waiting -= 1


def _give_way() -> None:
    """Lower the priority of this thread alone; only Linux has a priority per thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


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
    return given.memory_cost <= 262_144 and given.time_cost <= 10 and given.parallelism <= 8


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
