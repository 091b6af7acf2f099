"""What comes next in a sweep: whatever dies when, no trial is lost or doubled, and the leaderboard has the same bytes."""

from __future__ import annotations

import json
import random
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sports_ray.errors import RunError
from sports_ray.recipe import config_from_dict, config_to_dict, identity
from sports_ray.sweep.board import result
from sports_ray.sweep.conduct import HALVED as HALVED_REASON
from sports_ray.sweep.conduct import Conductor
from sports_ray.sweep.folder import SweepDir
from sports_ray.sweep.halving import goes_on
from sports_ray.sweep.space import share
from sports_ray.sweep.spec import SweepSpec, continued
from tests.support.killed import in_memory
from tests.support.sweeps import HALVED, MODELS, leave, line, made_up, sweep_dir


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as folder:
        yield folder


class Dead(Exception):
    """The driver is killed."""


class World:
    """Plays trials epoch by epoch, two at once, as Ray Tune would; drivers die at random."""

    def __init__(self, spec: SweepSpec, folder: SweepDir, deaths: random.Random | None = None) -> None:
        self.spec, self.folder, self.deaths = spec, folder, deaths
        self.epochs_trained: Counter[str] = Counter()
        self.started: list[str] = []

    def maybe_die(self) -> None:
        if self.deaths is not None and self.deaths.random() < 0.08:
            raise Dead

    def play(self) -> Conductor:
        while True:
            try:
                return self._drive()
            except Dead:
                continue

    def _drive(self) -> Conductor:
        conductor = Conductor(self.spec, self.folder)
        conductor.catch_up()
        under_way: list[str] = []
        while not conductor.finished:
            while len(under_way) < 2 and (name := conductor.next()):
                self.started.append(name)
                under_way.append(name)
                self.maybe_die()
            backbones = {name.rpartition("-")[0] for name in under_way}
            assert backbones == {name for name, left in conductor.left().items() if left}, "a backbone stands still"
            name = under_way.pop(0)
            if not self._epoch(conductor, name):
                under_way.append(name)
        return conductor

    def _epoch(self, conductor: Conductor, name: str) -> bool:
        """Trains an epoch; whether the trial is over."""
        history = self.folder.history(name)
        epoch = len(history) + 1
        new = line(epoch, share(0, name, epoch))
        self.epochs_trained[name] += 1
        self.maybe_die()
        if reason := conductor.evaluated(name, new):
            self.maybe_die()
            leave(self.folder, name, [*history, new])
            self.maybe_die()
            conductor.ended(name, "stopped", reason)
            return True
        self.maybe_die()
        leave(self.folder, name, [*history, new], finished=epoch == 9)
        self.maybe_die()
        if epoch == 9:
            conductor.ended(name, "done")
            self.maybe_die()
        return epoch == 9


def boards(folder: SweepDir) -> dict[str, bytes]:
    names = ("leaderboard.json", "leaderboard.csv", *(f"best-{model}.toml" for model in MODELS))
    return {name: bytes(folder.storage.read(name)) for name in names}


@pytest.mark.parametrize("search", ["random", "grid"])
def test_sweep_killed_again_and_again_equals_the_unbroken_one(place: Path, search: str) -> None:
    space = ("optim.lr=1e-3,2e-3", "augment.mixup=0,0.2") if search == "grid" else ("optim.lr=log:1e-4..1e-2",)
    spec = made_up(space=space, search=search)
    whole = World(spec, sweep_dir(place / "whole"))
    whole.play()
    assert whole.epochs_trained == {trial.name: 9 for trial in spec.trials()}
    for seed in range(3):
        broken = World(spec, sweep_dir(place / str(seed)), random.Random(seed))
        broken.play()
        assert len(broken.started) > 8, "nobody died"
        assert boards(broken.folder) == boards(whole.folder)
        # An epoch is trained again only where a death came before its commit: nothing that has ended runs again.
        assert max(broken.epochs_trained.values()) < 9 + 8


