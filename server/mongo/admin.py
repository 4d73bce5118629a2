"""The admin port's routes of the document service: collections, schemas, indexes, rules."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import bson
import msgspec
import orjson
from bson import json_util
from pymongo import AsyncMongoClient
from pymongo.errors import CollectionInvalid, OperationFailure, PyMongoError

from ichicore.errors import ApiError
from ichicore.rules import RuleError, compile_policy
from server.base.project import Project
from server.control import records
from server.control.api import AdminApi, ShownProject, shown
from server.control.routes import AdminRequest, AdminResponse, Router
from server.mongo import faults, history
from server.mongo.explain import Explained, Question, explain
from server.mongo.rulebook import Book
from server.mongo.schema import check as check_schema
from server.mongo.stores import not_enabled

COLLECTION = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,119}\Z")
INDEX = re.compile(r"[A-Za-z0-9_.$ -]{1,120}\Z")
WAIT_MS = 10_000

Direction = Literal[1, -1, "2dsphere", "hashed", "text"]


class NewCollection(msgspec.Struct, forbid_unknown_fields=True):
    """schema: a JSON Schema as MongoDB's $jsonSchema takes it."""

    name: str
    schema: dict[str, Any] | None = None


class Schema(msgspec.Struct, forbid_unknown_fields=True):
    """schema: None takes it away. level: whether documents that do not fit already may be
    updated. action: refuse what does not fit, or only note it in the server's log."""

    schema: dict[str, Any] | None
    level: Literal["strict", "moderate"] = "strict"
    action: Literal["error", "warn"] = "error"


class NewIndex(msgspec.Struct, forbid_unknown_fields=True):
    """keys: path and direction each, in order. expire_after_seconds: documents end so long after
    the date in the field. partial: filter of the documents that the index holds."""

    keys: Annotated[list[tuple[str, Direction]], msgspec.Meta(min_length=1, max_length=32)]
    name: str | None = None
    unique: bool = False
    sparse: bool = False
    expire_after_seconds: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None
    partial: dict[str, Any] | None = None


class ShownCollection(msgspec.Struct):
    """documents, bytes: as the server keeps count of them. bytes: of documents and indexes."""

    name: str
    documents: int
    bytes: int
    indexes: int
    schema: dict[str, Any] | None
    level: str
    action: str


class ShownIndex(msgspec.Struct):
    name: str
    keys: list[tuple[str, Any]]
    unique: bool
    sparse: bool
    expire_after_seconds: int | None
    partial: dict[str, Any] | None


class RulesText(msgspec.Struct, forbid_unknown_fields=True):
    rules: dict[str, Any]


class Mistake(msgspec.Struct):
    path: str
    message: str


class Checked(msgspec.Struct):
    """collections, rules: how many there are, 0 when there are mistakes."""

    valid: bool
    mistakes: list[Mistake]
    collections: int
    rules: int


class Restore(msgspec.Struct, forbid_unknown_fields=True):
    revision: int


class Done(msgspec.Struct):
    done: bool


def register(router: Router, api: AdminApi) -> None:
    """Adds the routes below to the admin server."""
    rooms = _Routes(api)
    base = "/admin/v1/projects/{project}/mongo"
    one = base + "/collections/{collection}"
    add = router.add
    add("POST", base, rooms.enable, "Give a project of tables documents as well",
        result=ShownProject)  # fmt: skip
    add("GET", base + "/collections", rooms.collections, "Collections with their sizes",
        result=list[ShownCollection])  # fmt: skip
    add("POST", base + "/collections", rooms.create, "Create a collection",
        body=NewCollection, result=ShownCollection)  # fmt: skip
    add("DELETE", one, rooms.drop, "Delete a collection and its documents", result=Done)
    add("PUT", one + "/schema", rooms.schema, "Set or take away a collection's schema",
        body=Schema, result=ShownCollection)  # fmt: skip
    add("GET", one + "/indexes", rooms.indexes, "Indexes of a collection",
        result=list[ShownIndex])  # fmt: skip
    add("POST", one + "/indexes", rooms.create_index, "Create an index",
        body=NewIndex, result=ShownIndex)  # fmt: skip
    add("DELETE", one + "/indexes/{index}", rooms.drop_index, "Delete an index", result=Done)
    add("POST", base + "/rules/check", rooms.check, "Check rules without saving them",
        body=RulesText, result=Checked)  # fmt: skip
    add("POST", base + "/rules/explain", rooms.explain, "What the rules in force say of a request",
        body=Question, result=Explained)  # fmt: skip
    add("GET", base + "/rules/history", rooms.history, "Rules in force before, newest first",
        result=list[history.Version])  # fmt: skip
    add("POST", base + "/rules/restore", rooms.restore, "Put rules of the history in force again",
        body=Restore, result=history.Version)  # fmt: skip


