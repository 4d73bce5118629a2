"""Access rules: JSON match expressions and policies, compiled once and evaluated for each request.

Knows nothing of servers: a policy is handed an identity and answers with a decision.
"""

from ichicore.rules.compile import ALWAYS, NEVER, compile_match
from ichicore.rules.context import Context
from ichicore.rules.errors import RuleError
from ichicore.rules.fields import FieldRule
from ichicore.rules.match import Bound, Match
from ichicore.rules.policy import (
    ALLOW,
    NOTHING,
    Decision,
    Policy,
    compile_policy,
    decision_of,
)

__all__ = [
    "ALLOW",
    "ALWAYS",
    "NEVER",
    "NOTHING",
    "Bound",
    "Context",
    "Decision",
    "FieldRule",
    "Match",
    "Policy",
    "RuleError",
    "compile_match",
    "compile_policy",
    "decision_of",
]
