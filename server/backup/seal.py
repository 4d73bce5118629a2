"""Encrypts a stream in chunks, so that neither end needs the whole of it in memory.

A sealed stream is a header (MAGIC, nonce prefix of 7 bytes) and chunks of at most CHUNK bytes of
plain text, each with its tag of 16 bytes: AES-256-GCM with the nonce prefix | chunk number | 1 for
the last chunk. Chunks that are changed, moved, left out or cut off do not open. The name of the
file and of its backup are bound in, so that files cannot take each other's place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"ICHISEAL1"
CHUNK = 1 << 20
TAG = 16
PREFIX = 7
SALT = 16


class SealError(ValueError):
    """What was sealed has been changed, is cut off, or belongs to another key."""

    code = "backup_damaged"


def derive(passphrase: str, salt: bytes) -> bytes:
    """The key of one backup: scrypt, 32 MB and some 60 ms."""
    return hashlib.scrypt(passphrase.encode(), salt=salt, n=2**15, r=8, p=1, dklen=32,
                          maxmem=64 << 20)  # fmt: skip


def new_salt() -> bytes:
    return os.urandom(SALT)


def _nonce(prefix: bytes, number: int, last: bool) -> bytes:
    return prefix + number.to_bytes(4, "big") + (b"\x01" if last else b"\x00")


async def whole_chunks(source: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in pieces of `size`, the last one shorter."""
    kept = bytearray()
    async for piece in source:
        kept += piece
        while len(kept) >= size:
            yield bytes(kept[:size])
            del kept[:size]
    if kept:
        yield bytes(kept)


async def seal(source: AsyncIterator[bytes], key: bytes, name: str) -> AsyncIterator[bytes]:
    """The sealed stream. name: of the file, with that of its backup."""
    cipher, prefix = AESGCM(key), os.urandom(PREFIX)
    header = MAGIC + prefix
    yield header
    bound = header + name.encode()
    number, before = 0, b""
    async for piece in whole_chunks(source, CHUNK):
        if number:
            yield cipher.encrypt(_nonce(prefix, number - 1, False), before, bound)
        number, before = number + 1, piece
    yield cipher.encrypt(_nonce(prefix, max(0, number - 1), True), before, bound)


async def unseal(source: AsyncIterator[bytes], key: bytes, name: str) -> AsyncIterator[bytes]:
    """The plain text, chunk by chunk; each has been verified. SealError."""
    head = len(MAGIC) + PREFIX
    kept = bytearray()
    iterator = aiter(source)
    while len(kept) < head:
        piece = await anext(iterator, None)
        if piece is None:
            raise SealError(f"{name} is cut off")
        kept += piece
    header = bytes(kept[:head])
    del kept[:head]
    if not header.startswith(MAGIC):
        raise SealError(f"{name} is not encrypted as this program does it")
    cipher, prefix, bound = AESGCM(key), header[len(MAGIC) :], header + name.encode()

    def opened(chunk: bytes, number: int, last: bool) -> bytes:
        try:
            return cipher.decrypt(_nonce(prefix, number, last), chunk, bound)
        except InvalidTag:
            raise SealError(
                f"{name} does not open: it has been changed or cut off, or the key is another one"
            ) from None

    number = 0
    while True:
        while len(kept) <= CHUNK + TAG:
            piece = await anext(iterator, None)
            if piece is None:
                yield opened(bytes(kept), number, True)
                return
            kept += piece
        yield opened(bytes(kept[: CHUNK + TAG]), number, False)
        del kept[: CHUNK + TAG]
        number += 1
