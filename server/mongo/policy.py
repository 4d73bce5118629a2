"""Decisions of a project's own function, `_mongo_policy`. Whatever goes wrong is a refusal."""

from __future__ import annotations

import logging

import orjson

from ichicore.errors import ApiError
from ichicore.mongo import Command
from ichicore.rules import Decision, decision_of
from server.base.context import WorkerContext
from server.base.project import Identity, Project

log = logging.getLogger("ichibase.mongo")
FUNCTION = "_mongo_policy"
LARGEST = 256 << 10  # bytes of a request's members that the function is shown


async def ask_function(
    context: WorkerContext,
    project: Project,
    command: Command,
    collection: str,
    role: str,
    identity: Identity,
) -> Decision:
    """One call for the whole request, a batch too."""
    members = {
        name: orjson.Fragment(text) for name, text in command.members.items() if name != "ordered"
    }
    if sum(map(len, command.members.values())) > LARGEST:
        members = {}
    question = {
        "operation": command.operation, "collection": collection, "user_id": identity.uid,
        "role": role, "claims": identity.claims, **members,
    }  # fmt: skip
    try:
        from server.base.functions import call_internal
    except ImportError:
        return Decision(False, "the policy function cannot be called here")
    try:
        answer = await call_internal(context, project, FUNCTION, orjson.dumps(question))
        return decision_of(orjson.loads(answer))
    except ApiError as error:
        log.warning("the policy function of project %s failed: %s", project.slug, error)
        return Decision(False, "the policy function failed")
    except (ValueError, OSError, TimeoutError) as error:
        log.warning("the policy function of project %s failed: %s", project.slug, error)
        return Decision(False, "the policy function failed")
