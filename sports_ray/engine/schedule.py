"""Which positions a rank reads, and when it evaluates: a pure function of the plan, from any step on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sports_ray.config import TrainConfig
from sports_ray.data.order import Request, spans, steps_per_epoch, worker_lanes


@dataclass(frozen=True, slots=True)
class Schedule:
    """Sizes that fix the course of a run."""

    train_images: int
    """Positions in an epoch: the photographs of train, and their copies (`Sampler`)."""
    val_images: int
    global_batch: int
    lanes: int
    eval_batch: int
    eval_every: int
    epochs: int
    lengths: tuple[int, ...] = ()
    """Epochs that the run had before it was extended, rising: each such end is one still."""

    @classmethod
    def of(cls, config: TrainConfig, train_images: int, val_images: int) -> Schedule:
        loop = config.loop
        lengths = tuple(extension.after for extension in loop.extensions)
        sizes = (loop.global_batch, loop.lanes, loop.eval_batch, loop.eval_every, loop.epochs)
        return cls(train_images, val_images, *sizes, lengths)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.train_images, self.global_batch)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        """Epoch in which optimiser step `step` (from 0) lies."""
        return step // self.steps_per_epoch

    def epochs_left(self, step: int) -> int:
        """Epochs from that of `step` on, itself included, to the next end: of the run, or before it was extended."""
        epoch = self.epoch_of(step)
        return next((end for end in (*self.lengths, self.epochs) if end > epoch), epoch) - epoch

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation follows when `step` steps are done."""
        epoch, rest = divmod(step, self.steps_per_epoch)
        due = epoch % self.eval_every == 0 or epoch in (*self.lengths, self.epochs)
        return self.val_images > 0 and step > 0 and rest == 0 and due

    def step_span(self, step: int) -> tuple[int, int]:
        """Positions in the epoch that optimiser step `step` (from 0) consumes, over all ranks."""
        return spans(self.train_images, self.steps_per_epoch, step % self.steps_per_epoch)

    def lane_spans(self, step: int, rank: int, world: int) -> list[tuple[int, int, int]]:
        """(lane, start, stop) for each lane of a rank in a step; positions in the epoch, one after another."""
        first, last = self.step_span(step)
        result = []
        for lane in worker_lanes(self.lanes, rank, world):
            start, stop = spans(last - first, self.lanes, lane)
            result.append((lane, first + start, first + stop))
        return result

    def train_request(self, step: int, rank: int, world: int) -> Request:
        lanes = self.lane_spans(step, rank, world)
        return Request("train", self.epoch_of(step), lanes[0][1], lanes[-1][2])

    def eval_requests(self, rank: int, world: int, first: int = 0) -> Iterator[Request]:
        """A rank's share of one evaluation: whole batches, so that a batch's content does not depend on the world.

        Every rank gets equally many; the last one may be empty. `first`: images that an earlier session has scored.
        """
        stride = self.eval_batch * world
        rounds = -(-(self.val_images - first) // stride)
        for start in range(first + rank * self.eval_batch, first + rounds * stride, stride):
            yield Request("val", -1, min(start, self.val_images), min(start + self.eval_batch, self.val_images))

    def requests(self, step: int, evaluated: bool, rank: int, world: int, eval_done: int = 0) -> Iterator[Request]:
        """All that a rank reads from `step` steps done to the end; `evaluated`: the evaluation at `step` is done,
        `eval_done`: so many images of it are."""
        while True:
            if self.evaluates_after(step) and not evaluated:
                yield from self.eval_requests(rank, world, eval_done)
            evaluated, eval_done = False, 0
            if step >= self.total_steps:
                return
            yield self.train_request(step, rank, world)
            step += 1
