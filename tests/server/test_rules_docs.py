"""The rules that the documentation prints are rules, and its cases pass."""

import json
import re
from pathlib import Path

import pytest

from ichicore.rules import compile_match, compile_policy
from ichicore.rules.policy import ACTIONS, MEMBERS
from server.mongo import cases

TEXT = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
BLOCKS = [json.loads(found) for found in re.findall(r"```json\n(.*?)```", TEXT, re.S)]
FIRST, *EXAMPLES, TUTORIAL = BLOCKS
WORKED = list(zip(EXAMPLES[::2], EXAMPLES[1::2], strict=True))


def test_the_first_rules_compile():
    assert compile_policy(FIRST).collections == ("notes", "countries")
    assert len(WORKED) == 10
    assert all(one["passed"] for one in cases.run(FIRST, TUTORIAL))


@pytest.mark.parametrize("number", range(10))
def test_the_cases_of_each_rule_pass(number):
    collections, source = WORKED[number]
    rules = {"version": 1, "collections": collections}
    results = cases.run(rules, source)
    assert len(results) >= 2
    assert [(one["name"], one["reason"]) for one in results if not one["passed"]] == []


def test_the_tables_name_every_element():
    grammar = TEXT.split("## Grammar")[1].split("### What is decided how")[0]
    named = set(re.findall(r"`([^`]*)`", grammar))
    assert {*ACTIONS, *MEMBERS} <= named
    operators = {name for name in named if re.fullmatch(r"\$[a-zA-Z]+", name)}
    for name in operators - {"$and", "$or", "$nor", "$not", "$options"}:
        operand = {"$exists": True, "$size": 1, "$elemMatch": {"a": 1}, "$regex": "a"}.get(
            name, [1] if name in ("$in", "$nin", "$all") else 1
        )
        compile_match({"a": {name: operand}})
