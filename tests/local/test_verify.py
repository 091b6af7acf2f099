"""`verify` finds nothing in a sound run, and each thing that is damaged, missing, out of order or consumed twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sports_ray.data.demo import draw_demo
from sports_ray.store.codec import seal, unseal
from tests.support.runs import small_config, train_in_child
from tests.support.shell import sports_ray as shell


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a run that is done and one that was killed in the middle of its second epoch."""
    store = tmp_path_factory.mktemp("store")
    draw_demo(store / "photos", classes=4, per_class=12, size=40, seed=1)
    assert train_in_child(small_config(store / "photos", store, "done", store__every_steps=3)) == 0
    assert train_in_child(small_config(store / "photos", store, "killed"), kill_at=10) == -9
    return store


def verify(folder: Path, run: str, *more: str) -> tuple[int, list[dict[str, Any]]]:
    done = shell(folder, "verify", str(folder / run), "--json", *more)
    return done.code, done.events if done.code != 2 else []


def test_sound_runs_are_sound(runs: Path) -> None:
    for run in ("done", "killed"):
        code, findings = verify(runs, run, "--photos")
        assert code == 0 and all(finding["ok"] for finding in findings)
        what = {finding["what"] for finding in findings}
        assert {"run.json", "settled.copy.json", "manifest", "resumable", "metrics.jsonl", "photographs"} <= what
    text = shell(runs, "verify", "done", "--store", str(runs)).out
    assert "every image once an epoch for 2 epochs" in text and text.endswith("training can go on\n")


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def consume_again(run: Path) -> None:
    """A record that is whole, of a run that consumed something else."""
    path = newest(run) / "COMMIT.json"
    record = unseal(path.read_bytes(), "")
    record["state"]["consumed"] = "00" * 32
    path.write_bytes(seal(record))


def forget_an_evaluation(run: Path) -> None:
    path = newest(run) / "COMMIT.json"
    record = unseal(path.read_bytes(), "")
    del record["state"]["history"][0]
    path.write_bytes(seal(record))


def change_metrics(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace('"epoch":1', '"epoch":7'))


def name_another_step(run: Path) -> None:
    path = run / "weights/last.json"
    path.write_bytes(seal({**unseal(path.read_bytes(), ""), "step": 6}))


DEFECTS: list[tuple[str, Callable[[Path], object]]] = [
    ("run.copy.json", lambda run: flip(run / "run.copy.json")),
    ("settled.json", lambda run: (run / "settled.json").unlink()),
    ("step-00000008", lambda run: flip(newest(run) / "optim.safetensors")),
    ("step-00000008", lambda run: (newest(run) / "ema.safetensors").unlink()),
    ("consumed to step 8", consume_again),
    ("history at step 8", forget_an_evaluation),
    ("metrics.jsonl", change_metrics),
    ("weights/last.safetensors", lambda run: flip(run / "weights/last.safetensors")),
    ("weights/last.safetensors", name_another_step),
    ("resumable", lambda run: shutil.rmtree(run / "checkpoints")),
]


@pytest.mark.parametrize("what,harm", DEFECTS, ids=[f"{index}-{what}" for index, (what, _) in enumerate(DEFECTS)])
def test_each_defect_is_named(runs: Path, tmp_path: Path, what: str, harm: Callable[[Path], object]) -> None:
    shutil.copytree(runs / "done", tmp_path / "done")
    harm(tmp_path / "done")
    code, findings = verify(tmp_path, "done")
    assert code == 3
    assert any(what in finding["what"] for finding in findings if not finding["ok"])


def test_a_changed_photograph_and_an_unknown_run_are_named(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "photos", tmp_path / "photos")
    victim = next((tmp_path / "photos/train").glob("*/*"))
    flip(victim)
    code, findings = verify(runs, "done", "--photos", "--data", str(tmp_path / "photos"))
    wrong = [finding for finding in findings if not finding["ok"]]
    assert code == 3 and victim.name in wrong[0]["text"] and len(wrong) == 2
    assert verify(runs, "nothing")[0] == 2
