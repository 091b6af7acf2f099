"""`sports-ray` commands that predict, in children that are killed on the way, and what must come out of them all the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.support.members import tree
from tests.support.moments import Moment, Moments
from tests.support.runs import FORKS
from tests.support.shell import _call

CLOCKS = ("command",)


def run_command(folder: Path, words: tuple[str, ...], die: Moment | None = None, count: bool = False) -> int:
    """Runs `sports-ray WORDS` in a child, which dies by SIGKILL at a moment; the exit code, -9 when killed."""
    folder.mkdir(parents=True, exist_ok=True)
    process = FORKS.Process(target=_command, args=(folder, words, die, count))
    process.start()
    process.join(90)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the command hangs")
    return process.exitcode


def moments_of(folder: Path, words: tuple[str, ...]) -> list[Moment]:
    """Runs the command unbroken; the moments at which it could have died."""
    assert run_command(folder, words, count=True) == 0, (folder / ".err").read_text()
    return [Moment(*found) for found in json.loads((folder / ".moments").read_text())]


def _command(folder: Path, words: tuple[str, ...], die: Moment | None, count: bool) -> None:
    moments = Moments(str(folder / "store"), die)
    moments.install()
    try:
        _call(words, folder, [folder / name for name in (".out", ".err", ".imported")])
    finally:
        if count:
            Path(folder / ".moments").write_text(json.dumps(moments.all()))


def results(store: Path) -> dict[str, bytes]:
    """All that evaluations and predictions have left in a store, without the words of the command and where it lies."""
    found = {name: data for name, data in tree(store).items() if name.split("/")[0] in ("predictions", "evaluations")}
    for name, data in found.items():
        if name.endswith("scores.json"):
            scores = json.loads(data)
            kept = {key: value for key, value in scores.items() if key not in (*CLOCKS, "sha256")}
            found[name] = json.dumps(kept, sort_keys=True).encode()
        elif name.endswith("report.html"):
            found[name] = re.sub(b"<pre>.*?</pre>", b"", data, flags=re.DOTALL).replace(bytes(store.parent), b"")
    return {name: data for name, data in found.items() if not name.endswith(".log")}
