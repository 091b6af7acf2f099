"""What one process works with while it trains, from the resume on."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sports_ray.config import DataConfig, ImageSpec, TrainConfig
from sports_ray.data.cache import budget_bytes
from sports_ray.data.manifest import Manifest
from sports_ray.data.sampler import Sampler
from sports_ray.engine.guard import Watchdog
from sports_ray.engine.handout import Handed, hand_out
from sports_ray.engine.interval import Costs
from sports_ray.engine.learner import Learner, Progress, build_learner, choose_precision
from sports_ray.engine.ledger import Ledger
from sports_ray.engine.link import Link
from sports_ray.engine.memory import keep_freed_memory
from sports_ray.engine.multilabel import loss_of
from sports_ray.engine.record import Speed, system_facts
from sports_ray.engine.schedule import Schedule
from sports_ray.engine.world import World
from sports_ray.model.build import create, image_spec
from sports_ray.model.convolution import speed_up
from sports_ray.model.loss import balanced_weights
from sports_ray.model.optim import default_lr, learning_rate
from sports_ray.model.weights import load_weights
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.run_dir import RunDir
from sports_ray.store.writer import AsyncWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """All that a commit holds, copied to host memory."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


@dataclass(slots=True)
class Session:
    """What one process works with from the resume to the end."""

    config: TrainConfig
    manifest: Manifest
    schedule: Schedule
    learner: Learner
    progress: Progress
    ledger: Ledger
    run_dir: RunDir
    link: Link
    lr: float
    token: int
    writer: AsyncWriter | None
    """On rank 0 alone: only it commits, since all ranks hold the same state."""
    speed: Speed = field(default_factory=Speed)
    watchdog: Watchdog | None = None
    phase: str | None = None
    """Parameters that learn now, as the phase names them; None: all."""
    opened_at: float = field(default_factory=time.monotonic)
    committed: int | None = None
    """Newest step that is safe in the store, as far as this process knows."""
    submitted_at: float = field(default_factory=time.monotonic)
    """When the newest commit was handed to the writer, on the monotonic clock."""
    submitted_bytes: int = 0
    """Of that commit, and of the best one where it goes with it."""
    costs: Costs = field(default_factory=Costs)
    unsaved: bool = False
    """Whether anything has changed since the newest commit was handed to the writer."""
    unsaved_best: Snapshot | None = None
    """The best state so far until it is safe: while the store fails newer commits take the place of its own."""
    unsaved_kept: list[Snapshot] = field(default_factory=list)
    """Likewise those at the ends of store.keep_epochs."""
    told: float = 0.0
    """For how many seconds of a failing store people have been told of; 0: it is well."""

    @property
    def world(self) -> World:
        return self.learner.world

    def tell(self, event: Mapping[str, Any]) -> None:
        """Tells people, who may keep it waiting."""
        with self.watchdog.aside() if self.watchdog else nullcontext():
            self.link.progress(event)

    def stood_still(self) -> float:
        """Seconds since the last call that passed without this process doing anything."""
        return self.watchdog.stood_still() if self.watchdog else 0.0

    def rate(self, step: int) -> float:
        """Learning rate of optimiser step `step`, from 0."""
        optim, loop, each = self.config.optim, self.config.loop, self.schedule.steps_per_epoch
        return learning_rate(step, self.lr, optim, loop.phases, each, loop.epochs, loop.extensions)


def open_session(
    config: TrainConfig, manifest: Manifest, run_dir: RunDir, link: Link, world: World, lease: str
) -> Session:
    """Builds a rank's session at the newest commit that verifies, or at step 0."""
    if world.device.type == "cpu":
        keep_freed_memory()
    token, commit = _begin(run_dir, world, lease)
    sampler = Sampler.of(config, manifest)
    schedule = Schedule.of(config, len(sampler), manifest.rows("val").num_rows)
    model, spec = _start(config, manifest, resumed=commit is not None)
    if world.device.type == "cpu" and not config.model.compile:
        speed_up(model)
    precision = _settle(config, run_dir, world, model, spec)
    lr = config.optim.lr or default_lr(config.optim, config.loop.global_batch, config.model.weights == "none")
    decay = config.ema.decay or 1.0 - 1.0 / max(2, schedule.steps_per_epoch)
    learner = build_learner(config, model, spec, lr, decay, precision, world)
    if config.loop.class_weights == "balanced":
        learner.class_weights = balanced_weights(sampler.class_shares(len(manifest.classes))).to(world.device)
    learner.multilabel = loss_of(config, manifest, world.device)
    progress = Progress(micro_batch=config.loop.micro_batch, scale=learner.scale.value)
    if commit is not None:
        learner.load(commit.load)
        progress = Progress.from_json(commit.state)
        learner.scale.value, learner.scale.good_steps = progress.scale, progress.scale_good_steps
        logger.info("resumed: step=%d token=%d", progress.step, token)
    writer = AsyncWriter() if world.rank == 0 else None
    ledger = Ledger(manifest.rows("train").column("sha256"))
    session = Session(config, manifest, schedule, learner, progress, ledger, run_dir, link, lr, token, writer)
    session.committed = commit.step if commit else None
    if world.rank == 0:
        _announce(session)
    return session


