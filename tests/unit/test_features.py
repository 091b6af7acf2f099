"""Every row of `tests/features.toml` is held by tests that exist."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
ROWS = tomllib.loads((TESTS / "features.toml").read_text(encoding="utf-8"))
MISSING: dict[str, str] = ROWS.pop("missing", {})
LAST = {"A": 20, "B": 8, "C": 16, "D": 10, "E": 10, "F": 10}
LATER = {"A18"}
"""The ensemble behind an HTTP API, which is not there yet."""
IDS = [f"{part}{number}" for part, last in LAST.items() for number in range(1, last + 1)]


@cache
def names_in(path: Path) -> frozenset[str]:
    """Names of the tests of a file, read and not imported; those of its classes as Class::test."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inside = [(f"{node.name}::", one) for one in node.body] if isinstance(node, ast.ClassDef) else [("", node)]
        found |= {f"{prefix}{one.name}" for prefix, one in inside if isinstance(one, ast.FunctionDef)}
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


def faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row: its shape, or tests that it names and that are not there."""
    if set(row) != {"title", "tests"} or not row["title"].strip():
        return ["a row has a title and tests"]
    found = []
    for entry in row["tests"]:
        file, _, names = entry.partition(": ")
        path = TESTS / file
        if not re.fullmatch(r"(unit|local|cluster|real)/test_\w+\.py", file) or not path.is_file():
            found.append(f"no file of tests: {file}")
        elif not names.split():
            found.append(f"{file}: no test is named")
        else:
            found += [f"{file}: no {name}" for name in names.split() if name not in names_in(path)]
    return found


def test_rows_are_all_that_were_promised() -> None:
    assert sorted(ROWS) == sorted(set(IDS) - LATER)


@pytest.mark.parametrize("row", IDS)
def test_tests_of_a_row_exist(row: str) -> None:
    if row in LATER:
        assert row not in ROWS
        return
    assert faults(ROWS[row]) == []


def test_rows_without_a_test_are_exactly_those_called_missing_each_with_a_reason() -> None:
    assert {name for name, row in ROWS.items() if not row["tests"]} == set(MISSING)
    assert all(len(reason) > 10 for reason in MISSING.values())


def test_a_row_that_names_what_is_not_there_is_found() -> None:
    here = "unit/test_features.py"
    assert faults({"title": "a", "tests": [f"{here}: test_tests_of_a_row_exist"]}) == []
    assert faults({"title": "a", "tests": [f"{here}: test_gone faults"]}) == [
        f"{here}: no test_gone",
        f"{here}: no faults",
    ]
    assert faults({"title": "a", "tests": ["unit/test_gone.py: test_a"]}) == ["no file of tests: unit/test_gone.py"]
    assert faults({"title": "a", "tests": [f"{here}:"]}) != [] and faults({"title": " ", "tests": []}) != []