def test_halved_sweep_killed_again_and_again_loses_no_trial_and_its_decisions_replay(place: Path) -> None:
    spec = made_up(halving=HALVED, samples=6)
    for seed in range(3):
        world = World(spec, sweep_dir(place / str(seed)), random.Random(seed))
        rows = world.play().rows()
        assert {row["state"] for row in rows} == {"done", "stopped"} and len(rows) == 12
        seen: dict[tuple[str, int], list[float]] = {}
        ends = Counter()
        for decision in world.folder.decisions():
            name = decision["trial"]
            if decision["kind"] == "end":
                ends[name] += 1
                continue
            rung = seen.setdefault((name.rpartition("-")[0], decision["epoch"]), [])
            assert decision["score"] == share(0, name, decision["epoch"]), "of this trial, at this epoch"
            assert decision["goes_on"] == goes_on(rung, decision["score"], 3), "replayed from the same backbone's alone"
            rung.append(decision["score"])
        assert ends == {trial.name: 1 for trial in spec.trials()}
        for row in rows:
            assert row["epochs"] == (9 if row["state"] == "done" else 1 if row["reason"] and row["epochs"] == 1 else 3)


def test_question_asked_twice_gets_the_recorded_answer(place: Path) -> None:
    spec, folder = made_up(halving=HALVED), sweep_dir(place)
    conductor = Conductor(spec, folder)
    assert conductor.evaluated("test_vit-000", line(1, 0.5)) == ""
    assert conductor.evaluated("test_vit-001", line(1, 0.4)) == HALVED_REASON
    assert conductor.evaluated("test_resnet-000", line(1, 0.1)) == "", "another backbone's scores do not count"
    again = Conductor(spec, folder)
    assert again.evaluated("test_vit-001", line(1, 0.4)) == HALVED_REASON
    assert len(folder.decisions()) == 3


def test_damaged_decision_is_found_again_in_the_runs(place: Path) -> None:
    spec = made_up()
    world = World(spec, sweep_dir(place))
    world.play()
    before = boards(world.folder)
    lines = bytes(world.folder.storage.read("decisions.jsonl")).splitlines(keepends=True)
    for damaged in (lines[3].replace(b"done", b"dead"), lines[3][:40] + b"\n", b"\xff\xfe\n", b""):
        world.folder.storage.write("decisions.jsonl", b"".join([*lines[:3], damaged, *lines[4:]]))
        conductor = Conductor(spec, world.folder)
        assert not conductor.finished
        world.epochs_trained.clear()
        kept = json.loads(lines[3])["trial"]
        leave(world.folder, kept, world.folder.history(kept), finished=True)  # as `resume` brings its weights back
        World(spec, world.folder).play()
        assert boards(world.folder) == before


def test_failed_trial_is_a_row_with_its_reason_and_can_be_tried_again(place: Path) -> None:
    spec, folder = made_up(space=("loop.lanes=4,64", "optim.lr=1e-3,1e-2"), search="grid"), sweep_dir(place)
    conductor = Conductor(spec, folder)
    names = []
    while name := conductor.next():
        names.append(name)
    assert len(names) == 4, "the others have more lanes than samples in a batch, which no config takes"
    rows = {row["trial"]: row for row in conductor.rows()}
    bad = [row for row in rows.values() if row["state"] == "failed"]
    assert len(bad) == 4 and all("loop.lanes; got 64" in row["reason"] for row in bad)
    leave(folder, names[0], [line(1, 0.3)])
    conductor.ended(names[0], "failed", "loss not finite")
    (row,) = [row for row in conductor.rows() if row["trial"] == names[0]]
    assert (row["reason"], row["val_acc1"], row["epochs"]) == ("loss not finite", 0.3, 1)
    assert row["rank"] > 3, "those with work left stand before it"
    again = Conductor(spec, folder)
    again.catch_up(retry_failed=True)
    assert again.left() == {"test_resnet": 4, "test_vit": 4} and again.next() == "test_resnet-000"


