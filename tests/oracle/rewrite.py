"""Slow twin of ichicore.rest.rewrite: parses the whole tree into Python values first."""

from __future__ import annotations

from typing import Any


def _tokens(text: str) -> list[str]:
    found: list[str] = []
    word = ""
    position = 0
    while position < len(text):
        char = text[position]
        if char == "\\":
            word += text[position : position + 2]
            position += 2
            continue
        if char in " \n(){}":
            if word:
                found.append(word)
                word = ""
            if char in "(){}":
                found.append(char)
        else:
            word += char
        position += 1
    if word:
        found.append(word)
    return found


def _parse(tokens: list[str], position: int, closing: str) -> tuple[list[Any], int]:
    items: list[Any] = []
    while position < len(tokens) and tokens[position] != closing:
        token = tokens[position]
        if token == "(":
            inner, position = _parse(tokens, position + 1, ")")
            items.append(inner)
        elif token == "{":
            inner, position = _parse(tokens, position + 1, "}")
            items.append(inner)
        else:
            items.append(token)
            position += 1
    return items, position + 1


def _field(node: list[Any], name: str) -> Any:
    """The value after `:name`; every field of the nodes read here has exactly one value."""
    for index in range(1, len(node) - 1, 2):
        if node[index] == f":{name}":
            return node[index + 1]
    return None


def origins(tree: bytes) -> list[tuple[int, int, int]]:
    parsed, _ = _parse(_tokens(tree.decode()), 0, "")
    query = parsed[0][0]
    targets: Any = None
    for index, item in enumerate(query):
        if item == ":targetList":
            targets = query[index + 1]
    if not isinstance(targets, list):
        return []
    found = []
    for entry in targets:
        resno, table, column = (
            int(_field(entry, name)) for name in ("resno", "resorigtbl", "resorigcol")
        )
        if resno and table and column:
            found.append((resno, table, column))
    return found
