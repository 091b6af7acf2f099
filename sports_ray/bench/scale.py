"""How the design behaves where this machine cannot follow: hundreds of workers, 10^8 images, checkpoints of 10 GB.

`simulate` is a discrete simulation of a run whose nodes die, are reclaimed in storms and come back; `limits` says at which
size each resource gives out. Both are pure functions of a `Setting`, of `Constants` that `scale_measure` measures on
the real parts, and of a seed. The assumptions:

- Nodes die independently, with exponential lifetimes; a storm takes a share of all nodes at once. Each is replaced after an
  exponential time, and is taken in at the next look (cluster.resize_seconds): a stop in order, a commit, a restart.
- A restart costs what a lost worker costs on this machine (`bench recovery`), and besides what grows with the size: reading
  the commit and the best one, handing them out, the manifest, an epoch's order. A death in the middle begins it anew.
- Commits are `engine.interval.commit_interval` apart, never closer than writing takes. What was computed since the newest
  safe one is lost with a death. The copy of the state stalls all workers; writing stalls none.
- Workers are equally fast, and their sums cost nothing: how gradients scale is the network's matter, not this design's.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from sports_ray.data.order import generator
from sports_ray.engine.interval import commit_interval

GB = 1e9
_DOMAIN = 1_000
"""Of the random words: none of a training's."""
BEARABLE = 0.1
"""Share of the time between two deaths that a restart may take."""
RANKS_EXACT = 65_536
"""Ranks over which the ledger's words sum exactly in float32 (engine.ledger)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    workers: int = 256
    per_node: int = 8
    """Workers of a node."""
    images: int = 100_000_000
    checkpoint_gb: float = 10.0
    images_per_second: float = 400.0
    """Of a worker."""
    node_hours: float = 24.0
    """Mean life of a node, h."""
    return_minutes: float = 10.0
    """Mean time until a lost node is replaced, min."""
    storm_hours: float = 24.0
    """Mean time between two storms, h; 0: none."""
    storm_share: float = 0.25
    """Nodes that a storm takes."""
    resize_seconds: float = 60.0
    store_gb_s: float = 2.0
    """What the store gives to all readers together, and takes from one writer, GB/s."""
    network_gb_s: float = 5.0
    """Between two nodes, GB/s."""
    node_memory_gb: float = 1_000.0
    days: float = 7.0
    one_reader: bool = True
    """Rank 0 reads a commit and hands it out; False: every rank reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What the parts cost on one machine. Bytes and seconds an image are those at the size that was measured."""

    restart_seconds: float
    """From the death of a worker to the next step, of a small run."""
    write_gb_s: float
    """Encoding, hashing and writing of a commit by one thread."""
    read_gb_s: float
    """Reading, hashing and decoding."""
    copy_gb_s: float
    """Of the state to host memory."""
    order_seconds: float
    """Of an epoch's order, for an image."""
    start_seconds: float
    """Manifest, ledger and loader of a worker at its start, for an image."""
    worker_bytes: float
    """Of a worker's memory, for an image."""
    plan_seconds: float
    """Of the driver's listing, rules and fingerprint, for an image whose facts are known."""
    plan_bytes: float
    """Of the driver's memory at its peak, for an image."""


class Outcome(NamedTuple):
    """Of a simulated run; shares are of the time that all workers together would have had."""

    useful: float
    lost: float
    """Computed, and computed again after a death."""
    down: float
    """Nothing was computed: restarts and resizes."""
    stalled: float
    """Copying states for commits."""
    missing: float
    """Workers that were not there."""
    deaths: int
    """Restarts after the loss of nodes, those that a further loss cut short included."""
    resizes: int
    longest: float
    """Seconds from a step to the next one, at most."""
    read_tb: float
    written_tb: float


def restart_seconds(setting: Setting, costs: Constants) -> float:
    """From a death to the next step. The newest commit and the best one are read, the newest is handed out."""
    size = setting.checkpoint_gb
    rank0 = 2 * size / min(costs.read_gb_s, setting.store_gb_s)
    if setting.one_reader:
        others = size / setting.network_gb_s
    else:
        others = max(size / costs.read_gb_s, setting.workers * size / setting.store_gb_s)
    return costs.restart_seconds + rank0 + others + setting.images * (costs.start_seconds + costs.order_seconds)


def write_seconds(setting: Setting, costs: Constants) -> float:
    return setting.checkpoint_gb / min(costs.write_gb_s, setting.store_gb_s)


def interval_seconds(setting: Setting, costs: Constants) -> float:
    """Between two commits, by the engine's own rule for the cluster's time between deaths."""
    cost = setting.checkpoint_gb / costs.copy_gb_s
    return max(commit_interval(cost, between_deaths(setting)), write_seconds(setting, costs))


def between_deaths(setting: Setting) -> float:
    """Mean seconds between two losses, of single nodes and storms."""
    rate = setting.workers / setting.per_node / (3600 * setting.node_hours)
    return 1 / (rate + (1 / (3600 * setting.storm_hours) if setting.storm_hours else 0))


