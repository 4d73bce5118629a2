"""What a request body is parsed into, and how much one may ask for."""

from __future__ import annotations

import msgspec

EMPTY = b"\x05\x00\x00\x00\x00"  # a BSON document without members


class Caps(msgspec.Struct, frozen=True):
    """What one request may ask for. max_docs: documents of a result, and of an insertMany or a
    bulkWrite. default_limit: of a find without one. max_doc_bytes: of a document's BSON.
    privileged: the stages of the service role."""

    max_docs: int = 1000
    default_limit: int = 100
    max_doc_bytes: int = 1 << 20
    privileged: bool = False


class Part(msgspec.Struct, gc=False):
    """One operation in BSON, checked against the grammar, not yet against a policy.

    operation: a name of the document API. All bytes are BSON documents.
    filter: EMPTY when absent. limit: documents to answer with; look_ahead: whether one more is to
    be asked for, to tell whether there are more. documents, ids: of an insert, with the identifiers
    as clients get them. reads: paths that the filter, projection, sort, field and conditions of the
    update look at. writes: (operator, path) of the update. terms: of an upsert, the equality terms
    of the filter as (path, BSON document with one member "v"). expression: the filter has an $expr.
    """

    operation: str
    filter: bytes = EMPTY
    projection: bytes | None = None
    sort: bytes | None = None
    limit: int = 0
    skip: int = 0
    look_ahead: bool = False
    field: str = ""
    pipeline: tuple[bytes, ...] = ()
    documents: tuple[bytes, ...] = ()
    ids: tuple[str, ...] = ()
    update: bytes | None = None
    replacement: bytes | None = None
    array_filters: tuple[bytes, ...] = ()
    upsert: bool = False
    after: bool = True
    reads: tuple[str, ...] = ()
    writes: tuple[tuple[str, str], ...] = ()
    terms: tuple[tuple[str, bytes], ...] = ()
    expression: bool = False


class Command(msgspec.Struct):
    """A request body, parsed. parts: one, or those of a bulkWrite in order. spans: of each member,
    by its standard name, where its value begins and ends in the body."""

    operation: str
    parts: tuple[Part, ...]
    caps: Caps
    body: bytes
    spans: dict[str, tuple[int, int]]
    ordered: bool = False

    @property
    def members(self) -> dict[str, bytes]:
        """JSON text of the body's members by their standard names, for a policy function."""
        return {name: self.body[start:end] for name, (start, end) in self.spans.items()}

    @property
    def pairs(self) -> tuple[tuple[str, bool], ...]:
        """(operation, upsert) of each part, for Policy.decide_bulk."""
        return tuple((part.operation, part.upsert) for part in self.parts)
