from ichicore.mongo.parts import Caps, Command

def parse(operation: str, body: bytes, caps: Caps) -> Command:
    """ApiError: 404 unknown_operation, 400 bad_request, operator_not_allowed, stage_not_allowed,
    413 too_many_docs, doc_too_large. The message names the member, such as
    "filter.$or[1].a.$foo: operator not allowed"."""
