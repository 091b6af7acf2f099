"""torch's compiler stays out of processes that compile nothing, and is there for those that do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import sports_ray

PEERS = ("orchestrate/plain.py", "bench/bare.py", "bench/loader.py")
"""What is measured beside sports-ray imports timm as its users do."""

TRAINS = """
import sys, torch
import sports_ray.orchestrate.local
from sports_ray.config import ModelConfig, OptimConfig
from sports_ray.model.build import create
from sports_ray.model.optim import create_optimizer, take_step
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

def learn(name, decay, step):
    torch.manual_seed(0)
    model = create(ModelConfig(name="test_resnet"), 3, 64, sure=True)
    optimizer = create_optimizer(model, OptimConfig(name=name, layer_decay=decay), 0.1)
    for rate in (0.1, 0.05):
        optimizer.zero_grad(set_to_none=True)
        model(torch.ones(2, 3, 32, 32)).square().sum().backward()
        step(optimizer, rate)
    optimizer.load_state_dict(optimizer.state_dict())
    return model.state_dict()

hooked = []
register_optimizer_step_pre_hook(lambda *_: hooked.append("before"))
register_optimizer_step_post_hook(lambda *_: hooked.append("after"))

def torchs_own(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    optimizer.step()

kinds = [("adamw", 0.7), ("adam", 1.0), ("sgd", 0.7)]
here = [learn(*kind, take_step) for kind in kinds]
loaded = [name for name in ("torch._dynamo", "sympy", "torch._inductor") if name in sys.modules]
assert not loaded, loaded
assert hooked == ["before", "after"] * 6, hooked
own = [learn(*kind, torchs_own) for kind in kinds]
assert "torch._dynamo" in sys.modules
assert all(torch.equal(one[key], other[key]) for one, other in zip(here, own) for key in one)
"""

COMPILES = """
import torch
import sports_ray.orchestrate.local
import torchvision
from sports_ray.model.eager_timm import timm

boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2).shape == (1, 1, 2, 2)
seen = []
def backend(graph, inputs):
    seen.append(graph)
    return graph.forward
model = timm.create_model("test_resnet").eval()
image = torch.ones(1, 3, 64, 64)
assert torch.equal(torch.compile(model, backend=backend)(image), model(image)) and seen
import torch._dynamo.eval_frame, torch._dynamo.utils
assert torch._dynamo.utils.is_compile_supported("cpu") in (True, False)
import timm.optim.kron
"""


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_loads_no_compiler_and_its_optimisers_step_as_torchs_own() -> None:
    run(TRAINS)


def test_who_compiles_finds_the_compiler() -> None:
    run(COMPILES)


def test_timm_has_one_door() -> None:
    """Whoever imports it first by another way loads the compiler for all."""
    root = Path(sports_ray.__file__).parent
    doors = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        for name in _imported(node)
        if name.partition(".")[0] == "timm"
    }
    assert not doors - {*PEERS}


def _imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [one.name for one in node.names] if isinstance(node, ast.Import) else []
