"""Media types: the Accept header in order of preference, and the engine's own media types."""

from __future__ import annotations

import re
from dataclasses import dataclass

PLAIN = frozenset(
    (
        "application/json",
        "application/geo+json",
        "text/csv",
        "text/plain",
        "text/xml",
        "application/openapi+json",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
        "*/*",
    )
)
PLAN = {
    "application/vnd.pgrst.plan": "text",
    "application/vnd.pgrst.plan+text": "text",
    "application/vnd.pgrst.plan+json": "json",
}
OBJECT = ("application/vnd.pgrst.object+json", "application/vnd.pgrst.object")
ARRAY = ("application/vnd.pgrst.array+json", "application/vnd.pgrst.array")
OPTIONS = ("analyze", "verbose", "settings", "buffers", "wal")
TYPE = re.compile(r"([^\W_]|[.*])+/([^\W_]|[.*+-])+")
PARAMETER = re.compile(r'\s*;\s*((?:[^\W_]|-)+)\s*=\s*(?:"([^"]*)"|((?:[^\W_]|[|-])+))')
QUALITY = re.compile(r"[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")
DEEPEST = 4


@dataclass(frozen=True, slots=True)
class MediaType:
    """A media type as the engine understands it.

    text: canonical ("application/vnd.pgrst.plan+json; for=\\"text/csv\\""). kind: object, array,
    plan or other. strip: members that are null are left out. inner, format, options: of a plan.
    """

    text: str
    kind: str = "other"
    strip: bool = False
    inner: MediaType | None = None
    format: str = "text"
    options: tuple[str, ...] = ()


ANY = MediaType("*/*")


def media(text: str, depth: int = 0) -> MediaType:
    """The media type of a Content-Type or of one element of Accept."""
    found = TYPE.match(text)
    if found is None:
        return MediaType(text)
    name = found[0].lower()
    if name in PLAIN:
        return MediaType(name)
    parameters: dict[str, str] = {}
    place = found.end()
    while (parameter := PARAMETER.match(text, place)) is not None:
        quoted = parameter[2]
        parameters[parameter[1].lower()] = parameter[3] if quoted is None else quoted
        place = parameter.end()
    strip = parameters.get("nulls") == "stripped"
    if name in OBJECT:
        return MediaType(OBJECT[0] + (";nulls=stripped" if strip else ""), "object", strip)
    if name in ARRAY:
        if strip:
            return MediaType(ARRAY[0] + ";nulls=stripped", "array", True)
        return MediaType("application/json")
    if name in PLAN and depth < DEEPEST:
        inner = media(parameters.get("for", "application/json"), depth + 1)
        asked = parameters.get("options", "").split("|")
        options = tuple(option for option in OPTIONS if option in asked)
        shown = f'application/vnd.pgrst.plan+{PLAN[name]}; for="{inner.text}"'
        if options:
            shown += "; options=" + "|".join(options)
        return MediaType(shown, "plan", False, inner, PLAN[name], options)
    return MediaType(text)


def parse(header: str | None) -> tuple[MediaType, ...]:
    """The media types of an Accept header, best first; everything where there is none."""
    if header is None:
        return (ANY,)
    ranked = []
    for position, part in enumerate(header.split(",") if header else ()):
        element = part.replace(" ", "")
        text, _, rest = element.partition(";q=")
        found = QUALITY.match(rest)
        quality = float(found[0]) if found else 1.0
        specific = text.count(";") - text.count("*")
        ranked.append((-quality, -specific, position, text))
    ranked.sort()
    return tuple(media(text) for _, _, _, text in ranked)
