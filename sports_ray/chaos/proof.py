"""The proof: an unbroken run, then the same run killed at random moments, again and again, until the time is over."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from sports_ray.chaos.compare import differences
from sports_ray.chaos.report import PHASES, Kill, Report, Round
from sports_ray.chaos.setting import Setting, environment
from sports_ray.chaos.victim import POLL_SECONDS, Victim
from sports_ray.data.demo import draw_demo
from sports_ray.errors import ConfigError, SportsRayError
from sports_ray.processes import Processes, name_of, still_there

Tell = Callable[[Mapping[str, Any]], None]

UNBROKEN = "unbroken"
KILLS_A_ROUND = (1, 5)
SAVE_SECONDS = 0.03
"""A commit of a small model takes about as long: the kill falls anywhere within."""
_STEPS = ("start", "step", "evaluated")
LEAST_PATIENCE = 180.0
"""Seconds after which a training without an end counts as hung, if twenty unbroken runs take less."""
GONE_SECONDS = 60.0
"""How long Ray's processes may take to see that their driver is dead."""


@dataclass(slots=True)
class _Proof:
    """What is under way."""

    setting: Setting
    store: Path
    photos: Path
    scratch: Path
    tell: Tell
    dice: Random
    end: float
    """When it is to be over, on the monotonic clock."""
    report: Report = field(default_factory=Report)
    family: Processes = field(default_factory=dict)
    """All processes seen below the drivers."""
    start_seconds: float = 0.0
    """Of the unbroken run, from the command to its first step; about."""
    train_seconds: float = 0.0
    """Of the unbroken run, from there to its end."""
    pending: Kill | None = None
    """The last kill, whose consequences are not known yet."""

    def start(self, run: str) -> Victim:
        command, errors = self.setting.command(self.photos, self.store, run), self.store / f"{run}.err"
        on_ray = self.setting.workers > 0
        return Victim(command, environment(self.scratch), self.store / run, errors, on_ray, self.family)

    @property
    def patience(self) -> float:
        return max(LEAST_PATIENCE, 20 * self.report.unbroken_seconds)

    @property
    def left(self) -> float:
        """Seconds in which kills may still be begun, so that the run ends in time."""
        return self.end - time.monotonic() - self.report.unbroken_seconds


def prove(setting: Setting, tell: Tell = lambda event: None) -> Report:
    """Kills and compares for about `setting.minutes`; at least one run is killed once and trained to its end.

    Runs that differ are kept, equal ones are deleted. Raises TrainingError when a run fails or hangs, and leaves it
    where it is. An `unbroken` run that lies finished in the store already is taken as it is.
    """
    started, store = time.monotonic(), _store(setting)
    keep = bool(setting.store)
    # A short name: the paths of Ray's sockets below it must stay under 107 characters.
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        photos = Path(setting.data).absolute() if setting.data else scratch / "photographs"
        end = started + 60 * setting.minutes
        proof = _Proof(setting, store, photos, scratch, tell, Random(setting.seed), end)
        try:
            with _nobody_left(proof):
                _prove(proof)
            keep = keep or bool(proof.report.different)
        except SportsRayError:
            keep = True  # a run that failed is there to be looked at
            raise
        finally:
            if not keep:
                shutil.rmtree(store, ignore_errors=True)
    proof.report.seconds = time.monotonic() - started
    return proof.report


def _store(setting: Setting) -> Path:
    if not setting.store:
        return Path(tempfile.mkdtemp(prefix="sports-ray-chaos-"))
    store = Path(setting.store).absolute()
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("--store", got=f"{store}: {error.strerror}", want="a folder that can be written") from error
    return store


@contextmanager
def _nobody_left(proof: _Proof) -> Iterator[None]:
    """Waits until all that were seen are gone; whoever is not is ended, and named in the report."""
    patience = 0.0
    try:
        yield
        patience = GONE_SECONDS
    finally:
        end = time.monotonic() + patience
        while (family := still_there(proof.family)) and time.monotonic() < end:
            time.sleep(0.1)
        for pid in family:
            proof.report.left_behind.append(f"{pid} {name_of(pid)[:80]}")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _prove(proof: _Proof) -> None:
    setting, report = proof.setting, proof.report
    if not setting.data:
        drawn = draw_demo(proof.photos, classes=6, per_class=24, size=64, seed=setting.seed)
        proof.tell({"kind": "drawn", "images": sum(drawn.images.values()), "classes": len(drawn.classes)})
    _train_unbroken(proof)
    number = 0
    while not report.kills or proof.left > proof.start_seconds:
        number += 1
        if not (proof.store / f"round-{number:03d}").exists():  # one that differed in an earlier proof stays
            _round(proof, number)


