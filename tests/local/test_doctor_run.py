"""The doctor on real runs: a healthy one has no finding, and each fault that is injected is named with its cure."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from torch import Tensor

from sports_ray.data.demo import draw_demo
from sports_ray.data.demo_objects import draw_objects
from sports_ray.doctor.check import Check
from sports_ray.doctor.run import check_run
from sports_ray.orchestrate.local import train_here
from sports_ray.orchestrate.plan import load_run, make_plan
from sports_ray.recipe import config_from_dict, config_to_dict
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.codec import seal, unseal
from sports_ray.store.commit import newest, write_commit
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage
from tests.local.test_out_of_memory import OOM, ROOM, limited_run
from tests.support.runs import exit_code, small_config, train_in_child
from tests.support.shell import sports_ray as shell

PLAIN: dict[str, Any] = {
    "model__drop_path": 0.0,
    "augment__policy": "none",
    "augment__mixup": 0.0,
    "augment__cutmix": 0.0,
    "augment__erasing": 0.0,
    "augment__crop_scale": (0.7, 1.0),
    "loop__epochs": 8,
    "loop__global_batch": 16,
    "loop__micro_batch": 0,
    "loop__eval_batch": 64,
    "store__every_steps": 1000,
}
"""What learns the drawn sports in seconds."""
SHORT = PLAIN | {"loop__epochs": 2}
EMA = PLAIN | {"loop__epochs": 4, "ema__decay": 0.9999, "ema__warmup": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, and a store with the healthy run."""
    folder = tmp_path_factory.mktemp("doctor")
    draw_demo(folder / "set", classes=4, per_class=32, size=48, seed=3)
    assert train_in_child(small_config(folder / "set", folder, "healthy", **PLAIN)) == 0
    return folder


def doctored(store: Path, run: str) -> list[Check]:
    """What the doctor finds in a run, in this process."""
    run_dir = RunDir.open(open_storage(str(store)), run)
    return [check for check in check_run(run_dir, *load_run(run_dir), most_images=256) if check.severity != "ok"]


def named(findings: list[Check], what: str) -> Check:
    """The finding of this name, which has to say what was got, what was wanted, and a cure."""
    (found,) = (check for check in findings if check.what == what)
    assert found.got and found.want and found.cure
    assert str(found) == f"{what}; got {found.got}; wanted {found.want}; cure: {found.cure}"
    return found


def trained(place: Path, store: Path, run: str, **settings: Any) -> list[Check]:
    assert train_in_child(small_config(place / "set", store, run, **settings)) == 0
    return doctored(store, run)


def harmed(place: Path, store: Path, harm: Callable[[dict[str, Tensor]], object]) -> list[Check]:
    """The healthy run, gone on with for one commit whose weights were harmed."""
    shutil.copytree(place / "healthy", store / "harmed")
    storage = open_storage(str(store / "harmed"))
    commit, _ = newest(storage)
    assert commit is not None
    tensors = {name: commit.load(name) for name in ("model", "ema", "optim")}
    harm(tensors["model"])
    attempt = begin_attempt(storage, {"host": "test", "pid": 0})
    write_commit(storage, commit.step, attempt.token, tensors, commit.state)
    return doctored(store, "harmed")


def test_a_healthy_run_has_no_finding(place: Path) -> None:
    assert doctored(place, "healthy") == []


def dead(model: dict[str, Tensor]) -> None:
    """Units of a ReLU that are always off, as a step that was too long leaves them."""
    model["layer2.0.bn1.weight"].zero_()
    model["layer2.0.bn1.bias"].fill_(-1.0)


def explode(model: dict[str, Tensor]) -> None:
    model["fc.weight"].mul_(1e4)


def not_finite(model: dict[str, Tensor]) -> None:
    model["fc.bias"][0] = float("nan")


def test_dead_gradients_are_named_with_the_layers(place: Path, tmp_path: Path) -> None:
    found = named([one for one in harmed(place, tmp_path, dead) if one.severity == "bad"], "dead gradients")
    assert "layer2.0.conv1.weight" in found.got and "lower --set optim.lr" in found.cure


