"""How a cluster of a command's own is started."""

from __future__ import annotations

from ray._private import parameter

from sports_ray.orchestrate.cluster import _any_agent_port


def test_a_cluster_of_ones_own_does_without_the_port_that_another_may_hold() -> None:
    with _any_agent_port():
        assert parameter.RayParams(num_cpus=1).dashboard_agent_listen_port == 0
    assert parameter.RayParams().dashboard_agent_listen_port == 52365, "left to all that is started afterwards"
