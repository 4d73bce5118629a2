"""The document service: a request, its decision, its operations, its answer."""

from __future__ import annotations

from pymongo.errors import PyMongoError

from ichicore.errors import ApiError
from ichicore.mongo import Command, Plan, apply, check_collection, parse, reply
from ichicore.mongo.grammar import INSERTS, OPERATIONS, UPDATES
from ichicore.rules import Decision
from server.base.context import WorkerContext
from server.base.http import JSON, Request, Response, error_response
from server.base.project import Project
from server.mongo import bulk, faults, single
from server.mongo.access import SERVICE, asking, decide, role_of
from server.mongo.execute import Event, Executor
from server.mongo.faults import DriverError
from server.mongo.policy import ask_function
from server.mongo.room import Room
from server.mongo.rulebook import Rulebook
from server.mongo.short import Guide
from server.mongo.stores import Stores

HEADERS = [JSON]
WRITES = frozenset((*INSERTS, *UPDATES, "deleteOne", "deleteMany", "findOneAndDelete", "bulkWrite"))
GROWING = frozenset((*INSERTS, *UPDATES, "bulkWrite"))
ALLOWED = (("allow", "POST"),)


class MongoService:
    """Mounted under /mongo."""

    def __init__(self, room: Room) -> None:
        self.room = room

    async def handle(self, request: Request) -> Response:
        try:
            return Response(200, HEADERS, await self._answer(request))
        except Exception as error:
            known = self.refusal(request.project, error)
            if known is None:
                raise
            return error_response(known)

    def refusal(self, project: Project, error: Exception) -> ApiError | None:
        """The coded answer to a request that raised this; None for what must not happen."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, TimeoutError):
            return faults.timed_out()
        if isinstance(error, DriverError | PyMongoError | OSError):
            known = faults.refusal(error)
            if known is not None and known.status >= 500:
                self.room.note(project, error)
            return known
        return None

    async def _answer(self, request: Request) -> bytes:
        operation, collection = _route(request.path)
        if operation not in OPERATIONS:
            raise ApiError(404, "unknown_operation", f"unknown operation: {operation[:40]}")
        if request.method != "POST":
            raise ApiError(405, "method_not_allowed", "This path takes POST.", headers=ALLOWED)
        check_collection(collection)
        room, project, identity = self.room, request.project, request.identity
        store = room.stores.get(project)
        book = room.rulebook.of(project)
        role = role_of(identity)
        service = role == SERVICE
        limits = project.limits
        body = await request.read_body(limits.document_body)
        caps = room.caps(book, service)
        command = parse(operation, body, caps)
        decision: Decision | dict[tuple[str, bool], Decision]
        if book.by_function:
            decision = await ask_function(
                room.context, project, command, collection, role, identity
            )
        else:
            decision = decide(book, command, collection, asking(role, identity))
        plans = apply(command, decision)
        if operation in GROWING:
            await room.quota.check(project, store)
        seconds = book.operation_ms / 1000
        told = collection in book.realtime and not (service and _is_quiet(request.query))
        executor = Executor(store, collection, seconds, caps.max_docs, project.tier != "free")
        if operation not in WRITES:
            return await read(executor, plans[0])
        answer, events = await write(executor, command, plans, told)
        room.quota.written(project, store)
        if told and events:
            room.tell(project.id, collection, events)
        return answer

    def guide(self, project: Project) -> Guide | None:
        """For the short way; None where a project's requests cannot take it."""
        book = self.room.rulebook.of(project)
        try:
            store = self.room.stores.get(project)
        except ApiError:
            return None
        if book.by_function or not store.address.short or store.address.tls is not None:
            return None
        return Guide(self.room, project, store, book)


def _route(path: str) -> tuple[str, str]:
    parts = path.split("/")
    if len(parts) != 4 or parts[1] != "v1":
        raise ApiError(
            404, "not_found", "The path of a document operation is /mongo/v1/<op>/<collection>."
        )
    return parts[2], parts[3]


def _is_quiet(query: str) -> bool:
    return "realtime=false" in query.split("&")


async def read(executor: Executor, plan: Plan) -> bytes:
    """The answer to find, findOne, count, distinct and aggregate."""
    elements = single.reading(plan, executor.collection, executor.disk)
    if plan.operation in ("count", "distinct"):
        return single.read(plan, [await executor.ask(elements)])
    return single.read(plan, await executor.found(elements))


async def write(
    executor: Executor, command: Command, plans: tuple[Plan, ...], told: bool
) -> tuple[bytes, list[Event]]:
    """The answer to a write, and what it changed where that is told."""
    operation, plan = command.operation, plans[0]
    if operation == "bulkWrite":
        return await bulk.write(executor, plans, command.ordered, told)
    if single.is_single(plan, told):
        found = await executor.write(single.writing(plan, executor.collection, command.ordered))
        return single.written(command, plan, found), inserts(plan) if told else []
    if operation in single.DELETES:
        done = await executor.delete(plan.filter, multi=operation == "deleteMany")
        return b'{"deleted":%d}' % done.matched, list(done.events)
    if operation == "findOneAndDelete":
        done = await executor.find_one_and_delete(
            plan.filter, sort=plan.sort, projection=plan.projection, look=told
        )
        return reply.one_reply(done.found, plan.read), list(done.events)
    change = bulk.change_of(plan, told)
    if operation == "findOneAndUpdate":
        done = await executor.find_one_and_update(
            change, after=plan.after, projection=plan.projection
        )
        return reply.one_reply(done.found, plan.read), list(done.events)
    done = await executor.update(change)
    return single.changed(operation, done), list(done.events)


def inserts(plan: Plan) -> list[Event]:
    """What an insert changed."""
    return [Event("insert", document, None) for document in plan.documents]


async def create(context: WorkerContext) -> MongoService:
    """The service of one worker."""
    config = context.config
    stores = Stores(config.max_connections, context.directory, config.data_dir)
    room = Room(context, stores, Rulebook(context.directory))
    context.on_start.append(room.start)
    context.on_stop.append(room.stop)
    return MongoService(room)
