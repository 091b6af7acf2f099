"""Weights from timm's hub and from files: what is loaded, what is refused, and that nothing in a file runs."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sports_ray.config import ModelConfig
from sports_ray.errors import WeightsError
from sports_ray.model import source
from sports_ray.model.build import create, head_parameters
from sports_ray.model.eager_timm import timm
from sports_ray.model.shapes import shapes_only
from sports_ray.model.weights import checkpoint_filter, load_weights


def _model(name: str = "test_resnet", classes: int = 5, size: int = 0, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create(ModelConfig(name=name), classes, size)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A test_resnet with five classes, as a run leaves it, with batch-norm statistics that are not the initial ones."""
    model = _model()
    model(torch.randn(4, 3, 64, 64))
    save_file(model.state_dict(), tmp_path / "best.safetensors")
    return tmp_path / "best.safetensors"


def _differing(a: nn.Module, b: nn.Module) -> set[str]:
    other = b.state_dict()
    return {name for name, tensor in a.state_dict().items() if not torch.equal(tensor, other[name])}


def _trained() -> nn.Module:
    model = _model()
    model(torch.randn(4, 3, 64, 64))
    return model


def test_from_scratch_leaves_the_model_alone() -> None:
    model = _model()
    report = load_weights(model, "none", "test_resnet")
    assert (report.source, report.coverage, report.head) == ("none", 0.0, "new: from scratch")
    assert not _differing(model, _model())


def test_file_is_loaded_bit_for_bit_and_reported(saved: Path) -> None:
    model = _model(seed=1)
    report = load_weights(model, str(saved), "test_resnet")
    assert (report.coverage, report.missing, report.unexpected, report.head_kept) == (1.0, (), (), True)
    assert report.sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    other = timm.create_model("test_resnet", num_classes=5, checkpoint_path=str(saved))
    assert not _differing(model, other)


@pytest.mark.filterwarnings("error")
def test_model_without_data_can_be_asked_what_would_be_loaded(saved: Path) -> None:
    with shapes_only():
        empty = _model()
    assert load_weights(empty, str(saved), "test_resnet") == load_weights(_model(), str(saved), "test_resnet")


def test_head_is_new_when_the_number_of_classes_differs(saved: Path) -> None:
    model, start, whole = _model(classes=7, seed=1), _model(classes=7, seed=1), _model(seed=1)
    report = load_weights(model, str(saved), "test_resnet")
    load_weights(whole, str(saved), "test_resnet")
    assert (report.head_kept, report.head) == (False, "new: the file's has 5 classes, the model's 7")
    assert not _differing(start, model) & {"fc.weight", "fc.bias"}
    backbone = whole.state_dict()
    assert all(torch.equal(t, backbone[name]) for name, t in model.state_dict().items() if not name.startswith("fc."))


@pytest.mark.parametrize(
    ("classes", "kept"),
    [(["a", "b", "c", "d", "e"], True), (["b", "a", "c", "d", "e"], False), (["a", "b", "c", "d", "x"], False)],
)
def test_head_is_kept_only_for_the_sidecars_classes_in_their_order(saved: Path, classes: list[str], kept: bool) -> None:
    saved.with_suffix(".json").write_text(json.dumps({"classes": list("abcde")}))
    model, start = _model(seed=1), _model(seed=1)
    report = load_weights(model, str(saved), "test_resnet", classes)
    assert report.head_kept is kept
    assert ("fc.weight" in _differing(start, model)) is kept


