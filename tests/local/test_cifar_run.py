"""CIFAR-10's own files from the command line: trained on, verified and scored like a folder."""

from __future__ import annotations

from pathlib import Path

from tests.support.cifar import drawn, write_python
from tests.support.shell import sports_ray

TRAIN = (
    "--model",
    "test_resnet",
    "--weights",
    "none",
    "--workers",
    "0",
    "--precision",
    "fp32",
    "--epochs",
    "1",
    "--run",
    "c",
)
SET = ("data.image_size=32", "data.loader_processes=0", "cluster.threads=1")


def test_cifar_is_trained_on_verified_and_scored_like_a_folder(tmp_path: Path) -> None:
    write_python(tmp_path / "cifar-10-batches-py", drawn())
    words = [*TRAIN, *(word for one in SET for word in ("--set", one)), "--json"]
    done = sports_ray(tmp_path, "train", "--data", "cifar-10-batches-py", *words)
    assert done.code == 0, done.err
    photos = next(one for one in done.events if one["event"] == "photos")
    assert (photos["train"] + photos["val"], photos["test"], photos["classes"]) == (100, 20, 10)
    verified = sports_ray(tmp_path, "verify", "c", "--photos", "--json")
    assert verified.code == 0 and all(one.get("ok", True) for one in verified.events)
    scored = sports_ray(tmp_path, "eval-ensemble", "--run", "c", "--workers", "0", "--json")
    assert scored.code == 0, scored.err
    result = next(one for one in scored.events if one["event"] == "result")
    assert result["candidates"][0]["images"] == 20
    named = sports_ray(tmp_path, "predict", "--images", "cifar-10-batches-py", "--run", "c", "--workers", "0")
    assert named.code == 0, named.err
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + 120


def test_a_pickle_that_wants_code_to_be_run_ends_in_one_line(tmp_path: Path) -> None:
    root = write_python(tmp_path / "cifar", drawn())
    (root / "data_batch_2").write_bytes(b"\x80\x02cos\nsystem\nU\rtouch touched\x85R.")
    done = sports_ray(tmp_path, "train", "--data", "cifar", *TRAIN)
    assert done.code == 2 and done.err.count("\n") == 1
    assert "data_batch_2: refused, nothing of it was run; got the name os.system" in done.err
    assert not (tmp_path / "touched").exists() and not (tmp_path / "runs").exists()
