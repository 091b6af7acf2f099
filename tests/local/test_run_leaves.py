"""What a run leaves for people besides its weights: its log, the facts of its machine, TensorBoard scalars."""

from __future__ import annotations

import ctypes
import json
import platform
import re
import struct
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from sports_ray.data.demo import draw_demo
from sports_ray.engine.record import system_facts
from tests.support.shell import sports_ray

SETTINGS = ("data.image_size=32", "data.loader_processes=0", "loop.global_batch=8", "cluster.threads=1")
PACKAGES = [
    "sports-ray",
    "torch",
    "torchvision",
    "timm",
    "ray",
    "numpy",
    "pillow",
    "simplejpeg",
    "pyarrow",
    "safetensors",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two sessions: two epochs, then a third."""
    place = tmp_path_factory.mktemp("leaves")
    draw_demo(place / "set", classes=2, per_class=8, size=40)
    words = ["--data", "set", "--model", "test_resnet", "--weights", "none", "--workers", "0", "--precision", "fp32"]
    words += [word for setting in SETTINGS for word in ("--set", setting)]
    assert sports_ray(place, "train", *words, "--run", "run", "--epochs", "2").code == 0
    assert sports_ray(place, "resume", "run", "--epochs", "3").code == 0
    return place / "runs" / "run"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_session_says_on_which_machine_with_which_versions_it_ran(run: Path) -> None:
    first, second = (line for line in lines(run / "timings.jsonl") if line["kind"] == "start")
    for start in (first, second):
        assert (start["python"], start["host"]) == (platform.python_version(), platform.node())
        assert (start["platform"], start["device"], start["threads"]) == (platform.platform(), "cpu", 1)
        assert (start["world"], start["precision"]) == (1, "fp32")
        assert start["versions"] == {name: version(name) for name in PACKAGES}
        assert "gpu" not in start
    assert first["step"] == 0 < second["step"] and first["pid"] != second["pid"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_facts_of_a_gpu_hold_its_name_memory_and_driver() -> None:
    gpu = system_facts(torch.device("cuda", 0))["gpu"]
    assert gpu["name"] and gpu["memory"] > 2**30 and gpu["cuda"] == torch.version.cuda
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", gpu["driver"])


class Nvml:
    """NVIDIA's library as far as the driver's version goes: it answers once it was initialised, into the caller's buffer."""

    def __init__(self, driver: bytes, failing: str = "") -> None:
        self.driver, self.failing, self.ready = driver, failing, False

    def nvmlInit_v2(self) -> int:  # noqa: N802
        self.ready = self.failing != "nvmlInit_v2"
        return 0 if self.ready else 9  # NVML_ERROR_DRIVER_NOT_LOADED

    def nvmlSystemGetDriverVersion(self, buffer: ctypes.Array[ctypes.c_char], length: int) -> int:  # noqa: N802
        if not self.ready:
            return 1  # NVML_ERROR_UNINITIALIZED
        if len(self.driver) >= length or length > ctypes.sizeof(buffer):
            return 7  # NVML_ERROR_INSUFFICIENT_SIZE
        buffer.value = self.driver
        return 999 if self.failing == "nvmlSystemGetDriverVersion" else 0  # NVML_ERROR_UNKNOWN


def facts_of_gpu(monkeypatch: pytest.MonkeyPatch, nvml: object) -> dict[str, Any]:
    """Of the second GPU of a machine that has two, and this library or, for None, none at all."""
    cards = {
        "cuda:0": SimpleNamespace(name="NVIDIA A100-SXM4-40GB", total_memory=42_298_834_944, major=8),
        "cuda:1": SimpleNamespace(name="Tesla T4", total_memory=15_828_320_256, major=7),
    }

    def load(name: str) -> object:
        if nvml is None or name != "libnvidia-ml.so.1":
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return nvml

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_properties", lambda device: cards[str(device)])
        patch.setattr(torch.version, "cuda", "12.6")
        patch.setattr(ctypes, "CDLL", load)
        facts = system_facts(torch.device("cuda", 1))
    assert facts["device"] == "cuda:1"
    gpu: dict[str, Any] = facts["gpu"]
    return gpu


@pytest.mark.parametrize("driver", ["560.35.03", "570.124"])
def test_facts_of_any_gpu_are_those_of_the_one_in_use(monkeypatch: pytest.MonkeyPatch, driver: str) -> None:
    gpu = facts_of_gpu(monkeypatch, Nvml(driver.encode()))
    assert gpu == {"name": "Tesla T4", "memory": 15_828_320_256, "cuda": "12.6", "driver": driver}


@pytest.mark.parametrize(
    "nvml",
    [None, SimpleNamespace(), Nvml(b"560.35.03", "nvmlInit_v2"), Nvml(b"560.35.03", "nvmlSystemGetDriverVersion")],
    ids=["no-library", "another-library", "no-driver", "no-answer"],
)
def test_a_driver_that_does_not_say_its_version_leaves_the_other_facts(
    monkeypatch: pytest.MonkeyPatch, nvml: object
) -> None:
    gpu = facts_of_gpu(monkeypatch, nvml)
    assert gpu == {"name": "Tesla T4", "memory": 15_828_320_256, "cuda": "12.6", "driver": ""}


def test_log_has_a_clock_and_tells_of_both_sessions(run: Path) -> None:
    text = (run / "logs" / "driver.log").read_text(encoding="utf-8")
    clock = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) sports_ray[\w.]* "
    assert all(re.match(clock, line) for line in text.splitlines())
    assert re.search(r"weights: source=none", text)
    starts = [line["step"] for line in lines(run / "timings.jsonl") if line["kind"] == "start"]
    assert f"resumed: step={starts[1]} " in text


def records(path: Path) -> Iterator[Event]:
    """Of a TFRecord file: length (uint64), its checksum, the event, its checksum."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += 12 + length + 4


def test_tensorboard_reads_back_what_the_metrics_say(run: Path) -> None:
    (file,) = (run / "tensorboard").iterdir()
    found = {(value.tag, event.step): value.simple_value for event in records(file) for value in event.summary.value}
    metrics = lines(run / "metrics.jsonl")
    wanted = {
        (name, line["step"]): value
        for line in metrics
        for name, value in line.items()
        if isinstance(value, (int, float)) and name not in ("epoch", "step")
    }
    assert found.keys() == wanted.keys() and len(metrics) == 3
    assert {name for name, _ in found} >= {"train_loss", "val_loss", "val_acc1", "ema_val_acc1", "lr"}
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key
