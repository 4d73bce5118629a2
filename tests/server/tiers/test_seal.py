"""Sealed streams: what is changed anywhere does not open."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.backup import seal as module
from server.backup.seal import MAGIC, PREFIX, SealError, derive, seal, unseal

KEY = bytes(range(32))


async def pieces(data, size=1000):
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def whole(source):
    return b"".join([piece async for piece in source])


def sealed(data, key=KEY, name="b/f"):
    return asyncio.run(whole(seal(pieces(data), key, name)))


def opened(data, key=KEY, name="b/f", size=777):
    return asyncio.run(whole(unseal(pieces(data, size), key, name)))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 256)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1100), st.integers(1, 600))
def test_any_length_comes_back(length, size):
    module.CHUNK = 256
    data = bytes(i % 251 for i in range(length))
    assert opened(sealed(data), size=size) == data


@pytest.mark.parametrize("length", [0, 255, 256, 257, 512, 1000])
def test_no_byte_may_change(length):
    text = sealed(b"x" * length)
    step = max(1, len(text) // 60)
    for at in range(0, len(text), step):
        changed = bytearray(text)
        changed[at] ^= 1
        with pytest.raises(SealError):
            opened(bytes(changed))


def test_nothing_may_be_cut_off_moved_or_added():
    text = sealed(b"a" * 256 + b"b" * 256 + b"c" * 10)
    head, chunk = len(MAGIC) + PREFIX, 256 + 16
    first, second = text[head : head + chunk], text[head + chunk : head + 2 * chunk]
    rest = text[head + 2 * chunk :]
    for wrong in (
        text[:-1], text[: head + chunk], text[: head + 2 * chunk], text[:head], text[:5], b"",
        text[:head] + second + first + rest, text[:head] + first + rest, text + b"x",
        text[:head] + first + second + second + rest,
    ):  # fmt: skip
        with pytest.raises(SealError):
            opened(wrong)


def test_key_and_name_are_bound():
    text = sealed(b"secret")
    assert b"secret" not in text
    with pytest.raises(SealError):
        opened(text, key=bytes(32))
    with pytest.raises(SealError):
        opened(text, name="b/other")
    assert sealed(b"secret") != text
    assert derive("a passphrase", b"s" * 16) != derive("a passphrase", b"t" * 16)