def test_file_that_differs_from_its_sidecar_is_refused(saved: Path) -> None:
    saved.with_suffix(".json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="differ from their sidecar.*wanted 0000"):
        load_weights(_model(), str(saved), "test_resnet")


def test_damaged_sidecar_is_refused(saved: Path) -> None:
    saved.with_suffix(".json").write_text("{")
    with pytest.raises(WeightsError, match="best.json.*wanted JSON"):
        load_weights(_model(), str(saved), "test_resnet")


@pytest.mark.parametrize("shape", ["plain", "state_dict", "model", "ema", "ddp", "lightning", "legacy"])
def test_pytorch_files_are_unwrapped(shape: str, tmp_path: Path) -> None:
    trained, start = _trained(), _model(seed=2)
    state = trained.state_dict()
    content: dict[str, Any] = {
        "plain": state,
        "legacy": state,
        "state_dict": {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        "model": {"model": state, "optimizer": {"state": {}}},
        "ema": {"state_dict": _model(seed=9).state_dict(), "state_dict_ema": state},
        "ddp": {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        "lightning": {"state_dict": {f"model.{key}": value for key, value in state.items()}},
    }[shape]
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=shape != "legacy")
    report = load_weights(start, str(tmp_path / "weights.pth"), "test_resnet")
    assert report.coverage == 1.0
    assert not _differing(start, trained)


class _Malicious:
    """Pickles as a call that makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zip", "legacy", "raw"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_code_in_a_pickle_does_not_run(kind: str, suffix: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / f"evil{suffix}"
    content = {"state_dict": _model().state_dict(), "payload": _Malicious(marker)}
    if kind == "raw":
        path.write_bytes(pickle.dumps(content["payload"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(WeightsError, match="cannot be read safely"):
        load_weights(_model(), str(path), "test_resnet")
    assert not marker.exists()
    if kind == "raw":
        pickle.loads(path.read_bytes())
        assert marker.exists(), "the pickle is harmless, so the test shows nothing"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.pth", None, "wanted an existing"),
        ("notes.txt", b"x", "wanted .safetensors or one of"),
        ("empty.pth", b"", "cannot be read safely"),
        ("cut.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "cannot be read safely"),
    ],
)
def test_file_that_is_no_weights_file_is_refused(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_weights(_model(), str(tmp_path / name), "test_resnet")


def test_weights_of_another_model_are_refused_naming_coverage_keys_and_the_right_model(saved: Path) -> None:
    model, start = _model("test_vit", seed=1), _model("test_vit", seed=1)
    with pytest.raises(
        WeightsError, match=r"do not fit test_vit.*0\.0%.*cls_token \(absent\).*99%.*--model test_resnet$"
    ):
        load_weights(model, str(saved), "test_vit")
    assert not _differing(model, start)


def test_sidecar_names_the_right_model(saved: Path) -> None:
    saved.with_suffix(".json").write_text(json.dumps({"model": "test_resnet.r160_in1k"}))
    with pytest.raises(WeightsError, match=r"--model test_resnet.r160_in1k$"):
        load_weights(_model("resnet18"), str(saved), "resnet18")


def test_mismatching_shapes_are_shown(saved: Path) -> None:
    saved.with_suffix(".json").write_text(json.dumps({"model": "test_resnet"}))  # else the model is looked for
    with pytest.raises(WeightsError, match=r"bn1\.weight \(\(32,\) for \(64,\)\)"):
        load_weights(_model("resnet18"), str(saved), "resnet18")


@pytest.mark.parametrize("lost", ["layer4.0.conv2.weight", "running_var"])
def test_incomplete_file_is_refused_as_such(lost: str, tmp_path: Path) -> None:
    """Without batch norm's statistics a model is useless, although they are far below 1 % of its size."""
    state = {key: value for key, value in _model().state_dict().items() if not key.endswith(lost)}
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match=f"{lost}.*cure: a complete file"):
        load_weights(_model(), str(tmp_path / "part.safetensors"), "test_resnet")


def test_small_gaps_are_loaded_and_named(saved: Path, tmp_path: Path) -> None:
    state = {key: value for key, value in _model().state_dict().items() if key != "bn1.bias"}
    save_file({**state, "extra": torch.zeros(2)}, tmp_path / "part.safetensors")
    report = load_weights(_model(), str(tmp_path / "part.safetensors"), "test_resnet")
    assert 0.99 < report.coverage < 1.0
    assert (report.missing, report.unexpected) == (("bn1.bias",), ("extra",))


@pytest.mark.parametrize(("name", "resized"), [("test_vit", "pos_embed"), ("test_vit_relpos", "")])
def test_weights_of_another_image_size_are_resized_as_timm_does(name: str, resized: str, tmp_path: Path) -> None:
    save_file(_model(name, 1000, seed=3).state_dict(), tmp_path / "w.safetensors")
    model = _model(name, 7, 96)
    report = load_weights(model, str(tmp_path / "w.safetensors"), name)
    file = {"file": str(tmp_path / "w.safetensors")}
    wanted = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=file, num_classes=7, img_size=96)
    assert report.coverage == 1.0
    assert _differing(model, wanted) <= head_parameters(model)
    if resized:
        assert model.state_dict()[resized].shape != _model(name).state_dict()[resized].shape


