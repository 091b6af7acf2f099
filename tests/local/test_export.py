"""`sports-ray export`: what other runtimes compute from a file is what the original computes; the file says how to use it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sports_ray.data.demo import draw_demo
from sports_ray.errors import ExportError
from sports_ray.export.formats import FORMATS, Converter
from sports_ray.export.write import export
from sports_ray.predict.member import find_member, load_model
from sports_ray.store.attempt import begin_attempt
from sports_ray.store.commit import write_commit
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage
from tests.support.members import CLASSES, listed, make_member, photographs, tree
from tests.support.runs import small_config, train_in_child
from tests.support.shell import sports_ray

HOME = Path(__file__).parents[2]
DOCS = HOME / "docs" / "export.md"
BLOCKS = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
"""The page's programs by name."""
RUN_FILE = """
import sys, numpy as np
print(json.dumps([[logits(part).tolist() for part in np.load("images.npz").values()], about, list(sys.modules)]))
"""
EXTRAS = {"tflite": ("litert_torch", "ai_edge_litert"), "savedmodel": ("litert_torch", "tensorflow")}
"""Packages of the formats that only an environment of their own has."""


def installed(name: str) -> pytest.MarkDecorator:
    """Skips where a converter's packages are not there."""
    missing = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"the extra [{name}] is not installed: no {', '.join(missing)}")


def formats(*names: str, long: tuple[str, ...] = ()) -> list[Any]:
    return [pytest.param(name, marks=[installed(name), *[pytest.mark.long] * (name in long)]) for name in names]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    photographs(folder / "set", 12, split="val")
    paths = sorted(path.relative_to(folder / "set") for path in (folder / "set").rglob("*.jpg"))
    rows = [(str(path), CLASSES.index(path.parent.name), "val") for path in paths]
    lively(folder / "runs", "a", seed=1, manifest=listed(folder / "set", rows))
    return folder


def lively(store: Path, name: str, **how: Any) -> Path:
    """A member all of whose weights matter.

    timm draws the last normalisation of a residual branch as zero: converters leave such branches out, and files agree
    whatever they hold."""
    folder = make_member(store, name, **how)
    run_dir = RunDir.open(open_storage(str(store)), name)
    tensors, sidecar = run_dir.read_weights("best")
    generator = torch.Generator().manual_seed(5)
    for tensor in tensors.values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.2)
    run_dir.publish_weights("best", tensors, sidecar)
    return folder


