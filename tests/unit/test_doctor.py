"""The doctor on machines and photographs: each fault is made for real, in a process of its own, and named with its cure."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
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
from tests.support.shell import sports_ray as shell

ROOT = Path(__file__).parents[2]


def doctor_elsewhere(**environment: str) -> list[dict[str, str]]:
    """What a new interpreter finds on this machine, with more in its environment."""
    program = (
        "import json; from sports_ray.doctor.machine import check_machine\n"
        "for check in check_machine(): print(json.dumps(check.to_json()))"
    )
    words, given = [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(words, capture_output=True, text=True, env=given, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_package_outside_its_range_and_a_gpu_that_torch_cannot_use_are_named(tmp_path: Path) -> None:
    """A package of that version, and a driver's own tool that shows a GPU, are found before the real ones."""
    for name, version in (("timm", "0.9.1"), ("torch", "2.13.0")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA T4, 470.82.01'\n")
    tool.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    found = {check["what"]: check for check in doctor_elsewhere(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}", PATH=path)}
    assert (found["timm"]["severity"], found["timm"]["got"]) == ("bad", "0.9.1")
    assert found["timm"]["wanted"] == ">=1.0.20" and found["timm"]["cure"].startswith("pip install -c constraints.txt")
    assert found["torch for torchvision"]["got"] == "2.13.0" and "versions" not in found
    import torch

    if not torch.cuda.is_available():
        assert "the driver (470.82.01) shows 1 (NVIDIA T4)" in found["gpu"]["got"]
        assert found["gpu"]["severity"] == "bad" and "install the torch build" in found["gpu"]["cure"]


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


def test_the_command_says_what_is_wrong_with_photographs_and_ends_with_3(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=3, per_class=4, size=48)
    sound = shell(tmp_path, "doctor", "--data", "set")
    assert sound.code == 0 and "\nok    photographs: 12 train, 3 val, 3 test, 3 classes" in sound.out, sound.out
    assert "ray" not in sound.imported and "\nok    ray: 2.60" in sound.out
    assert not (tmp_path / "runs").exists()
    shutil.copy(tmp_path / "set/test/tennis/0000.jpg", tmp_path / "set/train/tennis/leak.jpg")
    leaking = shell(tmp_path, "doctor", "--data", "set")
    assert leaking.code == 3
    line = next(line for line in leaking.out.splitlines() if line.startswith("BAD   leak"))
    assert "got 1: train/tennis/leak.jpg / test/tennis/0000.jpg; wanted none; cure: keep one copy" in line
    missing = shell(tmp_path, "doctor", "--run", "nothing")
    assert missing.code == 2 and missing.err.startswith("error: run; got nothing")
