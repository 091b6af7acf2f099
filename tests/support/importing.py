"""`sports-ray WORDS` in a new interpreter, with a signal in the midst of the import of one module.

Run as a program: importing.py FILE MODULE WORDS... MODULE is the end of a source's path: before its first line is executed,
SIGINT comes; "": none comes, and FILE takes the paths of the sources that are executed while signals are caught, a line each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


def stopped_in(folder: Path, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What the command has shown, and its exit code."""
    return _run(folder, os.devnull, module, *words)


def modules_of(folder: Path, *words: str) -> list[str]:
    """Paths of the project's sources that the command executes once it catches signals, each once, in their order."""
    listed = folder / ".modules"
    done = _run(folder, str(listed), "", *words)
    assert done.returncode == 0, done.stderr
    return [name for name in dict.fromkeys(listed.read_text().split("\n")) if "/sports_ray/" in name]


def _run(folder: Path, file: str, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    # -P: this program's folder is no place for imports; its modules have names of everyday words.
    command = [sys.executable, "-P", __file__, file, module, *words]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = {**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def _main(file: str, module: str, *words: str) -> None:
    listed = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    sent: list[str] = []

    def heard(event: str, given: tuple[Any, ...]) -> None:
        if event != "exec" or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            return
        name = str(getattr(given[0], "co_filename", ""))
        os.write(listed, f"{name}\n".encode())
        if module and name.endswith(module) and not sent:
            sent.append(name)
            os.kill(os.getpid(), signal.SIGINT)

    sys.argv = ["sports-ray", *words]
    sys.addaudithook(heard)
    from sports_ray.cli import main

    main()


if __name__ == "__main__":
    _main(*sys.argv[1:])
