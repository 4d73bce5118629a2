"""Who asks, and what the rules say to it."""

from __future__ import annotations

import time

from ichicore.errors import ApiError
from ichicore.mongo import Command
from ichicore.rules import ALLOW, Context, Decision
from server.base.project import Identity
from server.mongo.rulebook import Book

SERVICE = "service_role"


def role_of(identity: Identity) -> str:
    """A secret key stays one with a user's token beside it."""
    if SERVICE in (identity.role, identity.key_role):
        return SERVICE
    return identity.role


def asking(role: str, identity: Identity) -> Context:
    """Who asks, as rules see it."""
    claims = identity.claims
    email = claims.get("email")
    return Context(
        role, identity.uid, email if isinstance(email, str) else None, claims, time.time()
    )


def decide(
    book: Book, command: Command, collection: str, who: Context
) -> Decision | dict[tuple[str, bool], Decision]:
    """What the rules say, not for a project whose function decides. ApiError 403 for a batch of
    which a part is refused."""
    if who.role == SERVICE and not book.enforce_service_role:
        return ALLOW
    if command.operation == "bulkWrite":
        found = book.policy.decide_bulk(command.pairs, collection, who)
        if isinstance(found, Decision) and not found.allow:
            raise ApiError(403, "policy_denied", found.reason)
        return found
    return book.policy.decide(command.operation, collection, who, upsert=command.parts[0].upsert)
