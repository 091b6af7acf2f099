"""How a cluster of a command's own is started."""

from __future__ import annotations

import os

import pytest
from ray._private import node, parameter

from sports_ray.orchestrate.cluster import maker, no_idle_helpers, prepare_environment, spins, worker_environment


def test_a_cluster_of_ones_own_does_without_idle_helpers_and_the_port_that_another_may_hold() -> None:
    server = node.Node.start_api_server
    with no_idle_helpers():
        asked = parameter.RayParams(num_cpus=1)
        assert asked.include_log_monitor is False and asked.no_monitor and asked.dashboard_agent_listen_port == 0
        assert node.Node.start_api_server is not server
    with no_idle_helpers(usage_stats=True):
        assert node.Node.start_api_server is server, "it is what sends them"
    left = parameter.RayParams()
    assert left.include_log_monitor is None and not left.no_monitor and left.dashboard_agent_listen_port == 52365
    assert node.Node.start_api_server is server, "left to all that is started afterwards"


def test_threads_wait_longer_for_each_other_on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        spins("vendor_id\t: AuthenticAMD\n") == "8000" and spins("vendor_id\t: GenuineIntel\n") == spins("") == "3000"
    )
    monkeypatch.setattr(os, "environ", {})
    prepare_environment()
    assert os.environ["GOMP_SPINCOUNT"] == worker_environment()["GOMP_SPINCOUNT"] == spins(maker())


def test_how_long_threads_wait_is_the_users_choice_where_he_made_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"GOMP_SPINCOUNT": "7"})
    prepare_environment()
    assert worker_environment()["GOMP_SPINCOUNT"] == "7"
