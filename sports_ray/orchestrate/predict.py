"""Predicts on Ray Data: one pipeline a member, on all GPUs or CPUs; the blocks it writes are those of `predict.run`.

A row of the dataset is a block of 256 photographs, so that neither Ray's bundling nor the number of workers can change
what is computed together: manifest -> a row a missing block -> decode (tasks) -> model (a pool of actors, each of which
writes its blocks) -> a row of counts for the driver. Ray starts dead tasks and actors again; a block that was written twice
has the same bytes. What a killed driver leaves undone, the next one finds missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sports_ray.errors import ConfigError, SportsRayError, TrainingError
from sports_ray.orchestrate.cluster import OBJECT_STORE_BYTES, ray_cluster, stderr_to
from sports_ray.orchestrate.plan import parse_workers
from sports_ray.predict.blocks import ROWS
from sports_ray.predict.compute import Job
from sports_ray.predict.run import OnProgress

logger = logging.getLogger(__name__)

CPU_ACTOR, CPU_DECODE = 0.75, 0.25
"""CPUs that Ray reserves, where there is no GPU: actors on whole CPUs would leave none to decode on."""
GPU_ACTOR, GPU_DECODE = 0.5, 1.0
INIT_DEATHS = 3
"""How many actors in a row may die while they load their model; Ray allows none."""
PATIENCE_SECONDS = 6 * 3600.0
"""Without a finished block, after which a pipeline has failed: large models on CPUs take their time."""
_RAYS_WORDS = "\nFailed to apply UDF"
"""What Ray Data writes behind the first words of an error that it hands on."""
MOST_STORE = 8 << 30
"""Bytes of a local cluster's object store, at most."""


