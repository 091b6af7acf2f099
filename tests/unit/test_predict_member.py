"""Members are found wherever their folder lies, proven whole, and refused where their classes differ."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from sports_ray.errors import ConfigError, RunError, WeightsError
from sports_ray.predict.member import find_member, find_members, load_model
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage
from tests.support.members import CLASSES, make_member

CPU = torch.device("cpu")


def test_a_moved_run_gives_the_same_logits_under_its_new_path(tmp_path: Path) -> None:
    made = make_member(tmp_path / "runs", "one", seed=3)
    here = find_member("one", str(tmp_path / "runs"))
    images = torch.rand(2, 3, 32, 32)
    expected = load_model(here, CPU)(images)
    moved = tmp_path / "elsewhere" / "two"
    shutil.move(made, moved)
    there = find_member(str(moved), "nowhere")
    assert (there.name, there.sha256, there.kind) == ("two", here.sha256, "best")
    model = load_model(there, CPU)
    assert torch.equal(model(images), expected)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    # Downloaded without anything but the weights: the sidecar is enough.
    assert sorted(path.name for path in moved.rglob("*") if path.is_file()) == ["best.json", "best.safetensors"]


def test_relative_paths_names_and_last_weights_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_member(tmp_path / "runs", "a", seed=1)
    make_member(tmp_path / "runs", "a", seed=2, kind="last")
    monkeypatch.chdir(tmp_path)
    best, path, last = find_members(["a"], "runs")[0], find_member("runs/a", ""), find_member("a@last", "runs")
    assert (best.sha256, best.kind, best.name) == (path.sha256, "best", "a")
    assert (last.kind, last.name) == ("last", "a@last") and last.sha256 != best.sha256
    assert [member.name for member in find_members(["a", "a@last"], "runs")] == ["a", "a@last"]
    with pytest.raises(ConfigError, match="two members of the same name; got a; wanted each run once"):
        find_members(["a", "runs/a"], "runs")


@pytest.mark.parametrize("name", ["ensemble", "id", "path", "label", "labels", "error"])
def test_a_run_called_as_another_column_of_the_predictions_is_refused(tmp_path: Path, name: str) -> None:
    make_member(tmp_path, "one")
    made = make_member(tmp_path, name)
    for runs in ([name], ["one", name], [str(made)]):
        with pytest.raises(ConfigError) as error:
            find_members(runs, str(tmp_path))
        assert str(error.value) == (
            f"name of a run; got {name}; wanted another name than ensemble, id, path, label, labels or error, "
            f"which predictions use themselves; cure: --run {name}@best, or give its folder another name"
        )
    assert find_members([f"{name}@best"], str(tmp_path))[0].name == f"{name}@best"
    shutil.move(made, tmp_path / "two")
    assert [member.name for member in find_members(["one", str(tmp_path / "two")], str(tmp_path))] == ["one", "two"]


def test_what_is_no_finished_run_is_refused_with_a_cure(tmp_path: Path) -> None:
    store = str(tmp_path)
    with pytest.raises(RunError, match=r"run; got nothing; wanted a run in .*; cure: see `sports-ray status`"):
        find_member("nothing", store)
    RunDir.open(open_storage(store), "begun").create({"format": 1})
    with pytest.raises(WeightsError, match=r"no whole weights to predict with; .*sports-ray resume .*/begun"):
        find_member("begun", store)
    make_member(tmp_path, "one")
    with pytest.raises(WeightsError, match="weights/last.safetensors"):
        RunDir.open(open_storage(store), "one").create({"format": 1})
        find_member("one@last", store)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("archery", "bowling", "golf", "tennis"), "only in a: water polo; only in b: tennis"),
        (("archery", "bowling", "water polo", "golf"), "class 2 is 'golf' in a, 'water polo' in b"),
        (CLASSES[:3], "only in a: water polo"),
        (
            (*CLASSES, *(f"sport {n}" for n in range(7))),
            "only in b: sport 0, sport 1, sport 2, sport 3, sport 4 and 2 more",
        ),
    ],
)
def test_members_of_other_classes_are_refused_and_the_difference_is_named(
    tmp_path: Path, classes: tuple[str, ...], words: str
) -> None:
    make_member(tmp_path, "a")
    make_member(tmp_path, "b", classes=classes)
    with pytest.raises(
        ConfigError, match="members have different classes; got .*wanted the same classes in the same order"
    ) as error:
        find_members(["a", "b"], str(tmp_path))
    assert words in str(error.value)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = make_member(tmp_path, "a")
    member = find_member("a", str(tmp_path))
    file = folder / "weights" / "best.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="other bytes than its .json describes"):
        load_model(member, CPU)
    make_member(tmp_path, "a", seed=9)
    with pytest.raises(WeightsError, match="others than a moment ago"):
        load_model(member, CPU)


def test_a_member_of_a_fixed_size_is_built_for_the_size_it_was_trained_at(tmp_path: Path) -> None:
    make_member(tmp_path, "vit", model="test_vit", size=96)
    member = find_member("vit", str(tmp_path))
    assert member.spec.eval_size == 96
    assert load_model(member, CPU)(torch.rand(1, 3, 96, 96)).shape == (1, len(CLASSES))
