"""A member's missing blocks, computed in this process: threads decode ahead, threads run the model, nobody waits."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sports_ray.predict.compute import Files, Job, Pixels, Predictor, batches, decode_files, settle, write_block
from sports_ray.predict.views import View

Decoded = tuple[Pixels, list[str | None]]
OnProgress = Callable[[Mapping[str, Any]], None]
_GPU_LANES = 2
"""Batches on a GPU at once: one is computed while the other's logits are fetched."""
_MOST_DECODERS = 16


class Part(NamedTuple):
    """One batch of a block."""

    block: int
    parts: int
    files: Files
    views: list[View]


class Done(NamedTuple):
    logits: dict[str, NDArray[np.float32]]
    errors: list[str | None]


def compute_here(job: Job, on_progress: OnProgress, cores: int = 0) -> None:
    """Computes and writes every block that `job` lacks. On a CPU as many batches at once as there are `cores` (0: all).

    A photograph that cannot be read costs its row and nothing else; what fails the computation as a whole is raised."""
    cores = cores or len(os.sched_getaffinity(0))
    predictor = Predictor(job.member, job.device, job.batch)
    lanes = cores if job.device == "cpu" else _GPU_LANES
    decoders = min(cores, _MOST_DECODERS)
    pools = {
        name: ThreadPoolExecutor(count, thread_name_prefix=name, initializer=settle, initargs=(job.device,))
        for name, count in (("decode", decoders), ("model", lanes))
    }
    try:
        ready: list[Done] = []
        for part, done in _in_order(job, predictor, pools["decode"], pools["model"], ahead=2 * lanes + decoders):
            ready.append(done)
            if len(ready) == part.parts:
                _write(job, part.block, ready, on_progress)
                ready = []
    finally:
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)


def _in_order(
    job: Job, predictor: Predictor, decode: ThreadPoolExecutor, model: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[Part, Done]]:
    """The batches one after the other, while those that follow are being decoded and computed."""

    def read(part: Part) -> Decoded:
        sources = list(dict.fromkeys(view.source for view in part.views))
        return decode_files(part.files, sources, job.member.spec, job.member.max_pixels)

    def compute(part: Part, coming: Future[Decoded]) -> Done:
        pixels, errors = coming.result()
        return Done(predictor.logits(pixels, part.views), errors)

    queue: deque[tuple[Part, Future[Done]]] = deque()
    for part in _parts(job):
        queue.append((part, model.submit(compute, part, decode.submit(read, part))))
        if len(queue) >= ahead:
            first, future = queue.popleft()
            yield first, future.result()
    for first, future in queue:
        yield first, future.result()


def _parts(job: Job) -> Iterator[Part]:
    for block in sorted(job.missing):
        start, stop = job.shelf.span(block)
        spans, views = batches(stop - start, job.batch), job.views_of(block)
        for low, high in spans:
            yield Part(block, len(spans), job.files(start + low, start + high), views)


def _write(job: Job, block: int, parts: list[Done], on_progress: OnProgress) -> None:
    logits = {name: np.concatenate([done.logits[name] for done in parts]) for name in parts[0].logits}
    errors = [error for done in parts for error in done.errors]
    write_block(job.shelf, block, logits, errors)
    bad = sum(error is not None for error in errors)
    on_progress({"kind": "block", "member": job.member.name, "block": block, "images": len(errors), "bad": bad})