def check_name(name: str) -> str:
    """ApiError 400 invalid_collection."""
    if not COLLECTION.match(name) or name.startswith("system."):
        raise ApiError(400, "invalid_collection", "This is no name of a collection.")
    return name


class _Routes:
    def __init__(self, api: AdminApi) -> None:
        self.api = api

    @asynccontextmanager
    async def _database(self, request: AdminRequest) -> AsyncIterator[Any]:
        """The project's database under its own login."""
        project = await self._project(request)
        assert project.mongo_url is not None
        client: AsyncMongoClient[Any] = AsyncMongoClient(
            project.mongo_url, appname="ichibase admin", serverSelectionTimeoutMS=WAIT_MS,
            connectTimeoutMS=5_000,
        )  # fmt: skip
        try:
            async with client:
                yield client.get_default_database()
        except CollectionInvalid:
            raise ApiError(409, "collection_exists", "The collection is there already.") from None
        except (PyMongoError, bson.errors.BSONError) as error:
            raise (faults.refusal(error) or faults.away()) from None

    async def _project(self, request: AdminRequest) -> Project:
        _, project = await self.api.record(request)
        if project.flavor == "postgres":
            raise not_enabled()
        if project.mongo_url is None or self.api.projects.documents is None:
            raise faults.away("This node has no document server.")
        return project

    async def enable(self, request: AdminRequest) -> AdminResponse:
        projects = self.api.projects
        record = await projects.add_documents(request.params["project"], actor="admin")
        return AdminResponse(201, shown(record, records.to_project(record, projects.config)))

    async def collections(self, request: AdminRequest) -> AdminResponse:
        async with self._database(request) as database:
            found = await (await database.list_collections()).to_list()
            shown = [
                await _shown(database, one)
                for one in sorted(found, key=lambda one: str(one["name"]))
                if not one["name"].startswith("system.") and one.get("type") != "view"
            ]
        return AdminResponse(value=shown)

    async def create(self, request: AdminRequest) -> AdminResponse:
        wanted = request.decode(NewCollection)
        name = check_name(wanted.name)
        if wanted.schema is not None:
            check_schema(wanted.schema)
        async with self._database(request) as database:
            await database.create_collection(name)
        if wanted.schema is not None:
            await self._validate(request, name, Schema(wanted.schema))
        return AdminResponse(201, await self._one(request, name))

    async def drop(self, request: AdminRequest) -> AdminResponse:
        name = check_name(request.params["collection"])
        async with self._database(request) as database:
            await _existing(database, name)
            await database.drop_collection(name)
        return AdminResponse(value=Done(True))

    async def schema(self, request: AdminRequest) -> AdminResponse:
        name = check_name(request.params["collection"])
        wanted = request.decode(Schema)
        if wanted.schema is not None:
            check_schema(wanted.schema)
        async with self._database(request) as database:
            if not await database.list_collection_names(filter={"name": name}):
                await database.create_collection(name)
        await self._validate(request, name, wanted)
        return AdminResponse(value=await self._one(request, name))

    async def _validate(self, request: AdminRequest, name: str, wanted: Schema) -> None:
        """The project's own login may not change what a collection takes."""
        project = await self._project(request)
        documents = self.api.projects.documents
        assert documents is not None
        assert project.mongo_url is not None
        validator = {} if wanted.schema is None else {"$jsonSchema": _values(wanted.schema)}
        async with documents.admin(project.mongo_url) as client:
            database = client[documents.database(project.mongo_url)]
            try:
                await database.command(
                    "collMod", name, validator=validator, validationLevel=wanted.level,
                    validationAction=wanted.action,
                )  # fmt: skip
            except OperationFailure as error:
                told = str((error.details or {}).get("errmsg"))
                raise faults.of_code(error.code or 0, told) from None

    async def _one(self, request: AdminRequest, name: str) -> ShownCollection:
        async with self._database(request) as database:
            return await _shown(database, await _existing(database, name))

    async def indexes(self, request: AdminRequest) -> AdminResponse:
        name = check_name(request.params["collection"])
        async with self._database(request) as database:
            await _existing(database, name)
            return AdminResponse(value=await _indexes(database, name))

    async def create_index(self, request: AdminRequest) -> AdminResponse:
        name = check_name(request.params["collection"])
        wanted = request.decode(NewIndex)
        options: dict[str, Any] = {}
        if wanted.name is not None:
            if not INDEX.match(wanted.name):
                raise ApiError(400, "invalid_index", "This is no name of an index.")
            options["name"] = wanted.name
        if wanted.unique:
            options["unique"] = True
        if wanted.sparse:
            options["sparse"] = True
        if wanted.expire_after_seconds is not None:
            options["expireAfterSeconds"] = wanted.expire_after_seconds
        if wanted.partial is not None:
            options["partialFilterExpression"] = _values(wanted.partial)
        async with self._database(request) as database:
            made = await database[name].create_index(wanted.keys, **options)
            found = [one for one in await _indexes(database, name) if one.name == made]
        return AdminResponse(201, found[0])

    async def drop_index(self, request: AdminRequest) -> AdminResponse:
        name = check_name(request.params["collection"])
        index = request.params["index"]
        async with self._database(request) as database:
            await _existing(database, name)
            if index not in {one.name for one in await _indexes(database, name)}:
                raise ApiError(404, "index_not_found", "The collection has no such index.")
            await database[name].drop_index(index)
        return AdminResponse(value=Done(True))

    async def check(self, request: AdminRequest) -> AdminResponse:
        wanted = request.decode(RulesText)
        try:
            policy = compile_policy(wanted.rules)
        except RuleError as error:
            mistakes = [Mistake(path, message) for path, message in error.errors]
            return AdminResponse(value=Checked(False, mistakes, 0, 0))
        return AdminResponse(value=Checked(True, [], len(policy.collections), policy.rules))

    async def explain(self, request: AdminRequest) -> AdminResponse:
        _, project = await self.api.record(request)
        wanted = request.decode(Question)
        if project.flavor == "postgres":
            raise not_enabled()
        return AdminResponse(value=explain(Book.of(project), wanted))

    async def history(self, request: AdminRequest) -> AdminResponse:
        _, project = await self.api.record(request)
        async with self.api.projects.control() as control:
            return AdminResponse(value=await history.versions(control, project.id))

    async def restore(self, request: AdminRequest) -> AdminResponse:
        record, project = await self.api.record(request)
        wanted = request.decode(Restore)
        async with self.api.projects.control() as control:
            version = await history.version(control, project.id, wanted.revision)
        section = {**record.settings.get("mongo", {}), "rules": version.rules}
        section.pop("rules_text", None)
        from server.control import sections

        value = sections.check("mongo", orjson.dumps(section))
        await self.api.projects.put_settings(project.slug, "mongo", value, actor="admin")
        return AdminResponse(value=version)


