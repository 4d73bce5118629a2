"""Which representation a response has: the Accept header against what the target can give."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ichicore.errors import ApiError
from ichicore.http.accept import PLAIN, MediaType
from ichicore.rest.catalog import Catalog, MediaHandler

# Media types whose Content-Type names a charset.
TEXTUAL = PLAIN - {"application/octet-stream"}
KINDS = {"application/json": "json", "text/csv": "csv", "application/geo+json": "geojson"}


@dataclass(frozen=True, slots=True)
class Chosen:
    """A response's form.

    kind: json, csv, geojson or custom. single: one object instead of an array, and anything but
    one row is an error. strip: null members left out. explain: EXPLAIN options when the plan of
    the statement is asked for instead of its result.
    """

    kind: str
    content_type: str
    single: bool = False
    strip: bool = False
    handler: MediaHandler | None = None
    explain: tuple[str, ...] | None = None

    @property
    def in_postgres(self) -> bool:
        """Whether Postgres writes the body, and a row's text may show in it."""
        return self.kind != "json" or self.explain is not None


def content_type(media: str) -> str:
    """The Content-Type of a media type's canonical text."""
    if media in TEXTUAL or media.startswith("application/vnd.pgrst."):
        return media + "; charset=utf-8"
    return media


def _lookup(
    catalog: Catalog, target: tuple[str, str] | None, media: str, whole: bool
) -> Chosen | None:
    handler = None
    if whole and target is not None:
        handler = catalog.handler(target, "*/*") or catalog.handler(target, media.lower())
    handler = handler or catalog.handler(None, media.lower())
    if handler is None:
        return None
    if handler.kind == "builtin":
        kind = KINDS[handler.media_type]
        return Chosen(kind, content_type(handler.media_type), handler=None)
    return Chosen("custom", content_type(handler.media_type), handler=handler)


def _form(
    catalog: Catalog, target: tuple[str, str] | None, media: MediaType, whole: bool
) -> Chosen | None:
    if media.kind == "object":
        return Chosen("json", content_type(media.text), single=True, strip=media.strip)
    if media.kind == "array":
        return Chosen("json", content_type(media.text), strip=True)
    return _lookup(catalog, target, media.text, whole)


def choose(
    accepted: Iterable[MediaType],
    catalog: Catalog,
    target: tuple[str, str] | None,
    *,
    whole: bool,
    plan_enabled: bool,
) -> Chosen:
    """The first acceptable form. whole: all columns are selected, so the target's own handlers
    apply. Raises ApiError PGRST107."""
    accepted = list(accepted)
    for media in accepted:
        if media.kind == "plan":
            inner = None
            if plan_enabled and isinstance(media.inner, MediaType):
                inner = _form(catalog, target, media.inner, whole)
            if inner is not None:
                return Chosen(
                    inner.kind,
                    content_type(media.text),
                    single=inner.single,
                    strip=inner.strip,
                    handler=inner.handler,
                    explain=(f"FORMAT {media.format.upper()}", *(o.upper() for o in media.options)),
                )
            continue
        found = _form(catalog, target, media, whole)
        if found is not None:
            return found
    raise ApiError(
        406,
        "PGRST107",
        "None of these media types are available: " + ", ".join(m.text for m in accepted),
    )
