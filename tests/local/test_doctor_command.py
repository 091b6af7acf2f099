"""The doctor as a command and in a new interpreter: what is wrong with a machine or with photographs, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from sports_ray.data.demo import draw_demo
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
