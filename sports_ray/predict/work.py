"""Predictions of a plan's members on some photographs: what is missing is computed, what is there is proven and gathered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sports_ray.errors import TrainingError
from sports_ray.predict.blocks import ROWS, UNREAD, Shelf, prove
from sports_ray.predict.columns import Damaged, Part, Shelved, Tables, parts
from sports_ray.predict.compute import BATCHES, Job, found_device, key_of
from sports_ray.predict.images import Images
from sports_ray.predict.plan import Plan
from sports_ray.predict.run import OnProgress
from sports_ray.predict.views import check_views
from sports_ray.score.merge import Merge

log = logging.getLogger(__name__)

Compute = Callable[[Sequence[Job], OnProgress], None]
"""Computes and writes all blocks that the jobs lack. One that does so elsewhere has a `device()`: what is there."""
Sink = Callable[[Part], object]
TRIES = 3
"""How often blocks that turn out damaged when they are read are computed again."""


@dataclass(frozen=True)
class Work:
    """Where predictions lie, and how to compute what is missing of them."""

    plan: Plan
    images: Images
    members: tuple[Shelved, ...]
    device: str
    batch: int
    compute: Compute
    on_progress: OnProgress

    @classmethod
    def of(
        cls, plan: Plan, images: Images, compute: Compute, on_progress: OnProgress, *, device: str = "", batch: int = 0
    ) -> Work:
        """`device`: cpu or cuda, by default what is there where `compute` computes; `batch`: by default the device's."""
        device = device or getattr(compute, "device", found_device)()
        batch = batch or BATCHES[device]
        shelved = []
        for member in plan.members:
            key = key_of(member, images, device, batch)
            shelf = Shelf.of(plan.home, member.model, key, len(images), len(member.classes))
            shelf.describe(key)
            shelved.append(Shelved(member.name, shelf, plan.views(member)))
        return cls(plan, images, tuple(shelved), device, batch, compute, on_progress)

    def on(self, images: Images) -> Work:
        """The same on other photographs."""
        return Work.of(self.plan, images, self.compute, self.on_progress, device=self.device, batch=self.batch)

    def complete(self) -> None:
        """Computes what is missing; says first how much that is."""
        jobs = [self._job(place) for place in range(len(self.members))]
        for job in jobs:
            self.on_progress(
                {"kind": "work", "member": job.member.name, "images": len(self.images), "to_do": job.rows_to_do()}
                | {"views": len(job.views), "device": job.device, "precision": job.member.precision}
            )
        jobs = [job for job in jobs if job.missing]
        for job in jobs:
            check_views(job.views, job.member)
        if jobs:
            self.compute(jobs, self.on_progress)
        for member in self.members:  # of deaths before, and of actors that were killed now
            member.shelf.sweep([view.name for view in member.views])

    def gather(self, merge: Merge | None, sink: Callable[[], Sink] = lambda: lambda part: None) -> Tables:
        """All predictions as tables, each row proven to be there once. Blocks that turn out damaged are
        computed again; `sink()` gives, at each try, what else takes the parts."""
        for _ in range(TRIES):
            try:
                return self._gather(merge, sink())
            except Damaged as damaged:
                log.warning("predictions: a block of %s is damaged", self.members[damaged.place].name)
                self.complete()
        raise TrainingError("predictions", got=f"damaged again after {TRIES} tries", cure="check the storage")

    def forget_unread(self, errors: Sequence[str | None]) -> int:
        """Forgets blocks with files that could be read when they were listed, and not later: another time they may be.
        How many files."""
        before = self.images.column("error")
        unread = [row for row, error in enumerate(errors) if error and error.startswith(UNREAD) and not before[row]]
        for member in self.members:
            for block in {row // ROWS for row in unread}:
                for view in member.views:
                    member.shelf.forget(view.name, block)
        return len(unread)

    def _job(self, place: int) -> Job:
        member, shelved = self.plan.members[place], self.members[place]
        missing = shelved.shelf.missing([view.name for view in shelved.views])
        return Job(member, self.images, shelved.views, shelved.shelf, missing, self.device, self.batch)

    def _gather(self, merge: Merge | None, sink: Sink) -> Tables:
        tables, ids = Tables(len(self.plan.classes)), []
        for part in parts(self.members, self.plan.average, merge, self.plan.multilabel):
            tables.append(part)
            sink(part)
            ids.append(np.arange(part.start, part.start + len(part.errors)))
        prove(iter(ids), len(self.images), "the predictions")
        return tables
