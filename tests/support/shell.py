"""The command line as a user meets it: words in, exit code and two streams out.

Each call runs in a child of its own, forked from the server that has the imports already: a start costs milliseconds.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.runs import FORKS


@dataclass(frozen=True)
class Shown:
    """What one call of `sports-ray` left behind."""

    code: int
    out: str
    err: str
    imported: frozenset[str]
    """Top-level packages in memory at the end."""

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def sports_ray(folder: Path, *words: str, timeout: float = 60.0) -> Shown:
    """Runs `sports-ray WORDS` with `folder` as the current one."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f".{name}" for name in ("out", "err", "imported")]
    process = FORKS.Process(target=_call, args=(words, folder, files))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"sports-ray {' '.join(words)} hangs")
    out, err, imported = (path.read_text(encoding="utf-8") for path in files)
    return Shown(process.exitcode, out, err, frozenset(imported.split()))


def _call(words: tuple[str, ...], folder: Path, files: list[Path]) -> None:
    import torch

    # Of models that a command runs without a word on threads: they would wait for each other where tests share the cores.
    torch.set_num_threads(1)
    os.chdir(folder)
    for number, path in zip((1, 2), files, strict=False):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))  # noqa: SIM115
    sys.argv = ["sports-ray", *words]
    from sports_ray.cli import main

    try:
        main()
    finally:
        files[2].write_text("\n".join({name.partition(".")[0] for name in sys.modules}), encoding="utf-8")
