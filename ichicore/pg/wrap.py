"""Rewriting a statement so that Postgres itself writes some of its columns as JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence

_DML = re.compile(r"\s*(insert|update|delete|merge)\b", re.IGNORECASE)
_WITH = re.compile(r"\s*with\b", re.IGNORECASE)
_MAIN = re.compile(r"(select|insert|update|delete|merge|values|table)\b", re.IGNORECASE)
_DOLLAR = re.compile(r"\$(?:[A-Za-z_\x80-\uffff][A-Za-z_0-9\x80-\uffff]*)?\$")
_SPACE_OR_COMMENT = re.compile(r"(?:\s+|--[^\n]*\n?)+")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _skip_quoted(sql: str, at: int) -> int:
    """End of the string, identifier, dollar-quoted text or comment that begins at `at`, or `at`."""
    char = sql[at]
    if char in "'\"":
        escapes = char == "'" and at > 0 and sql[at - 1] in "eE"
        at += 1
        while at < len(sql):
            if escapes and sql[at] == "\\":
                at += 2
            elif sql[at] == char:
                if sql[at : at + 2] == char * 2:
                    at += 2
                else:
                    return at + 1
            else:
                at += 1
        return at
    if char == "$" and (tag := _DOLLAR.match(sql, at)):
        end = sql.find(tag.group(), tag.end())
        return len(sql) if end < 0 else end + len(tag.group())
    if sql.startswith("--", at):
        end = sql.find("\n", at)
        return len(sql) if end < 0 else end + 1
    if sql.startswith("/*", at):
        depth = 0
        while at < len(sql):
            if sql.startswith("/*", at):
                depth, at = depth + 1, at + 2
            elif sql.startswith("*/", at):
                depth, at = depth - 1, at + 2
                if depth == 0:
                    return at
            else:
                at += 1
        return at
    return at


def _main_query(sql: str) -> int:
    """Where the main query of a WITH statement begins, -1 when it cannot be found: the first
    verb outside parentheses that follows the last common table expression's closing one."""
    depth, at, after_paren = 0, 0, False
    while at < len(sql):
        end = _skip_quoted(sql, at)
        if end > at:
            after_paren = after_paren and sql[at] in "-/"
            at = end
            continue
        char = sql[at]
        if char == "(":
            depth, after_paren = depth + 1, False
        elif char == ")":
            depth, after_paren = depth - 1, True
        elif char.isalpha():
            if depth == 0 and after_paren and _MAIN.match(sql, at):
                return at
            while at + 1 < len(sql) and (sql[at + 1].isalnum() or sql[at + 1] in "_$"):
                at += 1
            after_paren = False
        elif not char.isspace():
            after_paren = False
        at += 1
    return -1


def wrap(sql: str, names: Sequence[str], foreign: Sequence[bool], strip_nulls: bool) -> str:
    """`sql` with the same columns in the same order, those marked `foreign` as json.

    Statements that change data may stand in a WITH clause only at the top level, so a WITH
    statement keeps its clause and gets one expression more; parameters keep their numbers.
    """
    body = sql.rstrip().removesuffix(";")
    inner = [f"c{i}" for i in range(len(names))]
    outer = []
    for column, name, wanted in zip(inner, names, foreign, strict=True):
        if not wanted:
            expression = column
        elif strip_nulls:
            expression = f"pg_catalog.json_strip_nulls(pg_catalog.to_json({column}))"
        else:
            expression = f"pg_catalog.to_json({column})"
        outer.append(f"{expression} AS {_quoted(name)}")
    select = f"SELECT {', '.join(outer)} FROM"
    alias = f"_ichi_rows({', '.join(inner)})"
    start = _SPACE_OR_COMMENT.match(body)
    head = body[start.end() :] if start else body
    if _WITH.match(head):
        main = _main_query(body)
        if main > 0:
            return f"{body[:main]}, {alias} AS ({body[main:]}\n) {select} _ichi_rows"
    if _DML.match(head):
        return f"WITH {alias} AS ({body}\n) {select} _ichi_rows"
    return f"{select} ({body}\n) AS {alias}"