def _values(document: dict[str, Any]) -> Any:
    """Extended JSON in it becomes the values it stands for. ApiError 400 bad_request."""
    try:
        return json_util.loads(orjson.dumps(document).decode())
    except (TypeError, ValueError, bson.errors.BSONError) as error:
        raise ApiError(400, "bad_request", f"The value cannot be read: {error}") from None


async def _existing(database: Any, name: str) -> dict[str, Any]:
    found = await (await database.list_collections(filter={"name": name})).to_list()
    if not found:
        raise ApiError(404, "collection_not_found", f'There is no collection "{name}".')
    one: dict[str, Any] = found[0]
    return one


async def _shown(database: Any, found: dict[str, Any]) -> ShownCollection:
    name = found["name"]
    sizes = await database.command("collStats", name)
    options = found.get("options", {})
    schema = options.get("validator", {}).get("$jsonSchema")
    return ShownCollection(
        name=name,
        documents=int(sizes.get("count", 0)),
        bytes=int(sizes.get("size", 0)) + int(sizes.get("totalIndexSize", 0)),
        indexes=int(sizes.get("nindexes", 0)),
        schema=None if schema is None else _plain(schema),
        level=options.get("validationLevel", "strict"),
        action=options.get("validationAction", "error"),
    )


async def _indexes(database: Any, name: str) -> list[ShownIndex]:
    found = await (await database[name].list_indexes()).to_list()
    return [
        ShownIndex(
            name=one["name"],
            keys=[(path, direction) for path, direction in one["key"].items()],
            unique=bool(one.get("unique", False)),
            sparse=bool(one.get("sparse", False)),
            expire_after_seconds=one.get("expireAfterSeconds"),
            partial=_plain(one.get("partialFilterExpression")),
        )
        for one in found
    ]


def _plain(value: Any) -> Any:
    return None if value is None else orjson.loads(json_util.dumps(value))
