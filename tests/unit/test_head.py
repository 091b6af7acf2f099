"""Heads of several layers: what is built, what a batch of one does, and how weights move between heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sports_ray.config import LoopConfig, ModelConfig, OptimConfig
from sports_ray.errors import ConfigError
from sports_ray.model.build import create, head_parameters, head_tensors, set_train_mode, trainable
from sports_ray.model.ema import Ema
from sports_ray.model.head import check_head
from sports_ray.model.lone import lone_image
from sports_ray.model.optim import parameter_groups
from sports_ray.model.shapes import shapes_only
from sports_ray.model.weights import load_weights

VLG = "512-relu-dropout0.5-linear"
PIXELPLAY = "512-bn-dropout0.6-relu-linear-dropout0.1"
SMALL = "8-bn-dropout0.5-relu-linear"


def build(name: str, head: str = SMALL, classes: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create(ModelConfig(name=name, head=head), classes)


def head_of(model: nn.Module) -> Any:
    return model.get_classifier()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "head", "layers"),
    [
        (
            "resnet50",
            VLG,
            [
                "Linear(in_features=2048, out_features=512",
                "ReLU(",
                "Dropout(p=0.5",
                "Linear(in_features=512, out_features=50",
            ],
        ),
        (
            "convnext_tiny",
            PIXELPLAY,
            [
                "Linear(in_features=768, out_features=512",
                "BatchNorm1d(512",
                "Dropout(p=0.6",
                "ReLU(",
                "Linear(in_features=512, out_features=50",
                "Dropout(p=0.1",
            ],
        ),
    ],
)
def test_head_is_made_of_these_layers_behind_the_pooled_features(name: str, head: str, layers: list[str]) -> None:
    with shapes_only():
        model = create(ModelConfig(name=name, head=head), 50)
        found = [str(layer) for layer in head_of(model)]
        assert len(found) == len(layers)
        assert all(text.startswith(layer) for text, layer in zip(found, layers, strict=True)), found
        assert model.eval()(torch.empty(2, 3, 224, 224)).shape == (2, 50)
    parameters = {name for name, _ in head_of(model).named_parameters()}
    assert {key.split(".", 1)[1].removeprefix("fc.") for key in head_parameters(model)} == parameters


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_efficientnet"])
def test_a_head_of_several_layers_leaves_the_backbone_as_it_starts_without_one(name: str) -> None:
    plain, headed = build(name, "linear"), build(name)
    own, before = head_tensors(headed), plain.state_dict()
    assert own and {key for key in headed.state_dict()} - own == set(before) - head_tensors(plain)
    assert all(torch.equal(tensor, before[key]) for key, tensor in headed.state_dict().items() if key not in own)


@pytest.mark.parametrize(
    "name", ["resnet50", "convnext_tiny", "vit_base_patch16_224", "swin_tiny_patch4_window7_224", "regnety_004"]
)
def test_layer_decay_leaves_the_whole_head_at_the_full_rate(name: str) -> None:
    with shapes_only():
        model = create(ModelConfig(name=name, head=PIXELPLAY), 5)
    scales = {id(p): group["lr_scale"] for group in parameter_groups(model, OptimConfig(layer_decay=0.5))
              for p in group["params"]}  # fmt: skip
    assert {scales[id(parameter)] for parameter in head_of(model).parameters()} == {1.0}
    assert min(scales.values()) < 1.0


def test_a_row_that_is_alone_is_normalised_by_the_running_statistics_and_leaves_them() -> None:
    torch.manual_seed(0)
    norm, plain = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    rows = torch.randn(6, 4) * 3 + 1
    with lone_image(norm, len(rows)):
        assert torch.equal(norm(rows), plain(rows))
    before = {key: tensor.clone() for key, tensor in norm.state_dict().items()}
    row = torch.randn(1, 4, requires_grad=True)
    with lone_image(norm, 1):
        alone = norm(row)
    torch.testing.assert_close(alone, (row - norm.running_mean) / (norm.running_var + norm.eps).sqrt())  # type: ignore[operator]
    alone.square().sum().backward()
    assert row.grad is not None and bool(row.grad.any())
    assert all(torch.equal(tensor, before[key]) for key, tensor in norm.state_dict().items())
    assert norm.training and torch.equal(norm(rows), plain(rows)), "as it was"


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_one_image_trains_a_model_whose_head_has_batch_norm_also_in_bfloat16(name: str) -> None:
    model = build(name).train()
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32), lone_image(model, 1):
            loss = model(torch.randn(1, 3, 160, 160)).float().square().sum()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head_of(model).parameters())


def test_one_image_trains_a_model_whose_maps_have_shrunk_to_a_pixel() -> None:
    """Norms that still see a map learn from it; those that see one value a channel keep their statistics."""
    model = create(ModelConfig(name="resnet18"), 3).train()
    maps = {name: 32 // stride for name, stride in (("layer1", 4), ("layer2", 8), ("layer3", 16), ("layer4", 32))}
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    with lone_image(model, 1):
        model(torch.randn(1, 3, 32, 32)).square().sum().backward()
    for name, tensor in model.named_buffers():
        seen = maps.get(name.partition(".")[0], 16) > 1
        assert torch.equal(tensor, before[name]) is not seen, name
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("loop", "workers", "alone"),
    [
        (LoopConfig(global_batch=2, lanes=1), 1, False),
        (LoopConfig(global_batch=1, lanes=1), 0, True),
        (LoopConfig(global_batch=8, micro_batch=1), 0, True),
        (LoopConfig(global_batch=4, lanes=4), 4, True),
        (LoopConfig(global_batch=4, lanes=4), 2, False),
        (LoopConfig(global_batch=4, lanes=4, strict=True), 1, True),
        (LoopConfig(global_batch=5, lanes=4, strict=True), 1, False),
    ],
)
def test_batch_norm_that_would_never_see_two_images_is_refused(loop: LoopConfig, workers: int, alone: bool) -> None:
    check_head(VLG, loop, workers)
    if not alone:
        check_head(PIXELPLAY, loop, workers)
        return
    with pytest.raises(ConfigError, match="got one image a forward pass; wanted two or more for bn; cure: a larger"):
        check_head(PIXELPLAY, loop, workers)


@pytest.mark.parametrize(
    "text",
    ["", "512", "512-relu", "linear-linear", "linear-relu", "0-linear", "65537-linear", "dropout1.0-linear",
     "dropout-linear", "512-swish-linear", "512--linear", "Linear", "512-linear-bn", "٣-linear"],
)  # fmt: skip
def test_text_that_is_no_head_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="model.head; got .*; wanted words joined by -.*; cure: for example 512-relu"):
        check_head(text, LoopConfig(), 1)


def test_model_without_one_linear_classifier_keeps_its_own() -> None:
    with shapes_only():
        for name in ("deit_tiny_distilled_patch16_224", "dpn48b"):
            create(ModelConfig(name=name), 5)
            with pytest.raises(ConfigError, match="whose classifier is no single linear layer; wanted linear; cure"):
                create(ModelConfig(name=name, head=VLG), 5)


def trained(name: str, head: str = SMALL) -> nn.Module:
    """With statistics that are not the initial ones."""
    model = build(name, head)
    model(torch.randn(4, 3, 160, 160))
    return model


def differing(a: nn.Module, b: nn.Module) -> set[str]:
    other = b.state_dict()
    return {key for key, tensor in a.state_dict().items() if not torch.equal(tensor, other[key])}


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])  # the second has no batch norm but the head's
def test_weights_move_between_heads_the_backbone_always_the_head_where_its_layers_are_the_same(
    name: str, tmp_path: Path
) -> None:
    source, file = trained(name), str(tmp_path / "best.safetensors")
    save_file(source.state_dict(), file)
    same = build(name, seed=1)
    report = load_weights(same, file, name)
    assert (report.coverage, report.missing, report.head_kept) == (1.0, (), True)
    assert not differing(same, source)
    for head, classes, reason in [
        ("linear", 5, "new: the file has none"),
        ("8-relu-linear", 5, "new: the file has none of these layers"),
        ("9-bn-dropout0.5-relu-linear", 5, "new: the file's has layers of other widths"),
        (SMALL, 6, "new: the file's has 5 classes, the model's 6"),
    ]:
        other = build(name, head, classes, seed=1)
        report = load_weights(other, file, name)
        assert (report.coverage, report.missing, report.head) == (1.0, (), reason)
        backbone = {key: tensor for key, tensor in other.state_dict().items() if key not in head_tensors(other)}
        assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in backbone.items())
        fresh = build(name, head, classes, seed=1).state_dict()
        assert all(torch.equal(other.state_dict()[key], fresh[key]) for key in head_tensors(other))


def test_pretrained_weights_of_a_plain_classifier_carry_a_head_with_batch_norm(tmp_path: Path) -> None:
    file = str(tmp_path / "plain.safetensors")
    save_file(trained("test_convnext", "linear").state_dict(), file)
    report = load_weights(build("test_convnext", seed=1), file, "test_convnext")
    assert (report.coverage, report.missing, report.head_kept) == (1.0, (), False)


def test_a_phase_of_the_head_trains_all_its_layers_and_their_statistics_and_ema_follows() -> None:
    model = build("test_resnet")
    names = trainable(model, "head")
    assert set(names) == head_parameters(model) and len(names) == 6
    before, ema = {key: tensor.clone() for key, tensor in model.state_dict().items()}, Ema(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    set_train_mode(model, {name for name, _ in model.named_parameters()} - set(names))
    for step in range(2):
        model(torch.randn(4, 3, 64, 64)).square().sum().backward()
        optimizer.step()
        ema.update(model, step)
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == head_tensors(model) and len(changed) == 9
    assert {key for key, tensor in ema.tensors().items() if not torch.equal(tensor, before[key])} == changed
