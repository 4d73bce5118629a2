"""What each target does with some bytes. A target may raise nothing.

The compiled parsers are held against their Python twins, whose branches guide the fuzzer.
"""

from __future__ import annotations

from collections.abc import Callable

from ichicore.errors import ApiError
from ichicore.http import accept, lenient, prefer, target
from ichicore.rest import grammar, payload, query, shape
from server.postgres import payloads
from server.standalone import conffile, rolepath
from tests.fuzz import documents, sockets
from tests.oracle import lenient as lenient_twin
from tests.oracle import payload as payload_twin
from tests.oracle import rest_query, rest_shape

ZONES = frozenset({"utc", "america/los_angeles"})
lenient.keep_bodies("/")
TYPES = ("application/json", "text/csv", "application/x-www-form-urlencoded", "text/plain")


def same(first: object, second: object, data: bytes) -> None:
    if first != second:
        raise AssertionError(f"{data!r}: {first!r} is not {second!r}")


def outcome(parse: Callable[..., object], data: bytes, **options: bool) -> object:
    try:
        return rest_query.plain(parse(data, **options))
    except ApiError as error:
        same(error.status, 400, data)
        return error.code, error.message, error.details


def query_string(data: bytes) -> None:
    """The first byte chooses how it is parsed."""
    flags, raw = (data[0], data[1:]) if data else (0, b"")
    options = {"rpc": bool(flags & 1), "mutation": bool(flags & 2)}
    first = outcome(query.parse, raw, **options, concatenate_order=bool(flags & 4))
    second = outcome(grammar.parse, raw, **options, concatenate_order=bool(flags & 4))
    same(first, second, raw)
    same(target.canonical(raw), grammar.canonical(raw), raw)


def shapes(data: bytes) -> None:
    rpc, raw = bool(data and data[0] & 1), data[1:]
    found = shape.scan(raw, rpc=rpc)
    same(found, rest_shape.scan(raw, rpc=rpc), raw)
    if found is not None:
        try:
            parsed = query.parse(raw, rpc=rpc)
        except ApiError:
            return
        same(found[1], [value.encode() for value in parsed.values], raw)


def json_body(data: bytes) -> None:
    same(payload.scan(data), payload_twin.scan(data), data)


def bodies(data: bytes) -> None:
    kind = TYPES[data[0] % len(TYPES)] if data else None
    for rpc in (False, True):
        try:
            payloads.read(data[1:], kind, None, rpc=rpc)
        except ApiError as error:
            same(error.code, "PGRST102", data)


def headers(data: bytes) -> None:
    text = data.decode("latin-1")
    for media in accept.parse(text):
        accept.media(media.text)
    try:
        prefer.parse(text, ZONES).check()
    except ApiError as error:
        same(error.code, "PGRST122", data)


def settings(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        conffile.parse(text)
    except conffile.ConfFileError:
        pass
    try:
        rolepath.walk({"role": ["a"]}, rolepath.parse(text))
    except ValueError:
        pass


SEEDS: dict[str, tuple[bytes, ...]] = {
    "query": (
        b"\0select=id,a:rel!fk!inner(*,...other(x->>y::text)),n.sum()&id=eq.1&order=a.desc,r(b)",
        b'\1or=(a.eq.1,not.and(b.in.(1,"2"),c.fts(english).x))&limit=1&rel.offset=2&not.and=(x.is.null)',
        b'\2columns=a,"b c"&on_conflict=a,b&a-%3E0=like(any).{a*,b}&x=5',
    ),
    "shape": (
        b"\0a=eq.1&b=not.in.(1,2)&or=(c.like.*x*,and(d.is.null,e.gt.5))&limit=3&select=*",
        b"\1a=5&b=eq.1&c=x.y",
    ),
    "received": (
        b"\x18POST /a?b->>c HTTP/1.1\r\nContent-Length: 2\r\nA: \xc3\xa9\r\n\r\nab"
        b"\x0bGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    "json": (b'[{"a":1,"b":[true,null]},{"b":"\\u00e9","a":-1.5e3}]', b'{"a":{"b":[]}}'),
    "bodies": (b'\0{"a":1}', b'\1a,b\n1,"x""y"\n', b"\2a=1&b=x+%20"),
    "headers": (
        b"return=representation, count=exact, timezone=UTC, max-affected=1, handling=strict",
        b'application/vnd.pgrst.plan+json; for="text/csv"; options=analyze|wal;q=0.5, */*',
    ),
    **documents.SEEDS,
    **sockets.SEEDS,
    "settings": (b'db-uri = "x\\n" # c\nport = 1\nflag=true\n', b'.a."b-c"[0][?(@ ==^ "x")]'),
}


def received(data: bytes) -> None:
    """Pieces of what comes on a connection, each behind a byte with its size; and what is kept of
    bodies."""
    ours, twin = lenient.Stream(), lenient_twin.Stream(lenient.ENCODED_HEADER.encode())
    mark = lenient.BODY_HEADER.encode() + b": "
    while data:
        piece, data = data[1 : 1 + 4 * data[0]], data[1 + 4 * data[0] :]
        if not piece:
            continue
        seen = ours.feed(piece, 4 * len(piece) + 64)
        first, found, rest = seen.partition(mark)
        if found:
            number, _, rest = rest.partition(b"\r\n")
            same(rest[:2], b"\r\n", piece)
            same(lenient.body(number.decode()), rest[2:], piece)
            seen = first + rest
        same(seen, twin.feed(piece, 4 * len(piece) + 64), piece)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "received": received,
    **documents.TARGETS,
    **sockets.TARGETS,
    "query": query_string,
    "shape": shapes,
    "json": json_body,
    "bodies": bodies,
    "headers": headers,
    "settings": settings,
}