def compute_on_ray(
    jobs: Sequence[Job],
    on_progress: OnProgress,
    *,
    workers: str = "auto",
    address: str = "auto",
    log: Path | None = None,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Computes and writes every block that the jobs lack. `workers`: N, MIN:MAX, or auto: all GPUs, else all CPUs; `ready` is
    called when Ray is up, which by then has put a signal handler of its own in place.

    Raises the workers' own error where no retry mends it, TrainingError when the cluster is gone."""
    bounds = _bounds(workers)
    import ray

    with stderr_to(log), ray_cluster(address, log=log, object_store=_store_bytes(jobs)), _settings():
        ready()
        for job in jobs:
            try:
                _run(job, on_progress, _pool(job.device, bounds))
            except Exception as error:
                # Ray's own are of the worker's class too, with its traceback for a text.
                if not isinstance(error, ray.exceptions.RayError):
                    raise
                mine = _cause(error)
                if mine is not None:
                    raise mine from error
                raise TrainingError(
                    "the prediction failed on Ray",
                    got=_first_line(getattr(error, "cause", None) or error),
                    cure="see that the cluster is well; the same command goes on from the blocks that are finished",
                ) from error


def _run(job: Job, on_progress: OnProgress, pool: tuple[int, int]) -> None:
    import ray.data
    from ray.data import ActorPoolStrategy

    from sports_ray.orchestrate.predict_worker import BlockPredictor, decode_rows, rows_of

    low, high = pool
    cuda = job.device == "cuda"
    strategy = ActorPoolStrategy(min_size=low, max_size=high, initial_size=high, max_tasks_in_flight_per_actor=2)
    counts = (
        # A table a block: reading a file would make one block of all, and repartitioning take a CPU of its own.
        ray.data.from_arrow(rows_of(job))
        .map_batches(
            decode_rows,  # type: ignore[arg-type]
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=GPU_DECODE if cuda else CPU_DECODE,
            max_retries=-1,  # each preemption counts as one
            fn_kwargs={"member": job.member, "views": job.views},
        )
        .map_batches(
            BlockPredictor,
            batch_size=1,
            batch_format="pyarrow",
            compute=strategy,
            num_cpus=GPU_ACTOR if cuda else CPU_ACTOR,
            num_gpus=1 if cuda else None,
            fn_constructor_kwargs={
                "member": job.member, "views": job.views, "shelf": job.shelf, "device": job.device, "batch": job.batch,
            },
        )
    )  # fmt: skip
    batches: Iterable[Any] = counts.iter_batches(batch_size=None, batch_format="pyarrow")
    for batch in batches:
        for row in batch.to_pylist():
            on_progress({"kind": "block", "member": job.member.name, **row})


def _pool(device: str, bounds: tuple[int, int]) -> tuple[int, int]:
    """Least and most actors: as asked, or one for each GPU or CPU of the cluster: Ray Data would give up those that have
    nothing to do while the first blocks are decoded, and not start them again."""
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    there = int(resources.get("GPU" if device == "cuda" else "CPU", 0))
    if not there:
        raise ConfigError(
            "Ray's cluster",
            got=f"no node with {'GPUs' if device == 'cuda' else 'GPUs or CPUs'} at this moment",
            want="one at least, by which the device is chosen",
            cure="start one (min_workers: 1 in an autoscaler's file) and give the command again, or --workers 0",
        )
    low, high = bounds
    return (min(low, there), min(high, there)) if high else (there, there)


def _bounds(workers: str) -> tuple[int, int]:
    """(least, most) workers; (1, 0): all."""
    return (1, 0) if workers == "auto" else parse_workers(workers, 0)


def _store_bytes(jobs: Sequence[Job]) -> int:
    """Room for the decoded blocks that are on their way, in a local cluster: with less Ray Data decodes too late for the
    actors, of which each then waits a third of its time."""
    from sports_ray.data.cache import available_memory

    sides = [sum(source.size**2 for source in {view.source for view in job.views}) for job in jobs]
    block = max(3 * ROWS * side for side in sides)
    return int(max(OBJECT_STORE_BYTES, min(64 * block, MOST_STORE, 0.25 * available_memory())))


@contextmanager
def _settings() -> Iterator[None]:
    """Ray Data gives up early, draws bars and writes of each execution by itself; here progress goes to `on_progress`."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # Ray Data's own has it for a cause, which does not travel
    context.max_consecutive_actor_init_deaths = INIT_DEATHS
    context.execution_no_progress_timeout_s = PATIENCE_SECONDS
    loggers = [logging.getLogger(name) for name in ("ray.data", "ray")]
    before = [(one, one.level) for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one, level in before:
            one.setLevel(level)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _cause(error: BaseException) -> SportsRayError | None:
    """The error on purpose that a worker raised, in the chain of what Ray has made of it."""
    import ray

    seen: set[int] = set()
    queue: list[Any] = [error]
    while queue:
        one = queue.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        told = one.cause if isinstance(one, ray.exceptions.RayTaskError) else one
        if isinstance(told, SportsRayError):
            return type(told)(told.what.partition(_RAYS_WORDS)[0], told.got, told.want, told.cure)
        queue += [told, one.__cause__, one.__context__]
    return None


def computer(
    workers: str, *, address: str = "auto", log: Path | None = None, ready: Callable[[], object] = lambda: None
) -> Callable[[Sequence[Job], OnProgress], None]:
    """What computes jobs as `--workers` says: 0 in this process, else on Ray."""
    if workers == "0":
        return compute_all_here
    _bounds(workers)
    return OnRay(workers, address, log, ready)


@dataclass(frozen=True)
class OnRay:
    """`compute_on_ray` with its words."""

    workers: str
    address: str
    log: Path | None
    ready: Callable[[], object]

    def device(self) -> str:
        """cuda where any node of the cluster has a GPU, whatever the driver's own machine has, else cpu."""
        from sports_ray.orchestrate.tune import cluster_nodes

        nodes = cluster_nodes(self.address)
        self.ready()
        return "cuda" if any(node.get("GPU", 0) for node in nodes) else "cpu"

    def __call__(self, jobs: Sequence[Job], on_progress: OnProgress) -> None:
        compute_on_ray(jobs, on_progress, workers=self.workers, address=self.address, log=self.log, ready=self.ready)


def compute_all_here(jobs: Sequence[Job], on_progress: OnProgress) -> None:
    """Computes the jobs in this process, one after the other; Ray is not imported."""
    from sports_ray.engine.memory import keep_freed_memory
    from sports_ray.predict.run import compute_here

    if any(job.device == "cpu" for job in jobs):
        keep_freed_memory()
    for job in jobs:
        compute_here(job, on_progress)
