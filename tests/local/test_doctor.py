"""The doctor on machines and photographs: each fault is made for real, and named with its cure."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sports_ray.config import DataConfig
from sports_ray.data.demo import draw_demo
from sports_ray.data.scan import KINDS, scan
from sports_ray.doctor import machine, ports
from sports_ray.doctor.check import Check
from sports_ray.doctor.photographs import CURES, check_photographs
from sports_ray.doctor.place import check_store
from tests.support.runs import exit_code


def test_this_machine_is_sound_as_far_as_versions_go() -> None:
    (versions,) = machine.check_versions()
    assert versions.severity == "ok" and "ray 2.60" in versions.got and "torch 2." in versions.got


def told(check: Callable[[], Check], path: Path) -> None:
    path.write_text(json.dumps(check().to_json()))


def few_files(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
    told(machine.check_open_files, path)


def one_core(path: Path) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    told(machine.check_cores, path)


def test_a_limit_of_open_files_that_is_too_low_is_named(tmp_path: Path) -> None:
    assert exit_code(few_files, tmp_path / "found") == 0
    found = json.loads((tmp_path / "found").read_text())
    assert (found["severity"], found["got"]) == ("bad", "limit 512") and "ulimit -n 8192" in found["cure"]
    assert machine.check_open_files().severity == "ok"


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a single core cannot be divided")
def test_cores_that_may_not_be_used_are_named(tmp_path: Path) -> None:
    assert exit_code(one_core, tmp_path / "found") == 0
    found = json.loads((tmp_path / "found").read_text())
    assert found["got"] == f"1 of {os.cpu_count()} may be used" and "cluster.threads=1" in found["cure"]


def test_shared_memory_that_is_too_small_is_named(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(tmp_path)]
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("may not mount")
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        found = machine.check_shared_memory(tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
    assert (found.severity, found.got) == ("look", "64 MiB free") and "--shm-size=2g" in found.cure


def test_a_port_of_ray_that_is_taken_is_named_and_a_free_one_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = ports.check_ports({port: "head"})
    assert taken.severity == "look" and taken.got.startswith(f"{port} (head): ") and "RAY_ADDRESS" in taken.cure
    assert ports.check_ports({port: "head"}).severity == "ok"
    assert ports.check_loopback().severity == "ok"


def test_a_cluster_that_does_not_answer_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert ports.check_address(address).severity == "ok"
    found = ports.check_address(address)
    assert found.severity == "bad" and found.got.startswith(f"{address}: ") and "unset it" in found.cure


def test_a_sound_store_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for store in ("there", "not/yet"):
        found = list(check_store(str(tmp_path / store)))
        assert [one.what.split(" in ")[0] for one in found][:2] == ["rights", "speed of the store"]
        assert not [one for one in found if one.severity == "bad"]
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "there"]


def no_large_files(store: Path, path: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))
    found = next(one for one in check_store(str(store)) if one.severity == "bad")
    told(lambda: found, path)


def test_a_store_that_takes_no_large_files_is_named(tmp_path: Path) -> None:
    assert exit_code(no_large_files, tmp_path / "store", tmp_path / "found") == 0
    found = json.loads((tmp_path / "found").read_text())
    assert "EFBIG" in found["got"] and "ulimit -f" in found["cure"] and not (tmp_path / "store").exists()


def test_a_store_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file/store", Path("/sys/sports-ray")):
        found = [one for one in check_store(str(place)) if one.severity == "bad"]
        assert len(found) == 1 and "cannot write" in found[0].got and found[0].cure


def test_a_scan_of_each_planted_defect_comes_with_its_cure(tmp_path: Path) -> None:
    assert CURES.keys() == KINDS.keys()
    draw_demo(tmp_path / "set", classes=4, per_class=8, size=64, dirty=True)
    report = scan(tmp_path / "set", DataConfig(), cache_dir=tmp_path / "cache")
    found = {one.what.partition(":")[0]: one for one in check_photographs(report)}
    assert {finding.kind for finding in report.findings} == found.keys() and len(found) >= 16
    assert found["leak"].severity == "bad" and "data.leaks=drop" in found["leak"].cure
    assert found["near-leak"].severity == "look" and " / " in found["near-leak"].got
    assert all(one.cure and one.want and one.got for one in found.values())
