"""Variables in strings: "${auth.uid}", "$auth.uid", "a:${auth.uid}"; "$${" is a literal "${"."""

from __future__ import annotations

import re

SIMPLE = ("auth.uid", "auth.role", "auth.email", "now")
CLAIMS = "auth.claims."
_PART = re.compile(r"[^.$\s{}\x00]+")
MOST_NAME = 256


def known(name: str) -> bool:
    if name in SIMPLE:
        return True
    if not name.startswith(CLAIMS) or len(name) > MOST_NAME:
        return False
    return all(_PART.fullmatch(part) for part in name[len(CLAIMS) :].split("."))


def parse(text: str) -> str | tuple[str | tuple[str], ...]:
    """A plain text (with "$${" read as "${") or its parts: texts, and variables as 1-tuples.

    ValueError with a message for an unknown name or an open brace.
    """
    if "$" not in text:
        return text
    if text.startswith("$auth."):
        return ((_checked(text[1:]),),)
    if "${" not in text:
        return text
    parts: list[str | tuple[str]] = []
    literal = ""
    at = 0
    while True:
        found = text.find("${", at)
        if found < 0:
            literal += text[at:]
            break
        if found > at and text[found - 1] == "$":
            literal += text[at : found - 1] + "${"
            at = found + 2
            continue
        literal += text[at:found]
        end = text.find("}", found)
        if end < 0:
            raise ValueError("'${' without '}'; write '$${' for the characters themselves")
        name = _checked(text[found + 2 : end])
        if literal:
            parts.append(literal)
            literal = ""
        parts.append((name,))
        at = end + 1
    if not parts:
        return literal
    if literal:
        parts.append(literal)
    return tuple(parts)


def _checked(name: str) -> str:
    if not known(name):
        raise ValueError(
            f"unknown name '{name}'; known are auth.uid, auth.role, auth.email, "
            "auth.claims.<path> and now"
        )
    return name
