"""The rules in force, per project: compiled once for each revision of its settings.

A worker that cannot compile what it reads refuses everything of that project until it reads
something better: there is no moment in which a request is served without rules.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from ichicore.rules import NOTHING, Policy
from server.base.context import Directory
from server.base.project import Project
from server.mongo.settings import MongoSettings, policy_of

log = logging.getLogger("ichibase.mongo")


class Book:
    """One project's rules and what goes with them, at one revision."""

    __slots__ = (
        "by_function", "enforce_service_role", "max_docs", "operation_ms", "policy", "project",
        "realtime",
    )  # fmt: skip

    def __init__(self, project: Project) -> None:
        self.project = project
        limits = project.limits
        self.policy: Policy = NOTHING
        self.by_function = False
        self.enforce_service_role = True  # until settings that can be read say otherwise
        self.max_docs = limits.max_documents
        self.operation_ms = limits.operation_ms
        self.realtime = _realtime(project.settings.get("realtime", {}))

    @classmethod
    def of(cls, project: Project) -> Book:
        """The book of a project as it is now; one that refuses everything when its settings cannot
        be used."""
        book = cls(project)
        try:
            book.use(msgspec.convert(project.settings.get("mongo", {}), MongoSettings))
        except ValueError as error:  # msgspec.ValidationError and RuleError are some
            log.error("the rules of project %s cannot be used: %s", project.slug, error)
        return book

    def use(self, settings: MongoSettings) -> None:
        """ichicore.rules.RuleError for rules that cannot be used."""
        self.policy = policy_of(settings)
        self.by_function = settings.mode == "function"
        self.enforce_service_role = settings.enforce_service_role
        self.max_docs = min(self.max_docs, settings.max_docs or self.max_docs)
        self.operation_ms = min(self.operation_ms, settings.operation_ms or self.operation_ms)


def _realtime(section: dict[str, Any]) -> frozenset[str]:
    """Collections whose changes the node tells: none where the database's change stream does."""
    found = section.get("collections")
    if not isinstance(found, dict) or section.get("documents") == "stream":
        return frozenset()
    return frozenset(
        name
        for name, entry in found.items()
        if isinstance(entry, dict) and entry.get("enabled", True)
    )


class Rulebook:
    """Hands out the book of a project as the directory knows it now."""

    def __init__(self, directory: Directory) -> None:
        self._books: dict[str, Book] = {}  # by slug
        directory.on_change(self._changed)

    def of(self, project: Project) -> Book:
        """Only a book of this very revision is used."""
        found = self._books.get(project.slug)
        if found is None or found.project is not project:
            found = self._books[project.slug] = Book.of(project)
        return found

    def _changed(self, project: Project | None, slug: str) -> None:
        if project is None or project.state != "active":
            self._books.pop(slug, None)
        elif slug in self._books:
            self._books[slug] = Book.of(project)
