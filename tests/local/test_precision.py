"""`--precision auto`: on a GPU what it can do; on a CPU measured, and not by how busy the machine happens to be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sports_ray.config import TrainConfig
from sports_ray.engine import learner, session
from sports_ray.engine.learner import choose_precision
from sports_ray.engine.world import World
from sports_ray.model.build import create, image_spec
from sports_ray.recipe import build_config
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage
from tests.support.learners import assert_same_bits


@contextmanager
def busy() -> Iterator[None]:
    """Twice as many processes as cores that never wait."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_choice_is_the_same_beside_busy_processes_and_leaves_no_trace() -> None:
    """Of a model that bf16 makes twice as slow on a CPU: one in between may fall on either side of the limit."""
    config = build_config(None, {"model.name": "mobilenetv3_small_050", "model.weights": "none", "data.image_size": 96})
    model = create(config.model, 9, 96)
    spec, before = image_spec(model, 96), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.set_num_threads(2)
    alone = choose_precision(config, model, spec, torch.device("cpu"))
    with busy():
        assert choose_precision(config, model, spec, torch.device("cpu")) == alone
    assert torch.get_num_threads() == 2
    assert_same_bits(before, dict(model.state_dict()))
    assert all(tensor.grad is None for tensor in model.parameters())


class Layer(nn.Module):
    """The mean of an image times a weight; notes in which precision, and on how many threads, it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(3, 2), list[tuple[torch.dtype, int]]()

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.linear(images.mean((2, 3)))
        self.calls.append((found.dtype, torch.get_num_threads()))
        return found


def config_of(name: str = "test_resnet", precision: str = "auto") -> TrainConfig:
    return build_config(None, {"model.name": name, "data.image_size": 32, "loop.precision": precision})


def chosen(model: nn.Module, device: str = "cpu", name: str = "test_resnet") -> str:
    return choose_precision(
        config_of(name), model, image_spec(create(config_of().model, 2, 32), 32), torch.device(device)
    )


@pytest.mark.parametrize(
    ("bf16", "choice"), [(0.5, "bf16"), (0.84, "bf16"), (0.85, "fp32"), (0.86, "fp32"), (1.0, "fp32"), (3.0, "fp32")]
)
@pytest.mark.parametrize("fp32", [1.0, 4.0])
def test_cpu_takes_bf16_where_it_saves_more_than_15_percent_of_a_step(
    monkeypatch: pytest.MonkeyPatch, fp32: float, bf16: float, choice: str
) -> None:
    monkeypatch.setattr(learner, "_core_seconds", lambda *_: {"fp32": fp32, "bf16": bf16 * fp32})
    assert chosen(Layer()) == choice


@pytest.mark.parametrize(
    ("fp32", "bf16", "choice"),
    [
        ([9, 2, 9, 9], [3, 3, 3, 3], "fp32"),
        ([3, 3, 3, 3], [9, 9, 9, 2], "bf16"),
    ],
)
def test_the_shortest_step_of_each_precision_counts_and_they_take_turns_on_one_thread(
    monkeypatch: pytest.MonkeyPatch, fp32: list[float], bf16: list[float], choice: str
) -> None:
    """The clock gives every step its length: the medians would say the opposite."""
    ticks = [tick for pair in zip(fp32, bf16, strict=True) for seconds in pair for tick in (0.0, float(seconds))]
    monkeypatch.setattr(learner.time, "thread_time", lambda: ticks.pop(0))
    torch.set_num_threads(2)
    model = Layer()
    assert chosen(model) == choice and ticks == []
    assert model.calls == [(torch.float32, 1), (torch.bfloat16, 1)] * 4
    assert torch.get_num_threads() == 2


def test_a_measurement_that_fails_leaves_the_threads_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> dict[str, float]:
        raise MemoryError

    monkeypatch.setattr(learner, "_core_seconds", fail)
    torch.set_num_threads(2)
    with pytest.raises(MemoryError):
        chosen(Layer())
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("lone", [{"loop.global_batch": 1, "loop.lanes": 1}, {"loop.micro_batch": 1}])
def test_a_measurement_with_a_lone_image_bears_a_map_of_one_pixel(lone: dict[str, int]) -> None:
    """test_resnet's last map of 32 pixels is 1 x 1: batch norm has one value a channel there, as in such a training."""
    config = build_config(None, {"model.name": "test_resnet", "model.weights": "none", "data.image_size": 32, **lone})
    model = create(config.model, 2, 32)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert choose_precision(config, model, image_spec(model, 32), torch.device("cpu")) in ("fp32", "bf16")
    assert_same_bits(before, dict(model.state_dict()))


class Counter(nn.Module):
    """Notes how many images it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.images = nn.Parameter(torch.ones(3)), set[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.images.add(len(images))
        return images.mean((2, 3)) * self.weight


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "images"), [(64, 0, 8), (3, 0, 3), (64, 2, 2), (64, 32, 8), (3, 5, 3)]
)
def test_a_measurement_takes_no_more_images_at_once_than_training(
    global_batch: int, micro_batch: int, images: int
) -> None:
    settings = {"loop.global_batch": global_batch, "loop.micro_batch": micro_batch, "loop.lanes": 1}
    config, model = build_config(None, {"model.name": "test_resnet", "data.image_size": 32, **settings}), Counter()
    choose_precision(config, model, image_spec(create(config.model, 2, 32), 32), torch.device("cpu"))
    assert model.images == {images}


@pytest.mark.parametrize(
    ("gpu", "name", "choice"),
    [
        ("own bf16", "resnet50", "bf16"),
        ("own bf16", "swinv2_tiny_window8_256", "bf16"),
        ("emulated bf16", "resnet50", "fp16"),
        ("emulated bf16", "swinv2_tiny_window8_256", "fp32"),
        ("no bf16", "resnet50", "fp16"),
        ("no bf16", "swin_tiny_patch4_window7_224", "fp16"),
        ("no bf16", "swinv2_tiny_window8_256", "fp32"),
    ],
)
def test_gpu_takes_bf16_or_without_it_fp16_which_swinv2_does_not_bear(
    monkeypatch: pytest.MonkeyPatch, gpu: str, name: str, choice: str
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return gpu == "own bf16" or (gpu == "emulated bf16" and including_emulation)

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(learner, "_core_seconds", lambda *_: pytest.fail("a GPU is asked, not measured"))
    assert chosen(Layer(), "cuda", name) == choice


@pytest.mark.parametrize("choice", ["bf16", "fp32"])
def test_a_run_takes_the_choice_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    run_dir, model, asked = RunDir(open_storage(str(tmp_path))), Layer(), list[Any]()
    spec = image_spec(create(config_of().model, 2, 32), 32)

    def choose(*words: Any) -> str:
        asked.append(words)
        return choice

    monkeypatch.setattr(session, "choose_precision", choose)
    for _ in range(2):  # the second time as a run that goes on
        assert session._settle(config_of(), run_dir, World(), model, spec) == choice
        assert (run_dir.read_settled() or {})["precision"] == choice
    assert asked == [(config_of(), model, spec, World().device)]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_precision_that_was_named_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(session, "choose_precision", lambda *_: pytest.fail("measured"))
    config, spec = config_of(precision=precision), image_spec(create(config_of().model, 2, 32), 32)
    assert session._settle(config, RunDir(open_storage(str(tmp_path))), World(), Layer(), spec) == precision