def _train_unbroken(proof: _Proof) -> None:
    begun, report = time.monotonic(), proof.report
    with proof.start(UNBROKEN) as victim:
        victim.finish(max(LEAST_PATIENCE, 2 * (proof.end - begun)))
    seconds = time.monotonic() - begun
    told = {event["event"]: event for _, event in victim.events}
    # One that was finished before has trained for as long as its timings say.
    proof.train_seconds = told["done"]["seconds"]
    proof.start_seconds = max(0.5, seconds - proof.train_seconds if "start" in told else seconds)
    report.unbroken, report.steps = str(victim.run), victim.total_steps
    report.unbroken_seconds = proof.start_seconds + proof.train_seconds
    proof.tell({"kind": "unbroken", "seconds": report.unbroken_seconds, "steps": report.steps, "path": report.unbroken})


def _round(proof: _Proof, number: int) -> None:
    """Kills one run several times, lets it end, and compares it."""
    path, begun = proof.store / f"round-{number:03d}", time.monotonic()
    this, kills = Round(number, str(path)), proof.dice.randint(*KILLS_A_ROUND)
    killed = True
    while killed:
        with proof.start(path.name) as victim:
            killed = _one_driver(proof, victim, this, kills)
    proof.pending = None  # killed after its end, a run tells no more
    this.seconds = time.monotonic() - begun
    this.differences = differences(proof.store / UNBROKEN, path)
    proof.report.rounds.append(this)
    proof.tell({"kind": "round", **asdict(this)})
    if not this.differences:
        shutil.rmtree(path)
        victim.errors.unlink(missing_ok=True)


def _one_driver(proof: _Proof, victim: Victim, this: Round, kills: int) -> bool:
    """One start of the command, from its start to its end, with kills on the way; whether it was killed itself."""
    while this.kills < kills and (proof.left > 0 or not proof.report.kills):
        kill = _kill(proof, victim, this)
        if kill is None:  # it was faster
            break
        this.kills += 1
        if kill.kind == "driver":
            return True
        victim.begin_attempt()
    victim.finish(proof.patience)
    _settle(proof, victim)
    return False


def _kill(proof: _Proof, victim: Victim, this: Round) -> Kill | None:
    """Waits for a random moment and kills; None if the run ended before."""
    kind = _wait(proof, victim)
    now = time.monotonic()
    pid = victim.kill(kind)
    if not pid and kind == "worker":
        kind, pid = "driver", victim.kill("driver")
    if not pid:
        return None
    before = proof.pending.step if proof.pending else 0
    _settle(proof, victim)
    step = max((event["step"] for _, event in victim.attempt() if event["event"] in _STEPS), default=before)
    kill = Kill(this.number, kind, pid, victim.phase(), step, at=now)
    proof.report.kills.append(kill)
    proof.pending = kill
    proof.tell({"kind": "killed", "victim": kind, "pid": pid, "phase": kill.phase, "step": step, "round": this.number,
                "total_steps": proof.report.steps})  # fmt: skip
    return kill


def _wait(proof: _Proof, victim: Victim) -> str:
    """Lets the run go on for a while, drawn with a phase in view; whether driver or worker is to be killed then.

    What the phase is at the kill is seen afterwards: a drawn one may have passed, or not come.
    """
    dice, phase = proof.dice, proof.dice.choice(PHASES)
    kind = dice.choice(("driver", "worker")) if proof.setting.workers else "driver"
    if phase == "start-up":
        victim.wait(lambda: victim.heard("step") > 0, dice.uniform(0, proof.start_seconds))
        return kind
    victim.wait(lambda: victim.heard("step") > 0, proof.patience)
    done = max((event["step"] for _, event in victim.attempt() if event["event"] == "step"), default=0)
    rest = proof.train_seconds * (1 - done / max(1, proof.report.steps))
    victim.wait(lambda: False, dice.uniform(0, rest))
    if phase == "evaluation":
        heard = victim.heard("evaluation")
        victim.wait(lambda: victim.heard("evaluation") > heard, rest)
    elif phase == "saving":
        victim.wait(victim.saves, rest, poll=POLL_SECONDS)
        victim.wait(lambda: False, dice.uniform(0, SAVE_SECONDS))
    return kind


def _settle(proof: _Proof, victim: Victim) -> None:
    """Writes down what followed on the last kill, by what the attempt after it has told."""
    kill = proof.pending
    if kill is None:
        return
    told = victim.attempt()
    starts = [event["step"] for _, event in told if event["event"] == "start"]
    steps = [at for at, event in told if event["event"] == "step"]
    if starts:
        kill.resumed, proof.pending = starts[0], None
        kill.seconds = steps[0] - kill.at if steps else None
        proof.tell({"kind": "went on", "step": kill.resumed, "redone": kill.redone, "seconds": kill.seconds})
