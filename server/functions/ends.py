"""Why a process ended, by its exit code and what it wrote last."""

from __future__ import annotations

import signal

SHOWN = 500  # characters of its last line


def reason(tail: str, code: int) -> str:
    """memory, cpu or crash, of a process that was not killed by us."""
    if code in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        return "cpu"
    trap = code in (-signal.SIGTRAP, 128 + signal.SIGTRAP)
    spent = "out of memory" in tail.lower() or "Fatal JavaScript out" in tail
    return "memory" if spent or (trap and "heap" in tail) else "crash"


def while_loading(reason: str, tail: str, code: int) -> str:
    """What the log says of one that ended before it served anything."""
    if reason == "memory":
        return "It used more memory than it may while loading."
    if reason == "cpu":
        return "It used more processor time than it may while loading."
    text = f"Its process ended with {named(code)} while loading."
    last = [line for line in tail.strip().splitlines() if line.strip()]
    if last and reason == "crash":
        text += f" {last[-1][:SHOWN]}"
    return text


def named(code: int) -> str:
    """An exit code for people."""
    number = -code if code < 0 else code - 128 if code > 128 else 0
    try:
        return f"the signal {signal.Signals(number).name}" if number else f"exit code {code}"
    except ValueError:
        return f"exit code {code}"