def test_exploding_gradients_are_named_with_their_norm(place: Path, tmp_path: Path) -> None:
    found = named(harmed(place, tmp_path, explode), "exploding gradients")
    assert found.got.startswith("norm ") and "optim.clip leaves 0.0%" in found.got and "optim.lr=" in found.cure


def test_weights_that_are_not_finite_are_named(place: Path, tmp_path: Path) -> None:
    assert "fc.bias at step" in named(harmed(place, tmp_path, not_finite), "exploded weights").got


@pytest.mark.long
def test_a_rate_that_is_too_low_is_named_with_a_better_one(place: Path, tmp_path: Path) -> None:
    found = named(trained(place, tmp_path, "low", **SHORT, optim__lr=1e-7), "learning rate too low")
    assert found.got.startswith("1e-07: ") and 1e-4 <= float(found.cure.partition("optim.lr=")[2].split()[0]) <= 0.1


def test_a_rate_that_is_too_high_is_named_with_a_better_one(place: Path, tmp_path: Path) -> None:
    found = named(trained(place, tmp_path, "high", **SHORT, optim__lr=5.0), "learning rate too high")
    assert found.got.startswith("5: ") and 1e-4 <= float(found.cure.partition("optim.lr=")[2].split()[0]) <= 0.1


def test_an_ema_that_lags_is_named_with_a_decay_that_does_not(place: Path, tmp_path: Path) -> None:
    found = named(trained(place, tmp_path, "ema", **EMA), "EMA lags behind")
    assert "% of it is the start" in found.got and "--set ema.decay=0 (which takes 0.8750 here)" in found.cure


def train_always_in_eval_mode(settings: dict[str, Any]) -> None:
    from sports_ray.engine.learner import Learner

    Learner.train_mode = lambda learner: learner.model.eval()  # type: ignore[method-assign, assignment, return-value]
    train(settings)


def evaluate_in_training_mode(settings: dict[str, Any]) -> None:
    from sports_ray.engine import run as loop

    opened = loop.open_session

    def open_session(*arguments: Any) -> Any:
        session = opened(*arguments)
        session.learner.model.eval = lambda: session.learner.model  # type: ignore[method-assign]
        return session

    loop.open_session = open_session  # type: ignore[assignment]
    train(settings)


def train_on_pixels_as_they_are(settings: dict[str, Any]) -> None:
    from sports_ray.engine.learner import Learner

    Learner.normalise = lambda learner, images: images.float() / 255  # type: ignore[method-assign, assignment]
    train(settings)


def train(settings: dict[str, Any]) -> None:
    train_here(make_plan(config_from_dict(settings)), lambda event: None)


def faulty(place: Path, store: Path, fault: Callable[[dict[str, Any]], None], **settings: Any) -> list[Check]:
    config = small_config(place / "set", store, "faulty", **settings)
    assert exit_code(fault, config_to_dict(config)) == 0
    return doctored(store, "faulty")


def test_a_model_left_in_evaluation_mode_is_named(place: Path, tmp_path: Path) -> None:
    found = named(faulty(place, tmp_path, train_always_in_eval_mode, **SHORT), "model left in evaluation mode")
    assert "have seen no batch in 16 steps" in found.got and "model.train()" in found.cure


@pytest.mark.long
def test_a_model_left_in_training_mode_is_named(place: Path, tmp_path: Path) -> None:
    what = "model left in training mode for evaluation"
    found = named(faulty(place, tmp_path, evaluate_in_training_mode, **SHORT), what)
    assert "recorded at step 16; in training mode it is" in found.got and "model.eval()" in found.cure


@pytest.mark.long
def test_a_run_on_pixels_that_were_not_normalised_is_named(place: Path, tmp_path: Path) -> None:
    found = named(faulty(place, tmp_path, train_on_pixels_as_they_are, **PLAIN), "wrong normalisation")
    assert (
        "with pixels from 0 to 1, not normalised it is" in found.got
        and "mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)" in found.cure
    )


