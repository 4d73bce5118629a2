from ichicore.mongo.parts import Caps, Command

def parse(operation: str, body: bytes, caps: Caps) -> Command:
    """ApiError: 404 unknown_operation, 400 bad_request, operator_not_allowed, stage_not_allowed,
    413 too_many_docs, doc_too_large. The message names the member, such as
    "filter.$or[1].a.$foo: operator not allowed"."""

def plain_filter(body: bytes, caps: Caps) -> bytes | None:
    """The filter as BSON of a body that has no other member, EMPTY where it has none at all; None
    of any other body. ApiError as parse's."""
