"""Which fields of a document may be read or written."""

from __future__ import annotations

from typing import Any

from ichicore.rules.codec import decode
from ichicore.rules.encode import encode


def plain(path: str) -> tuple[str, ...]:
    """The names in a path, without positions of arrays (0, $, $[], $[x])."""
    return tuple(
        part for part in path.split(".") if not (part.isdigit() or part[:1] == "$" or part == "")
    )


def overlaps(a: str, b: str) -> bool:
    first, second = plain(a), plain(b)
    shorter = min(len(first), len(second))
    return first[:shorter] == second[:shorter]


class FieldRule:
    __slots__ = ("_deny_plain", "_tree", "allow", "deny", "encoder")

    def __init__(self, allow: tuple[str, ...] = (), deny: tuple[str, ...] = ()) -> None:
        self.allow = tuple(allow)
        self.deny = tuple(deny)
        self.encoder: object = None  # for the answers' encoder to keep its own form
        self._deny_plain = tuple(plain(path) for path in self.deny)
        self._tree: dict[str, Any] = {}
        for path in self.allow or self.deny:
            node = self._tree
            parts = path.split(".")
            for part in parts[:-1]:
                node = node.setdefault(part, {})
                if node.get("") is True:
                    break
            else:
                node[parts[-1]] = {"": True}
        if self.allow:
            self._tree.setdefault("_id", {"": True})

    def allows(self, path: str) -> bool:
        if self._deny_plain:
            names = plain(path)
            return all(
                names[: len(denied)] != denied and denied[: len(names)] != names
                for denied in self._deny_plain
            )
        node = self._tree
        for part in path.split("."):
            if part[:1] == "$":  # a position in an update
                continue
            found = node.get(part)
            if found is None:
                return False
            if found.get("") is True:
                return True
            node = found
        return False

    def visible(self, path: str) -> bool:
        node = self._tree
        for part in plain(path) if self.deny else path.split("."):
            found = node.get(part)
            if found is None:
                return bool(self.deny)
            if found.get("") is True:
                return bool(self.allow)
            node = found
        return True

    def projection(self) -> dict[str, int]:
        """Paths below another listed path are left out: MongoDB refuses such pairs."""
        flag = 1 if self.allow else 0
        found: dict[str, int] = {}
        pending: list[tuple[str, dict[str, Any]]] = [("", self._tree)]
        while pending:
            prefix, node = pending.pop()
            for part, below in node.items():
                path = f"{prefix}{part}"
                if below.get("") is True:
                    found[path] = flag
                else:
                    pending.append((path + ".", below))
        return found

    def strip(self, document: dict[str, Any]) -> dict[str, Any]:
        if self.allow:
            return _keep(document, self._tree)
        return _drop(document, self._tree)

    def strip_raw(self, document: bytes) -> bytes:
        return encode(self.strip(decode(document)))

    def first_denied(self, document: dict[str, Any]) -> str | None:
        return _first(document, self._tree, bool(self.allow), "")


def _drop(value: Any, tree: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        kept = {}
        for key, member in value.items():
            node = tree.get(key) if key else None
            if node is None:
                kept[key] = member
            elif node.get("") is not True:
                kept[key] = _drop(member, node)
        return kept
    if isinstance(value, list):
        return [_drop(element, tree) for element in value]
    return value


_NOTHING = object()


def _keep(value: Any, tree: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        kept = {}
        for key, member in value.items():
            node = tree.get(key) if key else None
            if node is None:
                continue
            if node.get("") is True:
                kept[key] = member
            elif (below := _keep(member, node)) is not _NOTHING:
                kept[key] = below
        return kept
    if isinstance(value, list):
        found = (_keep(element, tree) for element in value)
        return [element for element in found if element is not _NOTHING]
    return _NOTHING


def _first(value: Any, tree: dict[str, Any], allow: bool, prefix: str) -> str | None:
    if isinstance(value, list):
        for element in value:
            if (isinstance(element, dict | list) or (allow and prefix)) and (
                found := _first(element, tree, allow, prefix)
            ):
                return found
        return None
    if not isinstance(value, dict):
        return prefix.rstrip(".") if allow and prefix else None
    for key, member in value.items():
        node = tree.get(key) if key else None
        if node is None:
            if allow:
                return prefix + key
        elif node.get("") is True:
            if not allow:
                return prefix + key
        elif found := _first(member, node, allow, f"{prefix}{key}."):
            return found
    return None
