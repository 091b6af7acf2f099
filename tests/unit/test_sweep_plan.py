"""What a sweep that goes on writes into its folder before any trial reads it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sports_ray.cli.tune import tune
from sports_ray.data.demo import draw_demo
from sports_ray.data.manifest import Manifest, build_manifest
from sports_ray.errors import RunError
from sports_ray.orchestrate.plan_sweep import Asked, SweepPlan
from sports_ray.orchestrate.trial import plan_trial
from sports_ray.recipe import build_config
from sports_ray.sweep.conduct import Conductor
from sports_ray.sweep.folder import SweepDir
from sports_ray.sweep.resources import Share
from sports_ray.sweep.spec import Backbone, SweepSpec, continued
from tests.support.sweeps import MODELS, leave, line, made_up, sweep_dir


def planned(photos: Path, folder: SweepDir, **settings: Any) -> SweepPlan:
    """The sweep on photographs that lie there, as `plan_sweep` has it; `settings` of its trials or of itself."""
    flags = {"model.weights": "none", "loop.epochs": 9, "data.root": str(photos), "data.image_size": 32}
    flags |= {"loop.precision": "fp32", **{key: settings.pop(key) for key in list(settings) if "." in key}}
    configs = {model: build_config(None, {**flags, "model.name": model}) for model in MODELS}
    manifest = build_manifest(configs[MODELS[0]].data)
    facts = {"fingerprint": manifest.fingerprint(), "root": str(photos), "train": 1, "val": 1, "test": 0}
    backbones = tuple(Backbone(model, model, config, "fp32") for model, config in configs.items())
    spec = made_up(backbones=backbones, data=facts, **settings)
    old = folder.read_spec()
    return SweepPlan(continued(old, spec) if old else spec, folder, manifest, (), 2, "resume" if old else "new")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw_demo(tmp_path / "set", classes=2, per_class=6, size=40)
    return tmp_path / "set"


def started(photos: Path, folder: SweepDir) -> dict[str, bytes]:
    """A sweep with a trial that has ended; what must never change of it."""
    plan = planned(photos, folder)
    plan.write(["sports-ray", "tune", "first"])
    leave(folder, "test_vit-000", [line(9, 0.5)], finished=True)
    Conductor(plan.spec, folder).ended("test_vit-000", "done")
    return kept(plan.spec, folder)


def kept(spec: SweepSpec, folder: SweepDir) -> dict[str, bytes]:
    return {"drawn": json.dumps(spec.drawn()).encode(), "decisions": bytes(folder.storage.read("decisions.jsonl"))}


def task(folder: SweepDir) -> dict[str, Any]:
    fixed = {"params": "{}", "deadline": 0.0, "workers": 1, "bundle": {"CPU": 1.0}}
    return {"sweep": folder.uri, "trial": "test_vit-001", **fixed}


def test_trials_of_a_sweep_that_goes_on_find_photographs_that_have_moved(photos: Path, tmp_path: Path) -> None:
    folder = sweep_dir(tmp_path)
    before = started(photos, folder)
    new = photos.rename(tmp_path / "elsewhere")
    plan = planned(new, folder)
    plan.write(["sports-ray", "tune", "second"])
    trial = plan_trial(task(folder))
    assert (trial.config.data.root, trial.manifest.root) == (str(new), str(new))
    found = folder.read_spec()
    assert found is not None and kept(found, folder) == before


def test_trials_of_a_sweep_that_goes_on_get_the_resources_that_are_asked_for_now(photos: Path, tmp_path: Path) -> None:
    folder = sweep_dir(tmp_path)
    before = started(photos, folder)
    settings = {"cluster.max_failures": 7, "store.keep": 5}
    planned(photos, folder, share=Share(1, 3.0, 0.0), threads=4, **settings).write(["sports-ray"])
    config = plan_trial(task(folder)).config
    assert (config.cluster.cpus_per_worker, config.cluster.max_failures, config.store.keep) == (3.0, 7, 5)
    found = folder.read_spec()
    assert found is not None and kept(found, folder) == before
    assert found.threads == 1, "settled once: another number may change the last bits"


def test_damaged_or_half_written_list_of_photographs_is_mended(photos: Path, tmp_path: Path) -> None:
    folder = sweep_dir(tmp_path)
    started(photos, folder)
    folder.storage.write("manifest.arrow", b"damaged")
    plan = planned(photos, folder)
    plan.write(["sports-ray"])
    assert folder.manifest().fingerprint() == plan.manifest.fingerprint()


def test_sweep_that_goes_on_as_it_was_writes_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweep_dir(tmp_path)
    started(photos, folder)
    monkeypatch.setattr(SweepDir, "create", lambda *_: pytest.fail("written again"))
    planned(photos, folder).write(["sports-ray", "tune", "second"])
    assert b"first" in folder.storage.read("sweep.json")


def test_sweep_that_another_driver_made_meanwhile_is_not_written_over(photos: Path, tmp_path: Path) -> None:
    """Planned before the lease is held."""
    folder = sweep_dir(tmp_path)
    late = dataclasses.replace(planned(photos, folder), spec=planned(photos, folder, samples=2).spec)
    started(photos, folder)
    before = bytes(folder.storage.read("sweep.json"))
    with pytest.raises(RunError, match="samples: 4 -> 2"):
        late.write(["sports-ray"])
    assert bytes(folder.storage.read("sweep.json")) == before


def test_manifest_has_the_same_bytes_each_time_it_is_made(photos: Path) -> None:
    """Or it would be written at each start."""
    config = build_config(None, {"data.root": str(photos)}).data
    first = build_manifest(config)
    assert build_manifest(config).to_bytes() == first.to_bytes() == Manifest.from_bytes(first.to_bytes()).to_bytes()


@pytest.mark.parametrize(
    ("typed", "place"),
    [
        ("photos", "{here}/photos"),
        ("~/photos", "/home/anna/photos"),
        ("s3://bucket/pack?region=eu", "s3://bucket/pack?region=eu"),
    ],
)
def test_photographs_are_looked_for_where_the_trials_find_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/anna")
    asked: list[Asked] = []

    def plan(one: Asked, **rest: Any) -> SweepPlan:
        asked.append(one)
        raise RunError("enough is known")

    monkeypatch.setattr("sports_ray.orchestrate.plan_sweep.plan_sweep", plan)
    with pytest.raises(RunError):
        tune.main(["--models", "test_vit", "--data", typed], standalone_mode=False)
    assert asked[0].flags["data.root"] == place.format(here=tmp_path)