def test_timms_filter_is_found_without_loading_anything() -> None:
    assert checkpoint_filter("test_resnet") is None
    found = checkpoint_filter("swinv2_large_window12to24_192to384.ms_in22k_ft_in1k")
    assert found is not None
    assert found.__module__ == "timm.models.swin_transformer_v2"
    assert timm.models._builder.load_pretrained is timm.models.load_pretrained  # put back


PATIENCE = 20.0
"""Seconds: far below the minutes of retries that the hub's own client takes, far above what a busy machine needs."""
OLD = "flexivit_small.300ep_in1k"
"""A model whose first address was an .npz file; the hub has it as safetensors."""


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: one file, its etag and its commit."""

    content = b""

    def do_HEAD(self) -> None:
        repo, _, file = self.path.removeprefix("/timm/").partition("/resolve/main/")
        found = repo in ("test_resnet.r160_in1k", OLD) and file == "model.safetensors"
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("Content-Length", str(len(self.content)))
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *_: Any) -> None:
        pass


def _point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes another server the hub, as HF_ENDPOINT does at import."""
    monkeypatch.setattr(hub_constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, so that nothing fetched earlier answers for the hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(hub_constants, name, str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "hub"


@pytest.fixture
def hub(cache: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    handler = type("Hub", (_Hub,), {"content": saved.read_bytes()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    _point_at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_auto_takes_the_hubs_weights_with_a_new_head_and_the_cache_serves_them_offline(
    hub: ThreadingHTTPServer, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, start = _model(seed=1), _model(seed=1)
    report = load_weights(model, "auto", "test_resnet")
    assert (report.source, report.coverage) == ("timm/test_resnet.r160_in1k", 1.0)
    assert report.sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert not report.head_kept
    assert not _differing(model, start) & {"fc.weight", "fc.bias"}
    assert "conv1.0.weight" in _differing(model, start)
    _point_at("http://127.0.0.1:9", monkeypatch)
    assert load_weights(_model(), "auto", "test_resnet") == report


def test_model_with_an_old_address_is_taken_from_the_hub(hub: ThreadingHTTPServer, saved: Path) -> None:
    config = timm.get_pretrained_cfg(OLD)
    assert config is not None and config.custom_load and str(config.url).endswith(".npz")
    origin, file = source.fetch_pretrained(OLD)
    assert (origin, file.read_bytes()) == (f"timm/{OLD}", saved.read_bytes())


def test_unreachable_hub_is_an_error_at_once_with_the_cure(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _point_at("http://127.0.0.1:9", monkeypatch)
    start = time.monotonic()
    with pytest.raises(WeightsError, match="test_resnet.*--weights none.*--weights FILE"):
        load_weights(_model(), "auto", "test_resnet")
    assert time.monotonic() - start < PATIENCE


def test_silent_hub_is_an_error_within_seconds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        _point_at(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch)
        start = time.monotonic()
        with pytest.raises(WeightsError, match="--weights none"):
            load_weights(_model(), "auto", "test_resnet")
        assert time.monotonic() - start < PATIENCE


def test_model_without_pretrained_weights_says_so() -> None:
    with pytest.raises(WeightsError, match="got none.*--weights none"):
        load_weights(_model("test_coatnet"), "auto", "test_coatnet")