def test_weights_that_are_published_with_another_normalisation_are_named(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "healthy", tmp_path / "run")
    path = tmp_path / "run/weights/best.json"
    sidecar = unseal(path.read_bytes(), "")
    sidecar["preprocessing"] |= {"mean": [0.0, 0.0, 0.0], "std": [1 / 255] * 3}
    path.write_bytes(seal(sidecar))
    found = named(doctored(tmp_path, "run"), "wrong normalisation")
    assert found.got.startswith("weights/best.json says mean (0, 0, 0)") and "sports-ray resume" in found.cure


def relabelled(place: Path, store: Path, change: Callable[[list[str], list[int]], None]) -> list[Check]:
    """The healthy run with another label on some of its photographs."""
    shutil.copytree(place / "healthy", store / "run")
    run_dir = RunDir.open(open_storage(str(store)), "run")
    manifest = load_run(run_dir)[1]
    table, column = manifest.table, manifest.table.column_names.index("label")
    labels = table.column("label").to_pylist()
    change(table.column("path").to_pylist(), labels)
    table = table.set_column(column, "label", pa.array(labels, pa.int32()))
    run_dir.write_manifest(replace(manifest, table=table).to_bytes())
    return doctored(store, "run")


def test_photographs_with_the_wrong_label_are_named(place: Path, tmp_path: Path) -> None:
    wrong: list[str] = []

    def change(paths: list[str], labels: list[int]) -> None:
        for row in random.Random(0).sample([row for row, path in enumerate(paths) if path.startswith("train/")], 12):
            labels[row] = (labels[row] + 1) % 4
            wrong.append(paths[row])

    found = named(relabelled(place, tmp_path, change), "wrong labels")
    right = [item for item in found.items if item.partition(" (looks like")[0] in wrong]
    assert found.severity == "look" and len(right) >= 9 and len(right) >= 0.8 * len(found.items)


def test_classes_that_are_exchanged_in_validation_are_named(place: Path, tmp_path: Path) -> None:
    def change(paths: list[str], labels: list[int]) -> None:
        for row, path in enumerate(paths):
            if path.startswith("val/") and labels[row] < 2:
                labels[row] = 1 - labels[row]

    findings = [one for one in relabelled(place, tmp_path, change) if one.severity == "bad"]
    found = named(findings, "wrong labels")
    assert "basketball of validation is ice hockey of train" in found.got and "rename them" in found.cure
    assert "verify" in named(findings, "validation score not reproduced").cure


@pytest.mark.long
def test_photographs_that_were_trained_in_the_wrong_class_are_named(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "set", tmp_path / "set")
    draw, moved = random.Random(0), []
    files = sorted((tmp_path / "set/train").glob("*/*.jpg"))
    for path in draw.sample(files, 12):
        other = draw.choice([each for each in sorted((tmp_path / "set/train").iterdir()) if each != path.parent])
        moved.append(path.rename(other / f"moved-{path.parent.name}-{path.name}"))
    found = named(trained(tmp_path, tmp_path, "labels", **PLAIN), "wrong labels")
    assert found.severity == "look"
    right = [item for item in found.items if "moved-" in item]
    assert len(right) >= 5 and len(right) >= 0.7 * len(found.items)


@pytest.mark.long
def test_folders_that_are_exchanged_in_validation_are_named(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "set", tmp_path / "set")
    first, second = sorted((tmp_path / "set/val").iterdir())[:2]
    first.rename(tmp_path / "kept"), second.rename(first), (tmp_path / "kept").rename(second)
    found = named([one for one in trained(tmp_path, tmp_path, "run", **PLAIN) if one.severity == "bad"], "wrong labels")
    assert f"{first.name} of validation is {second.name} of train" in found.got


@pytest.mark.long
def test_a_run_whose_steps_explode_is_named_with_its_skipped_steps_and_its_rate(place: Path, tmp_path: Path) -> None:
    settings = SHORT | {"model__name": "test_vit", "data__image_size": 64, "loop__max_nonfinite": 1000}
    sgd = {"optim__name": "sgd", "optim__lr": 50.0, "optim__clip": 0.0}
    findings = trained(place, tmp_path, "run", **settings | sgd)
    assert " of 16 steps were skipped" in named(findings, "loss or gradients not finite").got
    assert "--set optim.lr=5" in named(findings, "exploding gradients").cure
    assert named(findings, "learning rate too high").severity == "bad"


