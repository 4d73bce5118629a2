"""A projection applied to one document here, for what the server no longer has: the document as it
was before an update."""

from __future__ import annotations

from typing import Any

import bson
from bson.codec_options import CodecOptions, DatetimeConversion

OPTIONS: CodecOptions[Any] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
Tree = dict[str, Any]


def project(document: bytes, projection: bytes) -> bytes:
    """Inclusions or exclusions of (dotted) paths, as the server takes them."""
    wanted: dict[str, Any] = bson.decode(projection)
    found: dict[str, Any] = bson.decode(document, OPTIONS)
    others = {path: keep for path, keep in wanted.items() if path != "_id"}
    tree: Tree = {}
    for path in others:
        node = tree
        parts = path.split(".")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = {}
    if others:
        made = _keep(found, tree) if all(others.values()) else _drop(found, tree)
    else:
        made = {"_id": found["_id"]} if wanted.get("_id") else dict(found)
    if wanted.get("_id", True):
        made = {"_id": found["_id"], **{key: value for key, value in made.items() if key != "_id"}}
    else:
        made.pop("_id", None)
    return bson.encode(made)


def _keep(value: dict[str, Any], tree: Tree) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, inner in value.items():
        if key not in tree:
            continue
        below = tree[key]
        if not below:
            made[key] = inner
        elif isinstance(inner, dict):
            made[key] = _keep(inner, below)
        elif isinstance(inner, list):
            made[key] = [_keep(one, below) for one in inner if isinstance(one, dict)]
    return made


def _drop(value: dict[str, Any], tree: Tree) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, inner in value.items():
        below = tree.get(key)
        if below is None:
            made[key] = inner
        elif below:
            if isinstance(inner, dict):
                made[key] = _drop(inner, below)
            elif isinstance(inner, list):
                made[key] = [_drop(one, below) if isinstance(one, dict) else one for one in inner]
            else:
                made[key] = inner
    return made
