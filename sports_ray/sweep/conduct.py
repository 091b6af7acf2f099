"""Decides what comes next in a sweep. Pure but for the folder: every answer is written there before it is given, so that
after any death the same sweep goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sports_ray.errors import ConfigError, RunError, StorageError
from sports_ray.recipe import to_toml
from sports_ray.score.main_score import NAMES, score_of
from sports_ray.store.storage import is_of_one_file, may_pass
from sports_ray.sweep import board
from sports_ray.sweep.folder import Decision, SweepDir
from sports_ray.sweep.halving import goes_on
from sports_ray.sweep.patience import patiently
from sports_ray.sweep.space import Params, space_of
from sports_ray.sweep.spec import SweepSpec, Trial
from sports_ray.sweep.suggest import Told, suggest

log = logging.getLogger(__name__)

HALVED = "successive halving"
"""The reason with which a trial stops at a rung."""


class Conductor:
    """The state of a sweep, as its folder tells it. Whoever lets it decide holds the sweep's lease."""

    def __init__(self, spec: SweepSpec, folder: SweepDir) -> None:
        self.spec, self.folder = spec, folder
        self.trials = {trial.name: trial for trial in spec.trials()}
        self.running: set[str] = set()
        self._params = spec.drawn()
        self._log: list[Decision] = []
        self._ends: dict[str, Decision] = {}
        self._rungs: dict[tuple[str, int], list[float]] = {}
        """Scores at each rung of each backbone, in the order of the decisions."""
        self._answers: dict[tuple[str, int], bool] = {}
        for line in folder.decisions():
            self._take(line)

    def _take(self, line: Decision) -> None:
        """Notes a decision, old or new."""
        name = line.get("trial", "")
        if name not in self.trials:
            return
        self._log.append(line)
        if line["kind"] == "params":
            self._params[name] = line["params"]
        elif line["kind"] == "rung":
            rung = (self.trials[name].backbone.name, line["epoch"])
            self._rungs.setdefault(rung, []).append(-math.inf if line["score"] is None else line["score"])
            self._answers[name, line["epoch"]] = line["goes_on"]
        elif line["kind"] == "end":
            self._ends[name] = line
        elif line["kind"] == "again":
            self._ends.pop(name, None)

    def _decide(self, **line: Any) -> None:
        self._take(line)
        self.folder.write_decisions(self._log)

    def catch_up(self, retry_failed: bool = False) -> None:
        """Decides what a dead driver could not any more: ends that the runs tell of, and rungs that were passed."""
        for name, end in list(self._ends.items()):
            if retry_failed and end["state"] == "failed":
                self._decide(kind="again", trial=name)
        for name, trial in self.trials.items():
            if name in self._ends or name not in self._params:
                continue
            history = self._history(name)
            if history and self.folder.finished_epochs(name) >= self._epochs(trial):
                self.ended(name, "done")
            else:
                self._halved(name, history)

    def _history(self, name: str) -> list[dict[str, Any]]:
        """The evaluations of a trial's run; StorageError if the storage cannot be read for a while."""

        def read() -> list[dict[str, Any]]:
            try:
                return self.folder.history(name)
            except StorageError as error:
                if is_of_one_file(error) and not may_pass(error):
                    return self._left_of(name)
                raise

        try:
            return patiently(read)
        except StorageError as error:
            if not is_of_one_file(error):
                raise
            return self._left_of(name)

    def _left_of(self, name: str) -> list[dict[str, Any]]:
        """The evaluations of a run of which a commit cannot be read, and that does not pass: the run itself would go on
        without that commit, but its metrics may know more."""
        return max(self.folder.run_dir(name).read_metrics(), self.folder.history(name, sure=False), key=len)

    def _halved(self, name: str, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the trial's run has passed a rung at which it had to stop; then it has ended."""
        halved = any(self.evaluated(name, line) for line in history)
        if halved:
            self.ended(name, "stopped", HALVED)
        return halved

    def _epochs(self, trial: Trial) -> int:
        return int(self._params[trial.name].get("loop.epochs", trial.backbone.config.loop.epochs))

    # What comes next.

    def next(self) -> str | None:
        """The trial to start now, which counts as running from here on; None if none is left to start.

        Of the backbone with the fewest under way, so that each that has work left is among them."""
        while (trial := self._chosen()) is not None:
            self.running.add(trial.name)
            if self._settled(trial):
                return trial.name
            self.running.discard(trial.name)
        return None

    def _chosen(self) -> Trial | None:
        under_way = {one.name: 0 for one in self.spec.backbones}
        for name in self.running:
            under_way[self.trials[name].backbone.name] += 1
        waiting = [trial for name, trial in self.trials.items() if name not in self._ends and name not in self.running]
        return min(waiting, key=lambda trial: under_way[trial.backbone.name], default=None)

    def _settled(self, trial: Trial) -> bool:
        """Gives the trial its settings; False, with a row that says why, if they do not go together."""
        if trial.name not in self._params:
            space = space_of(self.spec.space, trial.backbone.name)
            params = suggest(space, self.spec.seed, trial.name, self.told(trial.backbone.name))
            self._decide(kind="params", trial=trial.name, params=params)
        try:
            self.spec.config(trial, self._params[trial.name], self.folder.uri)
        except ConfigError as error:
            self.ended(trial.name, "failed", str(error))
            return False
        return True

    def told(self, backbone: str) -> list[Told]:
        """The trials of a backbone that have ended, in that order."""
        found = []
        for name, end in self._ends.items():
            if self.trials[name].backbone.name == backbone:
                score = board.score(end["result"], self.spec.metric) if end["state"] != "failed" else -math.inf
                found.append(Told(self._params[name], score, end["result"]["epochs"] * (end["state"] == "stopped")))
        return found

    # What has happened.

    def evaluated(self, name: str, line: Mapping[str, Any]) -> str:
        """Takes note of an evaluation: why the trial has to stop, or "". The same question gets the same answer."""
        halving, epoch = self.spec.halving, line["epoch"]
        if halving is None or epoch not in halving.rungs:
            return ""
        if (name, epoch) not in self._answers:
            score = board.score(line, self.spec.metric)
            before = self._rungs.get((self.trials[name].backbone.name, epoch), [])
            answer = goes_on(before, score, halving.reduction)
            self._decide(kind="rung", trial=name, epoch=epoch, score=score, goes_on=answer)
        return "" if self._answers[name, epoch] else HALVED

    def ended(self, name: str, state: str, reason: str = "") -> None:
        """A trial is over: done, stopped or failed. Its row is recorded, then the leaderboard and the weights follow.

        RunError if it is done without an evaluation, StorageError if its run cannot be read: such a row would stay wrong."""
        history = self._history(name)
        if state == "done" and not history:
            raise RunError(
                f"trial {name}",
                got="an end without an evaluation: no checkpoint of its run is there, or sound",
                want="the history of its training",
                cure=f"restore a copy; or delete {self.folder.storage.uri}/{name}, and it is trained again",
            )
        result = board.result(history, self.spec.metric)
        self._decide(kind="end", trial=name, state=state, reason=reason, result=result)
        self.running.discard(name)
        try:
            self.publish()
        except StorageError as error:  # comes again with the next end, and at each start
            log.warning("leaderboard.not_written reason=%s", error)

    def interrupted(self, name: str) -> bool:
        """A trial has left before its end. Whether it waits to be started again: one that left in the very moment in which a
        rung told it to stop has ended."""
        self.running.discard(name)
        try:
            history = self._history(name)
        except StorageError as error:  # started again, it comes to the same rung and gets the same answer
            log.warning("trial.unreadable name=%s reason=%s", name, error)
            history = []
        return not self._halved(name, history)

    @property
    def finished(self) -> bool:
        return len(self._ends) == len(self.trials)

    def left(self) -> dict[str, int]:
        """Trials of each backbone that have not ended."""
        counts = {one.name: 0 for one in self.spec.backbones}
        for name, trial in self.trials.items():
            counts[trial.backbone.name] += name not in self._ends
        return counts

    def params(self, name: str) -> Params | None:
        return self._params.get(name)

    # What is left for people.

    def rows(self) -> list[board.Row]:
        score, items = self.spec.score_name, self.trials.items()
        rows = [board.row(one, self._params.get(name), self._ends.get(name), score) for name, one in items]
        return board.ranked(rows, self.spec.metric)

    def publish(self) -> list[board.Row]:
        """Writes leaderboard and recipes, and deletes the weights that are not among the best. Returns the rows."""
        rows, storage = self.rows(), self.folder.storage
        storage.write("leaderboard.json", board.as_json(self.spec, rows))
        storage.write("leaderboard.csv", board.as_csv(self.spec, rows))
        kept = board.winners(rows, self.spec.keep_weights)
        for one in rows:
            if one["state"] == "done" and one["trial"] not in kept[one["backbone"]]:
                self.folder.drop_weights(one["trial"])
        for names in kept.values():
            storage.write(recipe_name(self.trials[names[0]]), self.recipe(names[0]).encode())
        return rows

    def recipe(self, name: str) -> str:
        """A trial's settings as the text of a recipe."""
        trial, end = self.trials[name], self._ends[name]
        config = self.spec.recipe(trial, self._params[name])
        found = score_of(end["result"])
        head = f"# The best settings for {trial.backbone.name} of the sweep {self.spec.name}: trial {name}"
        score = f", {NAMES[self.spec.score_name]} {found:.4f} on validation\n#" if found is not None else "\n#"
        return f"{head}{score}\n#   sports-ray train --recipe {recipe_name(trial)} --data DIR\n\n{to_toml(config)}"


def recipe_name(trial: Trial) -> str:
    return f"best-{trial.backbone.label}.toml"