def program(folder: Path, text: str, *words: str) -> str:
    """Runs a program that knows nothing of sports-ray, in a new interpreter; what it printed."""
    done = subprocess.run([sys.executable, "-c", text, *words], cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def original(place: Path, images: np.ndarray, run: str = "a") -> np.ndarray:
    model = load_model(find_member(run, str(place / "runs")), torch.device("cpu"))
    with torch.inference_mode():
        return model(torch.from_numpy(images)).numpy()


def agrees_outside(
    place: Path, folder: Path, name: str, sizes: tuple[int, ...], run: str = "a", side: int = 32
) -> dict[str, Any]:
    """Runs the page's program for a format on batches of these sizes, and compares; what the file says of itself."""
    images = np.random.default_rng(7).normal(0, 1, (sum(sizes), 3, side, side)).astype(np.float32)
    np.savez(folder / "images.npz", *np.split(images, np.cumsum(sizes)[:-1]))
    found, about, modules = json.loads(program(folder, BLOCKS[name] + RUN_FILE))
    assert not [module for module in modules if module.startswith("sports_ray")]
    assert_agrees(np.concatenate(found), original(place, images, run))
    return about  # type: ignore[no-any-return]


def assert_agrees(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(expected).max() > 0.1  # else anything would agree
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", formats("onnx", "pt2", "torchscript", "tflite", "savedmodel", long=("pt2",)))
def test_a_program_without_sports_ray_computes_the_same_from_the_file(place: Path, tmp_path: Path, name: str) -> None:
    chosen = FORMATS[name]
    words = ["export", str(place / "runs" / "a"), "--format", name, "--output", f"model{chosen.suffix}", "--json"]
    shown = sports_ray(tmp_path, *words, *["--dynamic-batch"] * chosen.dynamic)
    assert shown.code == 0, shown.err
    events = {event["event"]: event for event in shown.events}
    check = events["check"]
    assert (
        check["images"] == check["same_class"] == 32
        and check["source"] == "12 validation photographs and 20 drawn images"
    )
    assert check["logits"] <= 1e-4 and check["batches"] == ([1, 2, 5, 8] if chosen.dynamic else [1])
    about = agrees_outside(place, tmp_path, name, (1, 3, 1, 27) if chosen.dynamic else (1,) * 32)
    assert about == events["written"]["about"] and about["classes"] == list(CLASSES)
    how = about["preprocessing"]
    spec = find_member("a", str(place / "runs")).spec
    assert (how["size"], how["mean"], how["std"]) == (32, list(spec.mean), list(spec.std))
    assert (how["interpolation"], how["crop_mode"], how["resize"]) == (
        spec.interpolation,
        spec.crop_mode,
        int(32 / spec.crop_pct),
    )
    assert [path.name for path in tmp_path.iterdir() if ".tmp" in path.name] == []


@installed("onnx")
def test_the_page_s_program_finds_the_class_that_predict_finds(place: Path, tmp_path: Path) -> None:
    run = str(place / "runs" / "a")
    assert sports_ray(tmp_path, "export", run, "--format", "onnx", "--output", "model.onnx", "--check", "2").code == 0
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(2):
        soft = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize(
            (90, 70), Image.Resampling.BICUBIC
        )
        soft.save(tmp_path / "in" / f"{number}.png")
    assert sports_ray(tmp_path, "predict", "--images", "in", "--run", run, "--store", "s").code == 0
    rows = dict(line.split(",") for line in (tmp_path / "predictions.csv").read_text().split()[1:])
    for name, found in rows.items():
        assert program(tmp_path, BLOCKS["onnx"] + BLOCKS["photograph"], f"in/{name}").strip() == found


@pytest.fixture(scope="module")
def pt2(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of model.pt2, for one image at a time."""
    folder = tmp_path_factory.mktemp("pt2")
    words = ("export", str(place / "runs" / "a"), "--format", "pt2", "--output", "model.pt2", "--json")
    shown = sports_ray(folder, *words)
    assert shown.code == 0, shown.err
    check = next(event for event in shown.events if event["event"] == "check")
    assert check["images"] == check["same_class"] == 32 and check["batches"] == [1]
    return folder


def test_pt2_read_again_computes_the_same_on_32_images(place: Path, pt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the page's program, here: another interpreter takes seconds to import torch."""
    monkeypatch.chdir(pt2)
    names: dict[str, Any] = {}
    exec(BLOCKS["pt2"], names)
    images = np.random.default_rng(7).normal(0, 1, (32, 3, 32, 32)).astype(np.float32)
    found = np.concatenate([names["logits"](images[n : n + 1]) for n in range(32)])
    assert_agrees(found, original(place, images))


def test_pt2_holds_no_pickle(pt2: Path) -> None:
    archive = zipfile.ZipFile(pt2 / "model.pt2")
    for entry in archive.namelist():
        # How a pickle begins, and an archive that torch writes one into.
        assert not entry.endswith(".pkl") and not archive.read(entry).startswith((b"\x80\x02", b"PK\x03\x04"))


class Tampered:
    """A real converter that is given a model of which one weight was changed, or a description that is not the run's."""

    def __init__(self, converter: Converter, weight: float = 0.0, mean: float = 0.0) -> None:
        self.converter, self.weight, self.mean = converter, weight, mean

    def convert(self, model: nn.Module, size: int, dynamic: bool, about: str, path: Path) -> None:
        with torch.no_grad():
            next(model.parameters()).flatten()[0] += self.weight
        said = json.loads(about)
        said["preprocessing"]["mean"][0] += self.mean
        self.converter.convert(model, size, dynamic, json.dumps(said), path)

    def load(self, path: Path) -> Any:
        return self.converter.load(path)


def test_a_file_that_is_not_the_original_is_not_written(place: Path, tmp_path: Path) -> None:
    member, output = find_member("a", str(place / "runs")), tmp_path / "model.pt"
    output.write_bytes(b"what was there before")
    with pytest.raises(ExportError, match="does not compute what the original does; got logits that differ by"):
        export(member, Tampered(FORMATS["torchscript"].converter(), weight=0.3), output, images=4)
    with pytest.raises(ExportError, match="describes itself wrongly"):
        export(member, Tampered(FORMATS["torchscript"].converter(), mean=0.01), output, images=4)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert output.read_bytes() == b"what was there before"
    export(member, Tampered(FORMATS["torchscript"].converter()), output, images=4)
    assert output.stat().st_size > 1_000_000


@pytest.mark.parametrize(("words", "text"), [
    (("--format", "tflite", "--dynamic-batch"), "--dynamic-batch; got --format tflite; wanted one image at a time"),
    (("--format", "pt2", "--dynamic-batch", "--check", "2"), "--check; got 2; wanted at least 3"),
    (("--format", "pt2", "--output", "gone/a.pt2"), "--output; got gone/a.pt2; wanted a folder that exists; cure: mkdir -p gone"),
    (("--format", "pt2", "--output", "s3://bucket/a.pt2"), "wanted a path on this machine"),
    (("--format", "pt2", "--weights", "ema"), "--weights ema; got a, trained without"),
    (("--format", "gguf"), "'gguf' is not one of 'onnx', 'pt2', 'torchscript', 'savedmodel', 'tflite'"),
])  # fmt: skip
def test_mistakes_end_in_one_line(place: Path, tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    shown = sports_ray(tmp_path, "export", str(place / "runs" / "a"), *words)
    assert shown.code == 2 and shown.err.count("\n") == 1 and text in shown.err, shown.err
    assert not [path for path in tmp_path.iterdir() if path.name not in (".out", ".err", ".imported")]


def lacking(name: str) -> list[str]:
    return [package for package in EXTRAS[name] if importlib.util.find_spec(package) is None]


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.skipif(not lacking(name), reason=f"the extra [{name}] is installed"))
    for name in EXTRAS
])  # fmt: skip
def test_a_format_without_its_extra_is_one_line_that_names_it_and_nothing_is_written(
    place: Path, tmp_path: Path, name: str
) -> None:
    run, there = place / "runs" / "a", tmp_path / "there" / f"model{FORMATS[name].suffix}"
    earlier = there if FORMATS[name].suffix else there / "saved_model.pb"
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"what was there before")
    before = tree(place), tree(tmp_path / "there")
    parts = f"no {', '.join(lacking(name))}", f"the extra [{name}]", f"pip install 'sports-ray[{name}]'"
    words = ("export", str(run), "--format", name)
    for more in ((), ("--output", str(there))):
        shown = sports_ray(tmp_path, *words, *more)
        assert shown.code == 2 and shown.out == "" and shown.err.count("\n") == 1
        assert shown.err.endswith(f"--format {name}; got {parts[0]}; wanted {parts[1]}; cure: {parts[2]}\n")
    shown = sports_ray(tmp_path, *words, "--json")
    assert shown.code == 2 and [(one["got"], one["wanted"], one["cure"]) for one in shown.events] == [parts]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".err", ".imported", ".out", "there"]
    assert (tree(place), tree(tmp_path / "there")) == before


