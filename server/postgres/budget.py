"""One cap on connections for all pools of a process."""

from __future__ import annotations

from typing import Protocol


class Member(Protocol):
    def give_back(self) -> bool:
        """Closes one idle connection; false when there is none."""
        ...

    def wanted(self) -> None:
        """A connection may be opened now."""
        ...


class ConnectionBudget:
    """Counts connections of many pools under `limit`; takes idle ones from the pool that used
    its own longest ago when another needs one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._members: dict[Member, None] = {}  # in order of last use
        self._waiting: dict[Member, None] = {}

    def join(self, member: Member) -> None:
        self._members.setdefault(member)

    def leave(self, member: Member) -> None:
        self._members.pop(member, None)
        self._waiting.pop(member, None)

    def take(self, member: Member) -> bool:
        """Room for one more connection. When false, `member.wanted` is called later."""
        self._members.pop(member, None)
        self._members[member] = None
        if self.used >= self.limit:
            for other in list(self._members):
                if other is not member and other.give_back():
                    break
        if self.used >= self.limit:
            self._waiting.setdefault(member)
            return False
        self._waiting.pop(member, None)
        self.used += 1
        return True

    def release(self) -> None:
        """One connection less."""
        self.used -= 1
        if self._waiting:
            member = next(iter(self._waiting))
            del self._waiting[member]
            member.wanted()
