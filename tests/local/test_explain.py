"""Grad-CAM: small models learn which coloured balls are in a picture; the heat of each must then lie on its ball."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import NamedTuple

import pytest
import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sports_ray.data.demo_scenes import BLACK, MARGIN, Pen, ball, surface
from sports_ray.errors import WeightsError
from sports_ray.model.eager_timm import timm
from sports_ray.report.explain import FEATURES, grad_cam

SIZE = 96
BALLS = [(236, 116, 30), (40, 80, 220), (200, 232, 40)]
"""Orange, blue and yellow: the classes."""


class Scenes(NamedTuple):
    images: Tensor
    """float32 [n, 3, SIZE, SIZE] in [-2, 2]."""
    labels: Tensor
    """float32 [n, 3]: which balls there are."""
    near: Tensor
    """bool [n, 3, SIZE, SIZE]: where, with half a field of a map around, as far as one on the edge reaches out."""


class Kind(NamedTuple):
    build: Callable[[], nn.Module]
    steps: int
    """Of its training, enough to learn all three balls by a wide margin."""
    rate: float
    layer: str
    """Where its map is taken at SIZE px."""
    share: float = 0.5
    """Of the heat on the ball, at least, with others beside it or not: far below what three seeds gave."""


def vit() -> nn.Module:
    sizes = {"img_size": SIZE, "patch_size": 16, "embed_dim": 64, "depth": 1, "num_heads": 4, "mlp_ratio": 2}
    return VisionTransformer(**sizes, num_classes=3)


def swin() -> nn.Module:
    sizes = {"img_size": SIZE, "patch_size": 4, "embed_dim": 32, "depths": (1, 1), "num_heads": (2, 4)}
    return SwinTransformerV2(**sizes, window_size=4, num_classes=3)


def timm_model(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=3)


MODELS = {
    "test_resnet": Kind(timm_model("test_resnet"), 32, 3e-3, "layer3"),
    "vit of one block": Kind(vit, 200, 3e-3, "blocks.0.norm1", share=0.7),
    "test_convnext": Kind(timm_model("test_convnext"), 120, 6e-4, "stages.2", share=0.35),
    "test_vit": Kind(timm_model("test_vit"), 200, 1e-3, "blocks.5.norm1", share=0.4),
    "swinv2": Kind(swin, 400, 2e-3, FEATURES),
}
SHORT = ("test_resnet", "vit of one block")
"""The others need many steps: `pytest -m long`."""


def scenes(count: int, seed: int) -> Scenes:
    """Grounds with each ball in half of them, apart from each other."""
    rng, found = Random(seed), []
    line = (torch.arange(SIZE) + 0.5) / SIZE
    for _ in range(count):
        pen = Pen(SIZE, rng)
        surface(pen, rng.choice(["hall", "ice", "street"]))
        spots = [(x, y) for x in (0.2, 0.5, 0.8) for y in (0.2, 0.5, 0.8)]
        rng.shuffle(spots)
        labels, masks = torch.zeros(3), torch.zeros(3, SIZE, SIZE)
        for label in range(3):
            if rng.random() < 0.5:
                x, y = (at + rng.uniform(-0.05, 0.05) for at in spots[label])
                r = rng.uniform(0.11, 0.15)
                ball(pen, x, y, r, [pen.shade(BALLS[label], 12)], BLACK)
                labels[label], masks[label] = 1, (line[None] - x) ** 2 + (line[:, None] - y) ** 2 <= r**2
        edge = round(SIZE * MARGIN)
        frame = pen.image.crop((edge, edge, edge + SIZE, edge + SIZE))
        pixels = torch.frombuffer(bytearray(frame.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3).permute(2, 0, 1)
        found.append((pixels.float() / 63.75 - 2, labels, nn.functional.max_pool2d(masks[None], 17, 1, 8)[0] > 0))
    images, labels, near = (torch.stack(part) for part in zip(*found, strict=True))
    return Scenes(images, labels, near)


@lru_cache(maxsize=2)
def training_set(count: int) -> Scenes:
    return scenes(count, seed=1)


@lru_cache(maxsize=1)
def held_out() -> Scenes:
    return scenes(36, seed=2)


def learned(kind: Kind, count: int) -> nn.Module:
    """The model after its steps of 16 of so many images."""
    torch.manual_seed(0)
    model, (images, labels, _) = kind.build().train(), training_set(count)
    optimiser = torch.optim.AdamW(model.parameters(), kind.rate)
    for step in range(kind.steps):
        for group in optimiser.param_groups:
            group["lr"] = kind.rate * min(1, (step + 1) / 10)
        rows = torch.arange(16 * step, 16 * step + 16) % len(images)
        nn.functional.binary_cross_entropy_with_logits(model(images[rows]), labels[rows]).backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.long] * (name not in SHORT)) for name in MODELS]
)
def model(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, learned(MODELS[request.param], 160 if request.param in SHORT else 320)


def test_most_heat_lies_on_the_planted_object(model: tuple[str, nn.Module]) -> None:
    name, trained = model
    images, labels, near = held_out()
    with torch.no_grad():
        logits = trained(images)
    for label in range(3):
        there = labels[:, label] > 0
        assert logits[there, label].mean() > logits[~there, label].mean(), "has learned nothing"
    rows, classes = labels.nonzero(as_tuple=True)
    cam = grad_cam(trained, images[rows], classes)
    assert cam.layer == MODELS[name].layer and torch.equal(cam.targets, classes)
    assert cam.heat.shape == (len(rows), SIZE, SIZE) and float(cam.heat.min()) >= 0 and float(cam.heat.max()) == 1
    mine = near[rows, classes]
    assert float(mine.float().mean()) < 0.17
    share = (cam.heat * mine).sum((1, 2)) / cam.heat.sum((1, 2)).clamp(min=1e-9)
    assert float(share.mean()) > MODELS[name].share, f"{float(share.mean()):.2f} of the heat"
    alone = share[labels[rows].sum(1) == 1]
    assert len(alone) >= 10 and float(alone.mean()) > 0.6, f"{float(alone.mean()):.2f} where it is the only one"
    hottest = mine.flatten(1).gather(1, cam.heat.flatten(1).argmax(1)[:, None]).float().mean()
    assert float(hottest) > 0.5, f"the hottest place of {float(hottest):.2f} of the pictures"


def test_of_two_objects_the_heat_lies_on_that_of_the_class_asked_for(model: tuple[str, nn.Module]) -> None:
    _, trained = model
    images, labels, near = held_out()
    right = []
    for row in torch.nonzero(labels.sum(1) >= 2)[:, 0].tolist():
        present = torch.nonzero(labels[row])[:, 0]
        heat = grad_cam(trained, images[row][None].expand(len(present), -1, -1, -1), present).heat
        on = torch.einsum("ayx,byx->ab", heat, near[row, present].float())
        right += (on.argmax(1) == torch.arange(len(present))).tolist()
    assert len(right) > 30 and sum(right) > 0.6 * len(right), f"{sum(right)} of {len(right)}"


def test_asking_changes_neither_the_model_nor_its_gradients_and_needs_none(model: tuple[str, nn.Module]) -> None:
    _, trained = model
    trained.requires_grad_(False)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    images = held_out().images[:4]
    with torch.no_grad():
        plain = trained(images).softmax(1)
        cam = grad_cam(trained, images)
    torch.testing.assert_close(cam.probabilities, plain)
    assert torch.equal(cam.targets, plain.argmax(1))
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert all(parameter.grad is None for parameter in trained.parameters())
    alone = grad_cam(trained, images[1:2])
    torch.testing.assert_close(alone.heat[0], cam.heat[1], atol=5e-3, rtol=0)
    assert not any(module._forward_hooks for module in trained.modules())


class Told(nn.Module):
    """A model whose logits are known functions of its map: Grad-CAM can be worked out by hand."""

    def forward_features(self, x: Tensor) -> Tensor:
        return x * 1.0

    def forward_head(self, x: Tensor) -> Tensor:
        red, green, blue = x.mean((2, 3)).unbind(1)
        return torch.stack([2 * red - green, blue], dim=1)


def test_heat_is_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 8, 8)
    cam = grad_cam(Told(), image, torch.tensor([0]))
    wanted = (2 * image[0, 0] - image[0, 1]).relu()
    torch.testing.assert_close(cam.heat[0], wanted / wanted.max())
    nothing = grad_cam(Told(), -image.abs(), torch.tensor([1]))
    assert float(nothing.heat.abs().max()) == 0 and bool(torch.isfinite(nothing.heat).all())


class Blind(Told):
    def forward_features(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def forward_head(self, x: Tensor) -> Tensor:
        return x[:, :2]


def test_model_without_places_is_refused() -> None:
    with pytest.raises(WeightsError, match="Grad-CAM of Blind; got no layer with places"):
        grad_cam(Blind(), torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("test_vit2", 96), ("test_vit3", 96), ("test_vit4", 96), ("test_byobnet", 128), ("test_efficientnet", 128),
        ("test_coatnet", 160), ("test_mambaout", 160), ("test_nfnet", 128), ("test_vit_relpos", 160),
        pytest.param("test_maxvit", 160, marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_models_of_other_kinds_have_a_map_too(name: str, side: int) -> None:
    """Class token or mean of tokens, NHWC, attention pooling: with random weights, but with places."""
    torch.manual_seed(0)
    options = {"img_size": side} if name in ("test_vit2", "test_vit3", "test_vit4") else {}
    cam = grad_cam(timm.create_model(name, num_classes=5, **options).eval(), torch.randn(2, 3, side, side))
    assert cam.heat.shape == (2, side, side) and bool(torch.isfinite(cam.heat).all())
    assert len(cam.heat[0].unique()) > 8 or float(cam.heat.max()) == 0
