"""`jobs/kaggle.ipynb`: its commands exist; its cells run from top to bottom in Jupyter's own kernel, session after session."""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from sports_ray.data.demo import draw_demo
from tests.support.documents import ROOT, check
from tests.support.shell import sports_ray
from tests.support.terminal import CONTROL

NOTEBOOK = ROOT / "jobs" / "kaggle.ipynb"
SMALL = (
    "--weights none --workers 0 --precision fp32 --epochs 150 --set data.image_size=32 "
    "--set data.loader_processes=0 --set loop.global_batch=8 --set cluster.threads=1"
)


def cells(kind: str = "code") -> list[Any]:
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == kind]


def test_notebook_is_valid_and_empty_of_outputs_and_its_commands_exist() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.outputs or cell.execution_count for cell in cells())
    settings = "\n".join(cell.source for cell in cells() if "parameters" in cell.metadata.get("tags", ()))
    known = {"runs": "--run a --run b"}
    for names, values in (
        (target, node.value)
        for node in ast.parse(settings).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    ):
        value = ast.literal_eval(values)
        targets = names.elts if isinstance(names, ast.Tuple) else [names]
        known |= dict(zip([ast.unparse(one) for one in targets], value if len(targets) > 1 else [value], strict=True))
    commands = re.findall(r"!(sports-ray .*)", "\n".join(cell.source for cell in cells()))
    assert {line.split()[1] for line in commands} == {"data", "train", "status", "report", "eval-ensemble"}
    for line in commands:
        check(re.sub(r"\{(\w+)\}", lambda found: str(known[found[1]]), line))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    draw_demo(tmp_path / "photos", classes=3, per_class=10, size=40, seed=1)
    return tmp_path


def session(place: Path, number: int, budget: str, backbone: str = "convnext", model: str = "test_resnet") -> str:
    """Runs all cells in a kernel whose settings are these; the text that the cells have shown, and the folder's store."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (chosen,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    here = place / f"session-{number}"
    here.mkdir()
    chosen.source = "\n".join(
        f"{name} = {value!r}"
        for name, value in {
            "data": str(place / "photos"), "last": str(place / f"session-{number - 1}" / "runs"), "store": "runs",
            "results": "results", "backbone": backbone, "settings": f"--model {model} {SMALL}", "budget": budget,
        }.items()
    )  # fmt: skip
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(here)}})
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    client.execute(env={**os.environ, "PATH": path})
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    text = "".join(output.text for output in outputs if output.output_type == "stream").replace("\r\n", "\n")
    return text + "".join(one["data"].get("text/plain", "") for one in outputs if "data" in one)


@pytest.mark.long
def test_notebook_trains_resumes_and_evaluates_over_three_sessions_as_one_unbroken_run(place: Path) -> None:
    paused = session(place, 1, budget="9s")
    assert re.search(r"^paused +.*\(time budget\)", paused, re.MULTILINE), paused
    assert not (place / "session-1" / "results").exists()

    finished = session(place, 2, budget="10m")
    assert re.search(r"^(going on|training from the start) at step", finished, re.MULTILINE), finished
    assert re.search(r"^ +convnext +hflip", finished, re.MULTILINE) and "<IPython.core.display.Image" in finished
    words = ["train", "--data", "photos", *shlex.split(f"--model test_resnet {SMALL}"), "--run", "unbroken"]
    assert sports_ray(place, *words).code == 0
    for name in ("weights/last.safetensors", "weights/best.safetensors", "metrics.jsonl"):
        bits = (place / "session-2" / "runs" / "convnext" / name).read_bytes()
        assert bits == (place / "runs" / "unbroken" / name).read_bytes(), name

    together = session(place, 3, budget="10m", backbone="swin", model="test_efficientnet")
    assert re.search(r"^ +ensemble +hflip", together, re.MULTILINE) and "'ensemble': " in together, together
    for shown in (paused, finished, together):
        assert not CONTROL.search(shown), repr(CONTROL.search(shown))
