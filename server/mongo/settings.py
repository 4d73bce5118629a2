"""The section `mongo` of a project's settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import orjson

from ichicore.rules import NOTHING, Policy, RuleError, compile_policy

Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=3_600_000)]


class MongoSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """mode: what decides, the rules below or the project's function `_mongo_policy`. rules: as
    docs/rules.md describes; without any, all but service_role are refused. rules_text: the same as
    they were written, made from `rules` when they are saved: the database forgets the order of
    members, which counts where a value is an object. enforce_service_role: rules bind the secret
    key too. max_docs, operation_ms: below those of the tier."""

    mode: Literal["rules", "function"] = "rules"
    rules: dict[str, Any] | None = None
    rules_text: str | None = None
    enforce_service_role: bool = False
    max_docs: Count | None = None
    operation_ms: Milliseconds | None = None

    def __post_init__(self) -> None:
        if self.rules is None:
            self.rules_text = None
            return
        if self.rules_text is None or not self._is_current(self.rules_text):
            self.rules_text = orjson.dumps(self.rules).decode()
        try:
            compile_policy(self.rules_text)
        except RuleError as error:
            raise ValueError(str(error)) from None

    def _is_current(self, text: str) -> bool:
        try:
            return bool(orjson.loads(text) == self.rules)
        except ValueError:
            return False


def policy_of(settings: MongoSettings) -> Policy:
    """The compiled rules; those of a project without any refuse everything."""
    return NOTHING if settings.rules_text is None else compile_policy(settings.rules_text)
