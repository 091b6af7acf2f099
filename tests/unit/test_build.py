"""Names, building, preprocessing, heads and frozen parts of models."""

from __future__ import annotations

import pytest
import torch
from timm.data import resolve_data_config
from timm.layers import DropPath

from sports_ray.config import ModelConfig
from sports_ray.errors import ConfigError, WeightsError
from sports_ray.model.build import (
    ALIASES,
    create,
    head_parameters,
    image_spec,
    parameter_count,
    resolve_name,
    set_train_mode,
    trainable,
)
from sports_ray.model.eager_timm import timm
from sports_ray.model.shapes import shapes_only


@pytest.mark.parametrize(
    ("alias", "train", "test", "parameters"),
    [
        ("convnext_large", 224, 288, 196_387_110),
        ("swinv2_large", 384, 384, 195_359_706),
        ("swinv2_large_256", 256, 256, 195_359_706),
    ],
)
def test_alias_builds_on_meta_with_102_classes_and_timms_preprocessing(
    alias: str, train: int, test: int, parameters: int
) -> None:
    with shapes_only():
        model = create(ModelConfig(name=alias, drop_path=0.2), 102)
    assert model.get_classifier().out_features == 102  # type: ignore[operator]
    assert parameter_count(model) == parameters
    spec = image_spec(model)
    wanted = resolve_data_config(model=model, use_test_size=True)
    assert spec == image_spec(alias)
    assert (spec.train_size, spec.eval_size) == (train, test)
    assert (spec.mean, spec.std, spec.crop_pct) == (wanted["mean"], wanted["std"], wanted["crop_pct"])
    assert (spec.interpolation, spec.crop_mode) == (wanted["interpolation"], wanted["crop_mode"])


def test_preprocessing_differs_from_model_to_model() -> None:
    assert image_spec("test_resnet").interpolation == "bilinear"
    assert image_spec("test_vit").mean == (0.5, 0.5, 0.5)
    assert image_spec("efficientnet_b0").mean != (0.5, 0.5, 0.5)


def test_asked_size_is_used_for_evaluation_too() -> None:
    spec = image_spec("resnet50", 160)
    assert (spec.train_size, spec.eval_size, spec.crop_pct) == (160, 160, 0.95)
    assert (image_spec("resnet50").eval_size, image_spec("resnet50").crop_pct) == (288, 1.0)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("swinv2_large_window12_384.ms_in22k_ft_in1k", ALIASES["swinv2_large"]),
        ("swinv2_large_window12_384", ALIASES["swinv2_large"]),
        ("convnxt_tiny", "convnext_tiny"),
        ("convnext_tiny.fb_in22k_ft_in2k", "convnext_tiny.fb_in22k_ft_in1k"),
        ("vit_b_16", "vit_base_patch16_224"),
    ],
)
def test_unknown_name_is_answered_with_the_right_one(wrong: str, right: str) -> None:
    with pytest.raises(WeightsError, match=f"did you mean {right}\\?") as error:
        resolve_name(wrong)
    assert error.value.exit_code == 2
    assert resolve_name(right) == right


def test_name_like_no_other_is_answered_with_the_list_command() -> None:
    with pytest.raises(WeightsError, match="sports-ray models"):
        resolve_name("zzzz9")


@pytest.mark.parametrize(("name", "size"), [("test_vit", 96), ("test_resnet", 100), ("test_convnext", 64)])
def test_model_is_built_for_the_asked_size(name: str, size: int) -> None:
    model = create(ModelConfig(name=name), 5, size).eval()
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_swinv2_is_built_for_the_asked_size() -> None:
    with shapes_only():
        model = create(ModelConfig(name="swinv2_tiny_window16_256"), 5, 192)
        assert model(torch.empty(1, 3, 192, 192)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "size", "want", "cure"),
    [
        ("test_vit", 100, 16, "96 or 112"),
        pytest.param("test_maxvit", 100, 32, "96 or 128", marks=pytest.mark.long),
    ],
)
def test_size_a_model_cannot_take_names_the_wanted_multiple(name: str, size: int, want: int, cure: str) -> None:
    with pytest.raises(
        ConfigError, match=f"got {size}.*wanted a multiple of {want}; cure: --set data.image_size={cure}"
    ):
        create(ModelConfig(name=name), 5, size)


