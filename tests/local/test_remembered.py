"""What a machine remembers of models makes commands faster, and changes nothing that they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sports_ray
from sports_ray.data.demo import draw_demo

PLAN = ("--model", "convnext_atto", "--weights", "none", "--set", "data.image_size=64", "--dry-run")


def run(folder: Path, *words: str, code: Path | None = None) -> tuple[int, str, set[str]]:
    """Exit code, output and the top-level packages in memory after `sports-ray WORDS`, in a new interpreter."""
    program = (
        "import sys, sports_ray.cli\n"
        f"sys.argv = ['sports-ray', *{words}]\n"
        "try:\n    sports_ray.cli.main()\n"
        "finally:\n    open('.imported', 'w').write(' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    place = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")} | ({"PYTHONPATH": str(code)} if code else {})
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=place, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, set((folder / ".imported").read_text().split())


def test_same_plan_again_needs_no_torch_and_says_the_same(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=2, per_class=6, size=40)
    first = run(tmp_path, "train", "--data", "set", *PLAN)
    again = run(tmp_path, "train", "--data", "set", *PLAN)
    assert first[0] == 0 and first[:2] == again[:2]
    assert {"torch", "timm"} <= first[2] and not again[2] & {"torch", "timm", "ray"}
    for place in (tmp_path / "cache" / "sports-ray").glob("model-*"):
        place.write_bytes(place.read_bytes().replace(b"6", b"7"))
    assert run(tmp_path, "train", "--data", "set", *PLAN)[:2] == first[:2], "damaged, it is found out anew"


@pytest.mark.long
def test_another_state_of_the_code_asks_anew(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=2, per_class=6, size=40)
    code = tmp_path / "code"
    shutil.copytree(Path(sports_ray.__file__).parent, code / "sports_ray")
    before = run(tmp_path, "train", "--data", "set", *PLAN, code=code)
    build = code / "sports_ray" / "model" / "build.py"
    changed = build.read_text().replace(
        "def parameter_count(", "def parameter_count(*_): return 43_210_000\ndef _counted("
    )
    build.write_text(changed)
    after = run(tmp_path, "train", "--data", "set", *PLAN, code=code)
    assert "43.21 M" not in before[1] and "43.21 M" in after[1]


@pytest.mark.long
def test_what_was_refused_is_refused_again(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=2, per_class=6, size=40)
    words = ("train", "--data", "set", "--model", "test_vit", "--weights", "none", "--set", "data.image_size=61")
    first, again = (run(tmp_path, *words) for _ in range(2))
    assert first[0] == 2 and "data.image_size=" in first[1] and first[:2] == again[:2]
