"""The configuration file: `name = value` lines with strings, numbers, booleans and comments."""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


class ConfFileError(ValueError):
    """A line that cannot be read; the text names it."""


def parse(text: str) -> dict[str, str | bool | int]:
    """Names to values; a later line wins over an earlier one."""
    values: dict[str, str | bool | int] = {}
    position, line = 0, 1
    while position < len(text):
        character = text[position]
        if character == "\n":
            line += 1
            position += 1
        elif character.isspace():
            position += 1
        elif character == "#":
            end = text.find("\n", position)
            position = len(text) if end < 0 else end
        else:
            found = NAME.match(text, position)
            if not found:
                raise ConfFileError(f"line {line}: expected a setting's name")
            name = found.group()
            position = _skip_blanks(text, found.end())
            if text[position : position + 1] != "=":
                raise ConfFileError(f"line {line}: expected = after {name}")
            position = _skip_blanks(text, position + 1)
            value, position = _value(text, position, line)
            values[name] = value
            line += value.count("\n") if isinstance(value, str) else 0
    return values


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t":
        position += 1
    return position


def _value(text: str, position: int, line: int) -> tuple[str | bool | int, int]:
    if text[position : position + 1] == '"':
        return _string(text, position + 1, line)
    end = position
    while end < len(text) and text[end] not in "\n#":
        end += 1
    word = text[position:end].strip()
    if word.lower() in {"true", "on", "yes"}:
        return True, end
    if word.lower() in {"false", "off", "no"}:
        return False, end
    if re.fullmatch(r"-?[0-9]{1,18}", word):
        return int(word), end
    raise ConfFileError(f"line {line}: a value is a quoted string, a number, true or false")


def _string(text: str, position: int, line: int) -> tuple[str, int]:
    parts: list[str] = []
    while position < len(text):
        character = text[position]
        if character == '"':
            return "".join(parts), position + 1
        if character == "\\":
            position += 1
            escaped = text[position : position + 1]
            if escaped in ESCAPES:
                parts.append(ESCAPES[escaped])
            elif escaped == "\n":  # a line continued on the next one
                pass
            elif escaped == "u" and re.fullmatch(
                r"[0-9A-Fa-f]{4}", text[position + 1 : position + 5]
            ):
                parts.append(chr(int(text[position + 1 : position + 5], 16)))
                position += 4
            else:
                parts.append("\\" + escaped)
        else:
            parts.append(character)
        position += 1
    raise ConfFileError(f"line {line}: the string has no end")