def test_same_seed_gives_the_same_start_whether_or_not_a_size_is_checked() -> None:
    torch.manual_seed(3)
    plain = timm.create_model("test_resnet", num_classes=5)
    torch.manual_seed(3)
    checked = create(ModelConfig(name="test_resnet"), 5, 96)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), checked.parameters(), strict=True))


def test_drop_rates_are_those_of_the_config_not_timms_defaults() -> None:
    """timm's Swin drops paths at 0.1 unless told not to."""
    with shapes_only():
        still = create(ModelConfig(name="swin_tiny_patch4_window7_224"), 5)
        dropping = create(ModelConfig(name="swin_tiny_patch4_window7_224", drop=0.4, drop_path=0.3), 5)
    rates = [float(module.drop_prob) for module in dropping.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(0.3)
    assert not [module for module in still.modules() if isinstance(module, DropPath) and module.drop_prob]
    assert dropping.head.drop.p == 0.4  # type: ignore[union-attr]


def test_model_without_drop_path_is_built_but_refuses_one() -> None:
    with shapes_only():
        assert create(ModelConfig(name="inception_v3"), 5).get_classifier().out_features == 5  # type: ignore[operator]
        with pytest.raises(ConfigError, match="drop_path"):
            create(ModelConfig(name="inception_v3", drop_path=0.1), 5)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("test_resnet", {"fc.weight", "fc.bias"}),
        ("test_convnext", {"head.fc.weight", "head.fc.bias"}),
        ("deit_tiny_distilled_patch16_224", {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}),
    ],
)
def test_head_is_the_classifier_alone(name: str, head: set[str]) -> None:
    with shapes_only():
        assert head_parameters(create(ModelConfig(name=name), 5)) == head


def test_only_the_chosen_parameters_learn_and_frozen_batch_norm_stays_bit_equal() -> None:
    torch.manual_seed(0)
    model = create(ModelConfig(name="test_resnet"), 5)
    learning = trainable(model, "head")
    assert sorted(learning) == ["fc.bias", "fc.weight"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    set_train_mode(model, {name for name, _ in model.named_parameters()} - set(learning))
    for _ in range(2):
        model(torch.randn(4, 3, 64, 64)).square().sum().backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_thawed_model_learns_and_averages_again() -> None:
    model = create(ModelConfig(name="test_resnet"), 5)
    trainable(model, "head")
    assert len(trainable(model, "*")) == len(list(model.parameters()))
    assert all(parameter.requires_grad for parameter in model.parameters())
    set_train_mode(model)
    before = model.bn1.running_mean.clone()  # type: ignore[union-attr, operator]
    model(torch.randn(4, 3, 64, 64))
    assert not torch.equal(model.bn1.running_mean, before)  # type: ignore[union-attr, arg-type]


def test_batch_norm_without_parameters_follows_what_surrounds_it() -> None:
    norm = torch.nn.BatchNorm1d(2, affine=False)
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2), norm), torch.nn.Linear(2, 2))
    set_train_mode(model, {"0.0.weight", "0.0.bias"})
    assert not norm.training
    set_train_mode(model, {"1.weight", "1.bias"})
    assert norm.training


def test_pattern_that_matches_nothing_is_an_error_with_examples() -> None:
    model = create(ModelConfig(name="test_resnet"), 5)
    with pytest.raises(ConfigError, match=r"got 'layer9\*'.*fc\.weight"):
        trainable(model, "layer9*")
    assert trainable(model, "layer4*")[0].startswith("layer4.")


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "convnext_atto", "swinv2_cr_tiny_ns_224", "efficientnet_b0"]
)
def test_shapes_are_those_of_the_model_and_cost_no_random_number(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with shapes_only():
        shapes = create(ModelConfig(name=name), 5)
    assert torch.equal(torch.get_rng_state(), before)
    whole = create(ModelConfig(name=name), 5)
    assert all(value.is_meta for value in shapes.state_dict().values())
    assert {key: (value.shape, value.dtype) for key, value in shapes.state_dict().items()} == {
        key: (value.shape, value.dtype) for key, value in whole.state_dict().items()
    }
    assert {key for key, _ in shapes.named_parameters()} == {key for key, _ in whole.named_parameters()}
