"""What Ray's processes do for a prediction: tasks decode a block, actors compute and write it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sports_ray.errors import SportsRayError
from sports_ray.predict.blocks import Shelf
from sports_ray.predict.compute import Files, Job, Pixels, Predictor, decode_files, settle, write_block
from sports_ray.predict.member import Member
from sports_ray.predict.views import Source, View
from sports_ray.processes import schedule_normally


def rows_of(job: Job) -> list[pa.Table]:
    """A table of one row for each block that is missing: its number, and its views and files as JSON."""
    tables = []
    for block in sorted(job.missing):
        task = json.dumps([job.missing[block], job.files(*job.shelf.span(block))])
        tables.append(pa.table({"block": pa.array([block], pa.int64()), "task": pa.array([task], pa.large_string())}))
    return tables


def decode_rows(rows: pa.Table, *, member: Member, views: Sequence[View]) -> Iterator[pa.Table]:
    """Blocks -> their pixels, all sources one behind the other, and names of views and errors as JSON."""
    schedule_normally()
    settle("cpu")
    for row in rows.to_pylist():
        names, files = json.loads(row["task"])
        sources = _sources(names, views)
        pixels, errors = decode_files(Files(*files), sources, member.spec, member.max_pixels)
        flat = np.concatenate([pixels[source].reshape(-1) for source in sources])
        yield pa.table(
            {
                "block": pa.array([row["block"]], pa.int64()),
                "task": pa.array([json.dumps([names, errors])], pa.large_string()),
                "pixels": _one_value(flat),
            }
        )


class BlockPredictor:
    """An actor: the member's model, loaded once. Writes each block and returns how many images it had, and bad ones."""

    def __init__(self, *, member: Member, views: Sequence[View], shelf: Shelf, device: str, batch: int) -> None:
        from sports_ray.engine.memory import keep_freed_memory

        schedule_normally()
        if device == "cpu":
            keep_freed_memory()
        self._views, self._shelf, self._device = views, shelf, device
        self._failed: SportsRayError | None = None
        """Told at the first block: of an error in a constructor Ray hands on no more than a text. One that another try may
        mend is raised at once: Ray makes the actor anew then."""
        try:
            self._predictor = Predictor(member, device, batch)
        except SportsRayError as error:
            if error.retryable:
                raise
            self._failed = error

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self._failed is not None:
            raise self._failed
        schedule_normally()
        settle(self._device)  # this thread may be another one than the constructor's
        return pa.Table.from_pylist([self._block(rows.slice(place, 1)) for place in range(rows.num_rows)])

    def _block(self, row: pa.Table) -> dict[str, Any]:
        block = row.column("block")[0].as_py()
        names, errors = json.loads(row.column("task")[0].as_py())
        flat = np.frombuffer(row.column("pixels")[0].as_buffer(), np.uint8)
        pixels: Pixels = {}
        start = 0
        for source in _sources(names, self._views):
            shape = (len(errors), 3, source.size, source.size)
            stop = start + int(np.prod(shape))
            # torch wants memory that may be written to; a copy costs a thousandth of the model.
            pixels[source] = flat[start:stop].reshape(shape).copy()
            start = stop
        views = [view for view in self._views if view.name in names]
        write_block(self._shelf, block, self._predictor.block(pixels, views), errors)
        return {"block": block, "images": len(errors), "bad": sum(error is not None for error in errors)}


def _sources(names: Sequence[str], views: Sequence[View]) -> list[Source]:
    return list(dict.fromkeys(view.source for view in views if view.name in names))


def _one_value(flat: NDArray[np.uint8]) -> pa.Array:
    """An array of one value of any length, without a copy."""
    ends = np.array([0, len(flat)], dtype=np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(flat)])