class _Events:
    """When nodes die, storms come and nodes return, in seconds."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self._setting = setting
        self._dice = generator(seed, _DOMAIN)
        self.nodes = self.most = max(1, setting.workers // setting.per_node)
        self._returns: list[float] = []
        self._storm = self._after(3600 * setting.storm_hours) if setting.storm_hours else math.inf

    def _after(self, mean: float) -> float:
        return -mean * math.log(1.0 - self._dice.random())

    def next_loss(self, now: float) -> float:
        """Lifetimes have no memory: drawing anew at each look changes nothing."""
        node = self._after(3600 * self._setting.node_hours / self.nodes) if self.nodes else math.inf
        return min(now + node, max(now, self._storm))

    def lose(self, now: float) -> None:
        count = 1
        if now >= self._storm:
            count = max(1, round(self._setting.storm_share * self.nodes))
            self._storm = now + self._after(3600 * self._setting.storm_hours)
        count = min(count, self.nodes)
        self.nodes -= count
        for _ in range(count):
            heapq.heappush(self._returns, now + self._after(60 * self._setting.return_minutes))

    def next_return(self, now: float) -> float:
        """The next look at which a node has come back."""
        period = self._setting.resize_seconds
        first = max(now, self._returns[0]) if self._returns else math.inf
        return math.ceil(first / period) * period if first < math.inf else math.inf

    def take_back(self, now: float) -> None:
        while self._returns and self._returns[0] <= now:
            heapq.heappop(self._returns)
            self.nodes += 1


def simulate(setting: Setting, costs: Constants, seed: int = 0) -> Outcome:
    """One run of `days`; equal arguments give equal outcomes."""
    end, events = 86_400 * setting.days, _Events(setting, seed)
    interval, writing = interval_seconds(setting, costs), write_seconds(setting, costs)
    stall = setting.checkpoint_gb / costs.copy_gb_s / interval
    restart, readers = restart_seconds(setting, costs), 1 if setting.one_reader else setting.workers
    now = useful = lost = down = stalled = longest = 0.0
    deaths = resizes = commits = 0
    begun = 0.0
    while now < end:
        share = events.nodes / events.most
        loss, back = events.next_loss(now), events.next_return(now)
        until = min(loss, back, end)
        spent = until - now
        computed, now = spent * (1 - stall) * share, until
        stalled += spent * stall * share
        commits += int(spent / interval)
        if until == end:
            useful += computed
            break
        if back <= loss:
            resizes += 1
            commits += 1
            wait = writing + restart
            useful += computed
        else:
            deaths += 1
            unsafe = spent % interval
            if unsafe < writing and unsafe < spent:  # the newest one is not written yet
                unsafe += interval
            useful += computed - unsafe * (1 - stall) * share
            lost += unsafe * (1 - stall) * share
            events.lose(now)
            wait = restart
        begun = now
        while events.nodes == 0 or (cut := events.next_loss(now)) < now + wait:
            # Nobody is left, or another node is lost before the first step: from the beginning.
            if events.nodes == 0:
                now = events.next_return(now)
            else:
                now, deaths = cut, deaths + 1
                events.lose(now)
            events.take_back(now)
            wait = restart
            if now >= end:
                break
        now += wait
        down += (min(now, end) - begun) * share
        longest = max(longest, now - begun)
        events.take_back(now)
    total = useful + lost + down + stalled
    read = (deaths + resizes) * setting.checkpoint_gb * (1 + readers) / 1000
    return Outcome(
        useful / end, lost / end, down / end, stalled / end, max(0.0, 1 - total / end), deaths, resizes, longest, read,
        commits * setting.checkpoint_gb / 1000,
    )  # fmt: skip


class Limit(NamedTuple):
    name: str
    words: str
    value: float
    """The size at which it is reached, all else being as in the setting."""
    unit: str
    now: float
    """How much of it the setting uses; 1: all."""


def limits(setting: Setting, costs: Constants) -> list[Limit]:
    """What gives out at which size, the first to do so first."""
    found = [*_of_images(setting, costs), *_of_workers(setting, costs)]
    writing = write_seconds(setting, costs)
    interval = commit_interval(setting.checkpoint_gb / costs.copy_gb_s, between_deaths(setting))
    # The interval grows with the root of the size, writing with the size.
    size = setting.checkpoint_gb * (interval / writing) ** 2
    found.append(Limit("writing", "writing a commit takes longer than the interval", size, "GB", writing / interval))
    return sorted(found, key=lambda limit: -limit.now)


def _of_images(setting: Setting, costs: Constants) -> Iterator[Limit]:
    memory, images = setting.node_memory_gb * GB, setting.images
    worker = images * costs.worker_bytes * setting.per_node / memory
    yield Limit("worker_memory", "workers' tables fill a node's memory", images / worker, "images", worker)
    driver = images * costs.plan_bytes / memory
    yield Limit("driver_memory", "the driver's plan fills a node's memory", images / driver, "images", driver)
    plan = images * costs.plan_seconds / 3600
    yield Limit("plan", "the driver plans for an hour", images / plan, "images", plan)
    # Images of an epoch cancel out: the order is ready in time while all workers together are slower than it.
    order = costs.order_seconds * setting.workers * setting.images_per_second
    yield Limit("order", "the next order takes longer than an epoch", setting.workers / order, "workers", order)


def _of_workers(setting: Setting, costs: Constants) -> Iterator[Limit]:
    yield Limit("ledger", "the ledger's sums are not exact", RANKS_EXACT, "workers", setting.workers / RANKS_EXACT)

    def strain(workers: int, one_reader: bool) -> float:
        there = replace(setting, workers=workers, one_reader=one_reader)
        return restart_seconds(there, costs) / (BEARABLE * between_deaths(there))

    for one, words in ((True, "one reader"), (False, "every rank reads")):
        low, high = setting.per_node, setting.per_node
        while strain(high, one) < 1 and high < 2**24:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if strain(middle, one) < 1 else (low, middle)
        words = f"a restart takes {BEARABLE:.0%} of the time between deaths ({words})"
        name = "restart" if one else "restart_all_read"
        yield Limit(name, words, high, "workers", strain(setting.workers, one))
