"""The order of the packages, read from their imports, and what may be in memory when a command runs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import sports_ray

PACKAGE = Path(sports_ray.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = {
    "errors": 0, "stops": 0, "processes": 0, "remembered": 0, "checked": 1, "config": 2, "recipe": 3, "store": 3,
    "data": 4, "model": 4, "score": 4,
    "engine": 5, "predict": 5, "sweep": 6, "export": 6, "report": 7, "orchestrate": 7,
    "bench": 8, "chaos": 8, "doctor": 8, "cli": 9,
    "__main__": 10,
}  # fmt: skip
"""Right imports left; equal numbers never import each other."""


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import of a file, those inside functions too."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, item.name) for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{item.name}") for item in node.names)


def calls(path: Path) -> Iterator[tuple[int, str, ast.Call]]:
    for node in nodes_of(path):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


def test_every_file_stands_in_a_known_layer() -> None:
    assert len(FILES) > 100 and {layer_of(path) for path in FILES} - {"__init__"} <= set(LAYERS)


def test_imports_point_left() -> None:
    wrong = []
    for path in FILES:
        here = layer_of(path)
        for line, name in imports(path):
            parts = name.split(".")
            if parts[0] != "sports_ray" or parts[1:] in ([], ["__version__"]):
                continue
            if parts[1] != here and LAYERS[parts[1]] >= LAYERS[here]:
                wrong.append(f"{path}:{line}: {here} imports {parts[1]}")
    assert not wrong, "\n".join(wrong)


def test_ray_is_met_in_orchestrate_alone_and_pickle_nowhere() -> None:
    never = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    wrong = []
    for path in FILES:
        forbidden = never if layer_of(path) == "orchestrate" else never | {"ray"}
        wrong += [f"{path}:{line}: {name}" for line, name in imports(path) if name.partition(".")[0] in forbidden]
    assert not wrong, "\n".join(wrong)


def test_only_the_command_line_prints_and_nobody_runs_what_a_file_says() -> None:
    printing = {"print", "click.echo", "sys.stdout.write"}
    running = {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"}
    wrong = []
    for path in FILES:
        forbidden = running if layer_of(path) == "cli" else running | printing
        for line, name, node in calls(path):
            if name in forbidden:
                wrong.append(f"{path}:{line}: {name}")
            if name == "torch.load":
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if given.get("weights_only") != "True":
                    wrong.append(f"{path}:{line}: torch.load without weights_only=True")
    assert not wrong, "\n".join(wrong)


def imported_by(*words: str) -> set[str]:
    """Top-level packages in memory after `sports-ray WORDS`, in a new interpreter."""
    program = (
        "import sys, sports_ray.cli\n"
        f"sys.argv = ['sports-ray', *{list(words)}]\n"
        "try:\n    sports_ray.cli.main()\n"
        "finally:\n    sys.stderr.write(' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("--version",)])
def test_help_needs_no_heavy_package(words: tuple[str, ...]) -> None:
    found = imported_by(*words)
    assert "click" in found
    assert not found & {"torch", "torchvision", "ray", "timm", "pyarrow", "numpy", "PIL", "rich"}
