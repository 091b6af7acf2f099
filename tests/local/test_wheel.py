"""What is in the wheel that people install."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_wheel_holds_the_mit_licence_the_recipes_and_the_pages_parts(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "sports_ray", copy / "sports_ray", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=copy, check=True, capture_output=True, timeout=120)
    (path,) = tmp_path.glob("sports_ray-*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (licence,) = (name for name in names if name.endswith("/licenses/LICENSE"))
        (about,) = (name for name in names if name.endswith("/METADATA"))
        metadata = message_from_bytes(wheel.read(about))
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
        assert wheel.read(licence).startswith(b"MIT License")
    assert metadata["License-Expression"] == "MIT"
    files = {
        str(file.relative_to(ROOT)) for file in (ROOT / "sports_ray").rglob("*.*") if "__pycache__" not in file.parts
    }
    assert {name for name in files if name.endswith((".py", ".toml", ".css", ".js"))} <= names