def test_weights_of_the_best_of_each_backbone_stay(place: Path) -> None:
    spec = made_up(samples=5, keep_weights=2)
    world = World(spec, sweep_dir(place))
    rows = world.play().rows()
    for model in MODELS:
        mine = [row["trial"] for row in rows if row["backbone"] == model]
        kept = [name for name in mine if (world.folder.run_dir(name).describe_weights("best"))]
        assert kept == mine[:2]
    ranks = {row["trial"]: row["backbone_rank"] for row in rows}
    assert sorted(ranks.values()) == sorted([1, 2, 3, 4, 5] * 2)


def test_recipe_of_the_best_gives_the_very_run(place: Path) -> None:
    spec = made_up()
    world = World(spec, sweep_dir(place))
    best = next(row for row in world.play().rows() if row["backbone"] == "test_vit")
    text = bytes(world.folder.storage.read("best-test_vit.toml")).decode()
    config = config_from_dict(tomllib.loads(text))
    trial = next(one for one in spec.trials() if one.name == best["trial"])
    run = spec.config(trial, best["params"], "anywhere")
    assert identity(config) == identity(run) and config.loop.epochs == run.loop.epochs
    assert (config.cluster.workers, config.cluster.threads) == ("0", 1) and not config.data.root
    assert text.startswith("# The best settings for test_vit of the sweep sweep: trial ")


def test_trials_on_several_labels_are_ranked_by_average_precision(place: Path) -> None:
    spec = made_up(data={**made_up().data, "multilabel": True})
    conductor = Conductor(spec, folder := sweep_dir(place))
    for number, trial in enumerate(spec.trials()):
        score = {"val_map": 0.1 * (number % 5), "ema_val_map": 0.2 + 0.05 * (number % 5), "val_loss": 1.0}
        leave(folder, trial.name, [{"epoch": 9, "step": 18, **score}], finished=True)
        conductor.ended(trial.name, "done")
    found = [row["val_map"] for row in conductor.rows()]
    assert found == sorted(found, reverse=True) and found[0] == pytest.approx(0.4) and len(set(found)) == 5
    head = bytes(folder.storage.read("leaderboard.csv")).decode().splitlines()[0].split(",")
    assert "val_map" in head and "val_acc1" not in head
    (winner,) = [row["trial"] for row in conductor.rows() if row["rank"] == 1]
    assert ", mAP 0.4000 on validation" in conductor.recipe(winner)


def test_spec_survives_its_record_and_names_what_differs(place: Path) -> None:
    spec = made_up(halving=HALVED, space=("optim.lr=log:1e-4..1e-2", "test_vit:augment.crop_scale=0.2,1;0.5,1"))
    assert SweepSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    more = made_up(halving=HALVED, space=spec.to_json()["space"], samples=9, threads=4)
    grown = continued(spec, more)
    assert (grown.samples, grown.threads) == (9, 1), "what was settled stays"
    assert [one.name for one in grown.trials()][:4] == [one.name for one in spec.trials()][:4]
    for other, words in [
        (made_up(halving=HALVED, space=spec.to_json()["space"], seed=1), "seed: 0 -> 1"),
        (made_up(halving=HALVED, space=spec.to_json()["space"], samples=3), "samples: 4 -> 3"),
        (made_up(space=spec.to_json()["space"]), "halving:"),
        (made_up(halving=HALVED), "space:"),
    ]:
        with pytest.raises(RunError, match="exists with other settings") as caught:
            continued(spec, other)
        assert words in str(caught.value)


def test_result_is_the_engines_best_epoch(place: Path) -> None:
    history: list[dict[str, Any]] = [line(1, 0.4), line(2, 0.7), line(3, 0.7), line(4, 0.6)]
    assert result(history, "acc1") == {"epochs": 4, "best_epoch": 2, "best_step": 4, "val_acc1": 0.7, "val_loss": 1.0}
    history[2]["ema_val_loss"] = 0.5
    assert result(history, "loss")["best_epoch"] == 3
    assert result([], "acc1") == {
        "epochs": 0,
        "best_epoch": None,
        "best_step": None,
        "val_acc1": None,
        "val_loss": None,
    }
    assert config_to_dict(made_up().backbones[0].config)["loop"]["epochs"] == 9
