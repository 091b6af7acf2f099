"""The test suite itself."""

from __future__ import annotations

import os

import pytest


def test_tests_of_a_file_stay_in_one_process(request: pytest.FixtureRequest) -> None:
    """Otherwise each test would make its file's fixtures anew, and clusters of Ray would wait for each other's cores."""
    groups = [mark.args[0] for mark in request.node.iter_markers("xdist_group")]
    assert groups == ["unit/test_suite"]
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@unit/test_suite"), "pytest-xdist has not grouped the tests"
