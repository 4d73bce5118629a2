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
    body: type[Any] | None = None
    public: bool = False


class Router:
    def __init__(self) -> None:
        self.routes: list[Described] = []
        self._compiled: list[tuple[re.Pattern[str], dict[str, Described]]] = []

    def add(self, method: str, pattern: str, handler: Handler, summary: str, *,
            body: type[Any] | None = None, public: bool = False) -> None:  # fmt: skip
        """pattern: a path with {named} parts. public: answered without the token."""
        route = Described(method, pattern, handler, summary, body, public)
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


def openapi(router: Router, url: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of all routes, from their structs."""
    shapes = [route.body for route in router.routes if route.body is not None]
    schemas, components = msgspec.json.schema_components(
        shapes, ref_template="#/components/schemas/{name}"
    )
    by_shape = dict(zip(shapes, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in router.routes:
        operation: dict[str, Any] = {
            "summary": route.summary,
            "responses": {"default": {"description": "the result, or an error {code, detail}"}},
        }
        names = re.findall(r"\{(\w+)\}", route.pattern)
        if names:
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in names
            ]
        if route.body is not None:
            content = {"application/json": {"schema": by_shape[route.body]}}
            operation["requestBody"] = {"required": True, "content": content}
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
