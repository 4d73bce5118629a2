"""The admin listener's routes: a table that other rooms add to."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import orjson

from ichicore.errors import ApiError

BODY_LIMIT = 16 << 20


class AdminRequest(msgspec.Struct):
    """params: the path's named parts. body: raw bytes. query: decoded pairs, the last one wins."""

    method: str
    path: str
    params: dict[str, str]
    query: dict[str, str]
    body: bytes

    def decode(self, shape: type[Any]) -> Any:
        """The body as a struct; ApiError 400 says what is wrong."""
        try:
            return msgspec.json.decode(self.body or b"{}", type=shape)
        except msgspec.ValidationError as error:
            raise ApiError(400, "invalid_body", str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ApiError(400, "bad_request", "The body is not valid JSON.") from None


class AdminResponse(msgspec.Struct):
    """value: JSON when not None; else text with its content type."""

    status: int = 200
    value: Any = None
    text: bytes = b""
    content_type: str = "application/json"

    def body(self) -> bytes:
        if self.content_type != "application/json":
            return self.text
        return orjson.dumps(self.value, default=msgspec.to_builtins)


Handler = Callable[[AdminRequest], Awaitable[AdminResponse]]


class Described(msgspec.Struct):
    """One route with what the OpenAPI document says of it."""

    method: str
    pattern: str
    handler: Handler
    summary: str
    body: Any = None
    result: Any = None
    public: bool = False


class Router:
    def __init__(self) -> None:
        self.routes: list[Described] = []
        self._compiled: list[tuple[re.Pattern[str], dict[str, Described]]] = []

    def add(self, method: str, pattern: str, handler: Handler, summary: str, *,
            body: Any = None, result: Any = None, public: bool = False) -> None:  # fmt: skip
        """pattern: a path with {named} parts. body, result: types of the request's and the
        answer's JSON, for the document; a tuple says that one of them applies. public: answered
        without the token."""
        route = Described(method, pattern, handler, summary, body, result, public)
        self.routes.append(route)
        expression = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern) + r"\Z")
        for known, methods in self._compiled:
            if known.pattern == expression.pattern:
                methods[method] = route
                return
        self._compiled.append((expression, {method: route}))

    def find(self, method: str, path: str) -> tuple[Described, dict[str, str]]:
        """ApiError 404 not_found or 405 method_not_allowed."""
        for expression, methods in self._compiled:
            match = expression.match(path)
            if match is None:
                continue
            route = methods.get(method)
            if route is None:
                raise ApiError(
                    405, "method_not_allowed", f"use {', '.join(sorted(methods))}",
                    headers=(("allow", ", ".join(sorted(methods))),),
                )  # fmt: skip
            return route, match.groupdict()
        raise ApiError(404, "not_found", "There is nothing at this path.")


class Refusal(msgspec.Struct):
    """Why a request was not served. details: of SQL errors the sqlstate, hint, line and column."""

    code: str
    detail: str
    details: dict[str, Any] | None = None


def _shapes(shape: Any) -> list[Any]:
    """The types of a body: none, one, or those of a tuple, of which one applies."""
    if shape is None:
        return []
    return list(shape) if isinstance(shape, tuple) else [shape]


def openapi(router: Router, url: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of all routes, from their structs."""
    wanted = [Refusal]
    for route in router.routes:
        wanted += [*_shapes(route.body), *_shapes(route.result)]
    schemas, components = msgspec.json.schema_components(
        wanted, ref_template="#/components/schemas/{name}"
    )
    described = iter(schemas)

    def content(shape: Any) -> dict[str, Any]:
        found = [next(described) for _ in _shapes(shape)]
        return {"application/json": {"schema": found[0] if len(found) == 1 else {"anyOf": found}}}

    refusal = {"description": "Refused", "content": content(Refusal)}
    paths: dict[str, dict[str, Any]] = {}
    for route in router.routes:
        operation: dict[str, Any] = {"summary": route.summary}
        names = re.findall(r"\{(\w+)\}", route.pattern)
        if names:
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in names
            ]
        if route.body is not None:
            operation["requestBody"] = {"required": True, "content": content(route.body)}
        done: dict[str, Any] = {"description": "Done"}
        if route.result is not None:
            done["content"] = content(route.result)
        operation["responses"] = {"2XX": done, "default": refusal}
        if route.public:
            operation["security"] = []
        paths.setdefault(route.pattern, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "ichibase admin", "version": "1"},
        "servers": [{"url": url}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