def test_the_readme_says_which_formats_need_an_extra_and_that_there_is_no_tf_js() -> None:
    text = " ".join((HOME / "README.md").read_text(encoding="utf-8").split())
    assert re.search(r"There is no TF\.js: tensorflowjs [^.]+\.", text), "missing, and why"
    sentence = re.search(r"TFLite and SavedModel[^.]+ need the extras[^.]+", text)
    assert sentence and all(f"`{name}`" in sentence[0] for name in EXTRAS)
    assert set(FORMATS) == {"onnx", "pt2", "torchscript", *EXTRAS}, "the README tells of each"


def test_raw_weights_are_those_of_the_published_step(tmp_path: Path) -> None:
    """A run of averaged weights: its checkpoint holds both, and each is exported on request."""
    folder = make_member(tmp_path / "runs", "a", seed=1)
    run_dir = RunDir.open(open_storage(str(tmp_path / "runs")), "a")
    averaged, sidecar = run_dir.read_weights("best")
    scores = {"val_acc1": 0.5, "ema_val_acc1": 0.75}
    run_dir.publish_weights("best", averaged, {**sidecar, "weights": "ema", "scores": scores, "step": 7})
    raw = {name: tensor * 1.5 for name, tensor in averaged.items()}
    token = begin_attempt(run_dir.storage, {}).token
    write_commit(run_dir.storage, 7, token, {"ema": averaged, "model": raw}, {})
    found = {}
    for part in ("raw", "ema"):
        words = ("--format", "torchscript", "--weights", part, "--output", f"{part}.pt", "--check", "1", "--json")
        shown = sports_ray(tmp_path, "export", str(folder), *words)
        assert shown.code == 0, shown.err
        found[part] = torch.jit.load(tmp_path / f"{part}.pt").state_dict()
        about = shown.events[-1]["about"]
        assert about["weights"]["part"] == {"raw": "model", "ema": "ema"}[part] and about["weights"]["step"] == 7
        assert about["scores"] == (scores if part == "ema" else {"val_acc1": 0.5})
    for name, tensor in averaged.items():
        assert torch.equal(found["ema"][f"model.{name}"], tensor), name
        assert torch.equal(found["raw"][f"model.{name}"], raw[name]), name