def _begin(run_dir: RunDir, world: World, lease: str) -> tuple[int, Handed | None]:
    """Fencing token of this attempt, and the commit to go on from: rank 0 picks, reads and verifies it for all."""
    if world.rank == 0:
        attempt = begin_attempt(run_dir.storage, {"host": platform.node(), "pid": os.getpid()}, lease)
        run_dir.sweep()
        return world.from_rank0(attempt.token), hand_out(world, attempt.commit)
    return world.from_rank0(0), hand_out(world, None)


def _announce(session: Session) -> None:
    facts = system_facts(session.world.device)
    start = {"kind": "start", "step": session.progress.step, "precision": session.learner.precision, "pid": os.getpid()}
    session.run_dir.append_timing({**start, "token": session.token, "world": session.world.size, **facts})
    session.tell({**start, "total_steps": session.schedule.total_steps})


def _start(config: TrainConfig, manifest: Manifest, resumed: bool) -> tuple[nn.Module, ImageSpec]:
    """The model as step 0 finds it; `loop.seed` alone fixes what is random in it."""
    torch.manual_seed(config.loop.seed)
    model = create(config.model, len(manifest.classes), config.data.image_size, sure=True)
    if not resumed:
        report = load_weights(model, config.model.weights, config.model.name, manifest.classes)
        logger.info("weights: source=%s coverage=%.4f head=%s", report.source, report.coverage, report.head)
    return model, image_spec(model, config.data.image_size, config.data.crop_mode, config.data.crop_pct)


def _settle(config: TrainConfig, run_dir: RunDir, world: World, model: nn.Module, spec: ImageSpec) -> str:
    """Settles threads and precision, once for the whole run: both change the last bits. Returns the precision.

    They are on disk before the first step, so that a run killed before its first commit starts with the same.
    """
    key = "strict" if config.loop.strict else str(world.size)
    if world.rank == 0:
        settled: dict[str, Any] = run_dir.read_settled() or {
            "threads": {},
            "precision": config.loop.precision,
        }
        before = {"threads": dict(settled["threads"]), "precision": settled["precision"]}
        settled["threads"].setdefault(key, config.cluster.threads or max(1, (os.cpu_count() or 1) // world.local_size))
        torch.set_num_threads(settled["threads"][key])
        if settled["precision"] == "auto":
            settled["precision"] = choose_precision(config, model, spec, world.device)
        if settled != before or run_dir.read_settled() is None:
            run_dir.write_settled(settled)
    world.from_rank0(0)
    settled = run_dir.read_settled() or {}
    torch.set_num_threads(settled["threads"][key])
    if world.device.type == "cuda" and config.loop.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    elif world.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return settled["precision"]


def loader_config(config: TrainConfig, world: World) -> DataConfig:
    """Settles `data.cache_gb = -1`: the ranks of a machine share a tenth of the memory that is free."""
    if config.data.cache_gb >= 0:
        return config.data
    return replace(config.data, cache_gb=budget_bytes(-1) / 2**30 / world.local_size)


def loader_processes(config: TrainConfig, world: World) -> int:
    """Settles `data.loader_processes = -1`: on a GPU most of this worker's share of the cores, on a CPU one."""
    if config.data.loader_processes >= 0:
        return config.data.loader_processes
    share = (os.cpu_count() or 1) // world.local_size
    return max(1, min(8, share - 1)) if world.device.type == "cuda" else 1
