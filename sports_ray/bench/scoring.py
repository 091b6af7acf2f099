"""What the driver does once everything is computed, on made-up logits: prove that each row is there, merge, score, write.

`python -m sports_ray.bench.scoring STORE ROWS FILE` does it in a process of its own, whose memory is counted by the kernel.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sports_ray.errors import TrainingError
from sports_ray.predict.compute import Job
from sports_ray.predict.evaluate import evaluate
from sports_ray.predict.images import Images
from sports_ray.predict.member import find_member
from sports_ray.predict.plan import Plan
from sports_ray.predict.run import OnProgress
from sports_ray.predict.views import PLAIN
from sports_ray.predict.work import Work

DEVICE, BATCH = "cpu", 32
SEED = 0
_GIB = 1 << 30


def score_turn(store: Path, rows: int, environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds, and GiB at most, of scoring so many made-up rows for the run `member` in a store."""
    with tempfile.TemporaryDirectory(prefix="sports-ray-scoring-") as folder:
        report = Path(folder, "report")
        words = [str(store), str(rows), str(report)]
        subprocess.run([sys.executable, "-m", "sports_ray.bench.scoring", *words], check=True, env=environment)
        found = json.loads(report.read_text())
        return found["seconds"], found["bytes"] / _GIB


def score_made_up(store: Path, rows: int) -> dict[str, float]:
    """Writes blocks of made-up logits, then times what an evaluation does with them."""
    plan = _plan(store, rows)
    _make_up(plan)
    start = time.perf_counter()
    scores = evaluate(plan, _refuse, lambda event: None, ["sports-ray", "bench", "predict"], batch=BATCH, device=DEVICE)
    seconds = time.perf_counter() - start
    if scores["candidates"][0]["images"] != rows:
        raise TrainingError("made-up rows", got=scores["candidates"][0]["images"], want=f"{rows}")
    return {"seconds": seconds, "bytes": _most_memory()}


def _plan(store: Path, rows: int) -> Plan:
    member = find_member("member", str(store))
    table = {
        "id": pa.array(range(rows), pa.int64()),
        "path": pa.array([f"class/{row:09d}.jpg" for row in range(rows)]),
        "label": pa.array(np.random.default_rng(SEED).integers(0, len(member.classes), rows, dtype=np.int32)),
        "sha256": pa.array([f"{row:064x}" for row in range(rows)]),
        "error": pa.nulls(rows, pa.string()),
    }
    return Plan(
        members=(member,), images=Images(str(store), pa.table(table)), names=(), data=str(store), split="test",
        tta="none", average="probs", weights="uniform", groups="", home=str(store), out=f"{store}/out", digest="made up",
    )  # fmt: skip


def _make_up(plan: Plan) -> None:
    work = Work.of(plan, plan.images, _refuse, lambda event: None, batch=BATCH, device=DEVICE)
    shelf = work.members[0].shelf
    labels = plan.images.table.column("label").to_numpy()
    for block in range(shelf.blocks):
        start, stop = shelf.span(block)
        logits = np.random.default_rng([SEED, block]).standard_normal((stop - start, shelf.classes), np.float32)
        logits[np.arange(stop - start), labels[start:stop]] += 2
        shelf.write(PLAIN, block, logits, [None] * (stop - start))


def _refuse(jobs: Sequence[Job], on_progress: OnProgress) -> Any:
    raise TrainingError("blocks of made-up rows", got="some missing", want="all of them on disk")


def _most_memory() -> int:
    """Bytes that this process has ever held. Not of `getrusage`: that counts what its parent held when it began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


if __name__ == "__main__":
    where, count, file = sys.argv[1:]
    Path(file).write_text(json.dumps(score_made_up(Path(where), int(count))))