@pytest.mark.long
@pytest.mark.parametrize("name", formats("onnx", "pt2", "torchscript", "tflite", "savedmodel"))
@pytest.mark.parametrize(("model", "side"), [
    ("test_vit", 160), ("test_convnext", 64), ("test_efficientnet", 64), ("resnet50", 224),
    ("swinv2_cr_tiny_ns_224", 224), ("convnext_atto", 96),
])  # fmt: skip
def test_other_architectures_agree_too(tmp_path: Path, model: str, side: int, name: str) -> None:
    lively(tmp_path / "runs", "a", model=model, size=side, seed=3)
    chosen = FORMATS[name]
    words = ["export", "a", "--format", name, "--output", f"model{chosen.suffix}", "--check", "8"]
    shown = sports_ray(tmp_path, *words, *["--dynamic-batch"] * chosen.dynamic, timeout=200)
    assert shown.code == 0, shown.err
    agrees_outside(tmp_path, tmp_path, name, (1, 2) if chosen.dynamic else (1,), side=side)


@pytest.mark.long
def test_a_trained_run_is_exported_and_checked_on_its_validation_photographs(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=3, per_class=12, size=40)
    config = small_config(tmp_path / "set", tmp_path / "runs")
    assert train_in_child(config) == 0
    for part in ("ema", "raw"):
        words = (
            "--format",
            "pt2",
            "--weights",
            part,
            "--output",
            "model.pt2",
            "--dynamic-batch",
            "--check",
            "4",
            "--json",
        )
        shown = sports_ray(tmp_path, "export", "run", *words)
        assert shown.code == 0, shown.err
        check = next(event for event in shown.events if event["event"] == "check")
        assert check["source"] == "4 validation photographs"
    # moved, they are found where --data says
    (tmp_path / "set").rename(tmp_path / "moved")
    words = ("--format", "pt2", "--check", "4", "--json")
    drawn, found = (
        sports_ray(tmp_path, "export", "run", *words, *more) for more in ((), ("--data", str(tmp_path / "moved")))
    )
    assert [event["source"] for shown in (drawn, found) for event in shown.events if event["event"] == "check"] == [
        "4 drawn images", "4 validation photographs"]  # fmt: skip