@pytest.mark.long
def test_a_rate_that_is_high_but_learns_deserves_a_look(place: Path, tmp_path: Path) -> None:
    findings = trained(place, tmp_path, "run", **PLAIN, optim__lr=1.0)
    assert named(findings, "learning rate too high").severity == "look"


@pytest.mark.long
def test_labels_drawn_by_lot_are_not_blamed_on_the_rate(place: Path, tmp_path: Path) -> None:
    draw, classes = random.Random(1), sorted(path.name for path in (place / "set/train").iterdir())
    for number, path in enumerate(sorted((place / "set/train").glob("*/*.jpg"))):
        target = tmp_path / "set/train" / draw.choice(classes) / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.copytree(place / "set/val", tmp_path / "set/val")
    (found,) = trained(tmp_path, tmp_path, "run", **PLAIN)
    assert found.what == "does not learn, and no other rate would help" and "look at the labels" in found.cure


def test_a_micro_batch_that_was_halved_is_told(place: Path, tmp_path: Path) -> None:
    """As a run leaves it that ran out of memory; the real thing is in the long form."""
    shutil.copytree(place / "healthy", tmp_path / "run")
    path = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1] / "COMMIT.json"
    record = unseal(path.read_bytes(), "")
    record["state"]["micro_batch"] = 4
    path.write_bytes(seal(record))
    (finding,) = doctored(tmp_path, "run")
    found = named([finding], "out of memory")
    assert found.got == "it ran out: 4 images at once in place of 16" and "--set loop.micro_batch=4" in found.cure


@pytest.mark.long
def test_memory_that_ran_out_is_told_with_a_size_that_fits(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=2, per_class=8, size=40, seed=2)
    config = small_config(tmp_path / "set", tmp_path, "oom", **OOM)
    assert exit_code(limited_run, config_to_dict(config), ROOM, tmp_path / "report") == 0
    found = named(doctored(tmp_path, "oom"), "out of memory")
    assert "images at once in place of 16" in found.got and "--set loop.micro_batch=" in found.cure


def test_the_command_names_the_fault_and_ends_with_3_and_changes_nothing(place: Path, tmp_path: Path) -> None:
    harmed(place, tmp_path, explode)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = shell(tmp_path, "doctor", "--run", "harmed", "--store", str(tmp_path), "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    wrong = [line["what"] for line in lines if line["severity"] == "bad"]
    assert done.code == 3 and wrong == ["validation score not reproduced", "exploding gradients"]
    assert {"environment", "run"} == {line["area"] for line in lines} and "ray" not in done.imported
    now = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert now == {path: content for path, content in before.items() if not path.name.startswith(".")}


@pytest.mark.long
@pytest.mark.parametrize("model", ["test_efficientnet", "test_vit", "test_convnext", "test_vit2"])
def test_healthy_runs_of_other_architectures_have_no_finding(place: Path, tmp_path: Path, model: str) -> None:
    settings = PLAIN | {"model__name": model, "data__image_size": 64, "loop__epochs": 12}
    assert trained(place, tmp_path, "run", **settings) == []


@pytest.mark.long
def test_a_healthy_run_with_all_augmentations_has_no_finding_wherever_it_was_stopped(
    place: Path, tmp_path: Path
) -> None:
    """Of random crops, mixing, erasing, drop path and micro-batches; at stops within and between epochs."""
    config = small_config(place / "set", tmp_path, "run", loop__epochs=12)
    for stop in (30, 60, -1):
        assert train_in_child(config, stop_at=stop) in (0, 75)
        assert doctored(tmp_path, "run") == [], stop


@pytest.mark.long
def test_a_healthy_multilabel_run_has_no_finding(tmp_path: Path) -> None:
    draw_objects(tmp_path / "set", classes=4, per_class=24, size=48, seed=3)
    settings = PLAIN | {"loop__epochs": 10}
    assert train_in_child(small_config(tmp_path / "set/labels.csv", tmp_path, "run", **settings)) == 0
    assert doctored(tmp_path, "run") == []
