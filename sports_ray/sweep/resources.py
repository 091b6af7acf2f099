"""What a trial gets, and how many fit at once: what cannot be is refused before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sports_ray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker of a trial gets."""

    workers: int
    """Of a trial; 1: it trains in the trial's own process."""
    cpus: float
    """CPUs of a worker; below 1 where there are more trials than cores."""
    gpus: float
    """GPUs of a worker; a fraction is shared with others."""

    @property
    def bundle(self) -> dict[str, float]:
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    def words(self) -> str:
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.workers} worker{'s' * (self.workers > 1)} of {self.cpus:g} CPU{gpus}"


def fitting(nodes: Sequence[Mapping[str, float]], share: Share) -> int:
    """How many trials `nodes` (resources by name) have room for at once. All workers are alike, so counting is exact."""
    return sum(_room(node, share) for node in nodes) // share.workers


def _room(node: Mapping[str, float], share: Share) -> int:
    """Workers that fit on one node; a fraction of a GPU lies on one device."""
    room = math.floor(node.get("CPU", 0) / share.cpus + 1e-9)
    if not share.gpus:
        return room
    gpus = int(node.get("GPU", 0))
    devices = gpus // int(share.gpus) if share.gpus >= 1 else gpus * math.floor(1 / share.gpus + 1e-9)
    return min(room, devices)


def to_come(
    nodes: Sequence[Mapping[str, float]],
    *,
    declared: int,
    workers: int = 1,
    concurrent: int = 0,
    cpus: float = 0.0,
    gpus: float | None = None,
) -> list[dict[str, float]]:
    """Nodes that the user says will join `nodes`, of which an autoscaler may have none yet: those with the rest of `declared`
    GPUs (cluster.gpus), or, where there are none to work on, those for what is asked of each of `concurrent` trials."""
    lacking = declared - int(sum(node.get("GPU", 0) for node in nodes))
    if lacking > 0:
        size, shared_by = max(1, int(gpus or 1)), max(1, math.floor(1 / (gpus or 1) + 1e-9))
        return [{"CPU": (cpus or 1.0) * shared_by, "GPU": float(size)}] * (lacking // size)
    if concurrent and cpus and not any(node.get("CPU", 0) for node in nodes):
        return [{"CPU": cpus, "GPU": float(math.ceil(gpus or 0))}] * (concurrent * workers)
    return []


def settle_share(
    nodes: Sequence[Mapping[str, float]],
    backbones: int,
    *,
    workers: int = 1,
    concurrent: int = 0,
    cpus: float = 0.0,
    gpus: float | None = None,
) -> tuple[Share, int]:
    """(what a worker gets, trials at once) from what was asked for; 0 and None: settled here, so that every backbone has a
    trial under way and every GPU has work.

    Raises ConfigError for what can never run: it would wait for ever."""
    have = int(sum(node.get("GPU", 0) for node in nodes))
    cores = sum(node.get("CPU", 0) for node in nodes)
    if concurrent and concurrent < backbones:
        raise ConfigError(
            "--max-concurrent",
            got=f"{concurrent} for {backbones} backbones",
            want="at least one trial of each backbone at once",
            cure=f"--max-concurrent {backbones}, or fewer --models",
        )
    _check_gpus(gpus)
    if not cores:
        raise ConfigError(
            "resources",
            got="a cluster without CPUs at this moment",
            want="nodes to train on, or word of those to come",
            cure="--set cluster.gpus=N --cpus-per-trial C, or --cpus-per-trial C --max-concurrent N",
        )
    wanted = concurrent or max(backbones, int(have / (gpus * workers)) if gpus else have // workers)
    each = cpus or _even(cores / (wanted * workers))
    share = Share(workers, each, gpus if gpus is not None else _even_gpus(have / (wanted * workers)))
    while not cpus and share.cpus > 1 and fitting(nodes, share) < wanted:  # nodes of different sizes
        share = Share(workers, share.cpus - 1, share.gpus)
    room = fitting(nodes, share)
    if room < wanted:
        raise ConfigError(
            "resources",
            got=f"{_words(nodes)}, room for {room} trial{'s' * (room != 1)} of {share.words()}",
            want=f"room for {wanted} at once" + (", one of each backbone" if wanted == backbones else ""),
            cure="fewer --workers-per-trial, --cpus-per-trial or --gpus-per-trial, or a larger cluster",
        )
    return share, wanted


def _check_gpus(gpus: float | None) -> None:
    if gpus is not None and (gpus < 0 or (gpus > 1 and not float(gpus).is_integer())):
        raise ConfigError("--gpus-per-trial", got=gpus, want="a fraction of one GPU, or a whole number a worker")


def _even(amount: float) -> float:
    """Rounded down to whole numbers, below one to hundredths."""
    return float(math.floor(amount)) if amount >= 1 else max(0.01, math.floor(amount * 100) / 100)


def _even_gpus(amount: float) -> float:
    """One GPU a worker where there are enough, else the largest equal fraction."""
    return 0.0 if amount <= 0 else 1.0 if amount >= 1 else 1.0 / math.ceil(1 / amount - 1e-9)


def _words(nodes: Sequence[Mapping[str, float]]) -> str:
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    places = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    return f"{cpus:g} CPU{f', {gpus:g} GPU' if gpus else ''}{places}"
