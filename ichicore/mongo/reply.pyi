from collections.abc import Sequence

from ichicore.rules.fields import FieldRule

def to_json(document: bytes, read: FieldRule | None = None) -> bytes:
    """A BSON document as JSON, without the fields that may not be read. ObjectIds are 24 hex
    digits, dates ISO 8601 UTC with milliseconds, decimals strings, integers numbers (strings beyond
    2**53), binary data base64 strings, NaN and infinities null."""

def find_reply(replies: Sequence[bytes], limit: int, read: FieldRule | None = None) -> bytes:
    """{"docs":[…],"count":n,"truncated":bool} from the raw replies of find/aggregate and getMore,
    in order. Documents beyond `limit` are left out and make it truncated."""

def doc_reply(reply: bytes, read: FieldRule | None = None) -> bytes:
    """{"doc":…|null} with the first document of a raw find reply, or the `value` of a raw
    findAndModify reply."""

def one_reply(document: bytes | None, read: FieldRule | None = None) -> bytes:
    """{"doc":…|null} of one BSON document."""

def distinct_reply(reply: bytes, limit: int) -> bytes:
    """{"values":[…],"truncated":bool} from a raw distinct reply."""

def documents(reply: bytes) -> list[bytes]:
    """The documents in the batch of a raw cursor reply."""

def cursor_id(reply: bytes) -> int:
    """The cursor that a raw cursor reply leaves open, 0 for none."""

def id_text(document: bytes) -> str | None:
    """The `_id` of a BSON document as a client gets it: its JSON, of texts without the quotes; None
    without one. Of what is neither text nor number in a readable form: its JSON."""

def succeeded(reply: bytes) -> bool:
    """Whether a raw reply says that its command succeeded. Of a write: as a whole."""

def count(reply: bytes) -> int:
    """The number in a raw count reply."""

def written(reply: bytes) -> tuple[int, int] | None:
    """(n, nModified) of the raw reply of a write that succeeded and upserted nothing; None of any
    other."""
