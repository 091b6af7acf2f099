"""Hosts with addresses of their own: one is cut off under a training, works on by itself, and comes back.

All write to the same store, so that the host that is believed dead could still spoil it.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sports_ray.processes import process_start
from tests.cluster.test_nodes import WORKER, assert_no_commit_is_lost, two_workers, unbroken  # noqa: F401
from tests.support.driver import Driver
from tests.support.hosts import ENVIRONMENT, PORT, Net, may_make_hosts
from tests.support.nodes import named_below, wait_for_end
from tests.support.runs import results

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(420),
    pytest.mark.skipif(not may_make_hosts(), reason="needs the right to make network namespaces"),
]


@pytest.mark.parametrize("which", [1, 2], ids=["one worker's host", "the other's"])
def test_host_that_is_cut_off_and_comes_back_costs_no_bit(
    photos: Path,
    unbroken: dict[str, bytes],  # noqa: F811
    tmp_path: Path,
    which: int,
) -> None:
    config = two_workers(photos, tmp_path)
    with Net(3) as net:
        head = net.hosts[0]
        head.start_ray(cpus=0)
        rays = {host: host.start_ray(head) for host in net.hosts[1:]}
        environment = {**ENVIRONMENT, "RAY_ADDRESS": f"{head.address}:{PORT}"}
        with Driver(config, environment, before=head.inside) as driver:
            driver.until("evaluated", step=20)
            lost, left = net.hosts[which], net.hosts[3 - which]
            lost.cut_off()
            time.sleep(0.5)  # shorter than Ray needs to give a node up: nobody notices
            lost.plug_in()
            driver.until("evaluated", step=60)
            assert not driver.all("restart")
            (beside,) = named_below(rays[left].pid, WORKER)
            (alone,) = named_below(rays[lost].pid, WORKER)
            lost.cut_off()
            wait_for_end(
                beside, 60
            )  # the cluster has given the host up; its worker lives on, with the store within reach
            assert process_start(alone)
            lost.plug_in()
            rays[lost].wait(90)  # Ray there has learnt that it was given up
            lost.start_ray(head)
            assert driver.until("restart")["reason"].startswith("a node was lost")
            assert driver.end() == 0, driver.errors
    assert results(config) == unbroken
    assert len(assert_no_commit_is_lost(config)) == 2
