"""`--precision auto` on a CPU: measured, and not by how busy the machine happens to be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sports_ray.engine.learner import choose_precision
from sports_ray.model.build import create, image_spec
from sports_ray.recipe import build_config
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
        assert {choose_precision(config, model, spec, torch.device("cpu")) for _ in range(3)} == {alone}
    assert torch.get_num_threads() == 2
    assert_same_bits(before, dict(model.state_dict()))
    assert all(tensor.grad is None for tensor in model.parameters())
