"""Every recipe is complete and known to the config; `models` and `recipes` tell the truth."""

from __future__ import annotations

import json
import re

import pytest
import torch
from click.testing import CliRunner

from sports_ray.cli.models import models, recipes
from sports_ray.model.build import create, image_spec, own_size, pretrained_cfg, resolve_name, trainable
from sports_ray.model.eager_timm import timm
from sports_ray.model.optim import default_lr, learning_rate
from sports_ray.model.shapes import shapes_only
from sports_ray.recipe import build_config, load_recipe, recipe_header, recipe_names, recipe_text

LIGHT = {
    "resnet50": "resnet50.a1_in1k",
    "efficientnet-b0": "efficientnet_b0.ra_in1k",
    "vit-b16": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "convnext-tiny": "convnext_tiny.fb_in22k_ft_in1k",
    "swin-tiny": "swin_tiny_patch4_window7_224.ms_in1k",
    "regnety-400mf": "regnety_004.tv2_in1k",
}
SPORTS102 = {
    "sports102-convnext": "convnext_large.fb_in22k_ft_in1k",
    "sports102-swinv2": "swinv2_large_window12to24_192to384.ms_in22k_ft_in1k",
}
OF_KERAS = {
    "keras-resnet50": "resnet50.tv_in1k",
    "keras-efficientnet-b0": "tf_efficientnet_b0.in1k",
    "keras-mobilenetv3-large": "tf_mobilenetv3_large_100.in1k",
    "keras-inception-v3": "inception_v3.tf_in1k",
}
SYSTEMS = {
    "vlg-resnet50": "resnet50.tv2_in1k",
    "pixelplay-convnext-tiny": "convnext_tiny.fb_in22k_ft_in1k",
    "sports-vit-b16": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
}
MODELS = {**LIGHT, **SPORTS102, **OF_KERAS, **SYSTEMS}


def test_the_promised_recipes_are_there() -> None:
    assert {"quick", *MODELS} == set(recipe_names())


@pytest.mark.parametrize("name", MODELS)
def test_recipe_begins_with_the_published_weights_of_its_architecture(name: str) -> None:
    config = build_config(name)
    assert resolve_name(config.model.name) == MODELS[name] and config.model.weights == "auto"
    assert pretrained_cfg(config.model.name).has_weights


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_says_what_it_is_for_and_builds_its_model(name: str) -> None:
    header = recipe_header(name)
    assert len(header["about"]) > 20 and header["notes" if name != "quick" else "expected"]
    assert header["commands"][0].startswith(f"sports-ray train --recipe {name} --data DIR")
    assert header["expected"].startswith("not measured: ") or re.search(r"0\.\d+ of \d+", header["expected"])
    config = build_config(name)
    with shapes_only():
        model = create(config.model, 102, config.data.image_size)
    spec = image_spec(model, config.data.image_size)
    side = spec.eval_size
    with shapes_only():
        assert model.eval()(torch.empty(1, 3, side, side)).shape == (1, 102)
    for phase in config.loop.phases:
        assert trainable(model, phase.train)
    assert config.augment.mix_off_epochs < config.loop.epochs


@pytest.mark.parametrize("name", [name for name in recipe_names()])
def test_recipes_rates_rise_and_fall_and_never_exceed_the_peak(name: str) -> None:
    config = build_config(name)
    optim, loop = config.optim, config.loop
    lr = default_lr(optim, loop.global_batch, config.model.weights == "none")
    assert lr == optim.lr
    rates = [learning_rate(step, lr, optim, loop.phases, 10, loop.epochs) for step in range(10 * loop.epochs)]
    after = rates[10 * sum(phase.epochs for phase in loop.phases) :]
    assert max(after) == pytest.approx(lr)
    assert after[0] == pytest.approx(lr / 100 if optim.warmup_epochs else lr)
    assert after[-1] < lr / 10


@pytest.mark.parametrize("name", sorted(SPORTS102))
def test_sports102_recipes_keep_the_measured_starting_values(name: str) -> None:
    config = build_config(name)
    large = name == "sports102-convnext"
    assert config.model.name == ("convnext_large" if large else "swinv2_large")
    assert (config.optim.lr, config.optim.layer_decay, config.model.drop_path) == (
        (5e-5, 0.92, 0.3) if large else (2e-5, 0.89, 0.2)
    )
    assert (config.augment.mixup, config.augment.cutmix, config.augment.policy) == (0.2, 0.5, "rand-m7-n2")
    assert config.loop.precision == ("auto" if large else "bf16")


@pytest.mark.parametrize(("name", "model"), OF_KERAS.items())
def test_recipes_of_the_keras_list_take_tensorflows_weights_where_there_are_any(name: str, model: str) -> None:
    config = build_config(name)
    assert config.model.name == model and pretrained_cfg(model).has_weights
    assert ("tf_" in model) == (name != "keras-resnet50")
    spec = image_spec(model, config.data.image_size, config.data.crop_mode, config.data.crop_pct)
    assert (spec.crop_mode, spec.crop_pct) == ("squash", 1.0)
    assert spec.eval_size == own_size(model)


def test_step_recipe_has_the_rates_of_torchs_steplr() -> None:
    config = build_config("vlg-resnet50")
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=config.optim.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.1)
    for epoch in range(config.loop.epochs):
        rates = [
            learning_rate(epoch * 10 + k, config.optim.lr, config.optim, (), 10, config.loop.epochs) for k in (0, 9)
        ]
        assert rates == pytest.approx([optimizer.param_groups[0]["lr"]] * 2, rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_systems_have_their_heads_their_course_and_none_of_their_faults() -> None:
    vlg, pixelplay, vit = (build_config(name) for name in ("vlg-resnet50", "pixelplay-convnext-tiny", "sports-vit-b16"))
    assert vlg.model.head == "512-relu-dropout0.5-linear" and vlg.optim.name == "adam" and vlg.optim.weight_decay
    assert (vlg.augment.crop, vlg.data.image_size) == ("squash", 224)
    spec = image_spec(vlg.model.name, vlg.data.image_size, vlg.data.crop_mode, vlg.data.crop_pct)
    assert (spec.crop_mode, spec.crop_pct, spec.train_size, spec.eval_size) == ("squash", 1.0, 224, 224)
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "ImageNet's"
    assert pixelplay.model.head.startswith("512-bn-dropout0.6-relu-linear-dropout")
    assert (pixelplay.loop.early_stop, pixelplay.loop.early_stop_metric) == (3, "loss")
    assert pixelplay.data.sampler == "weighted" and pixelplay.augment.cutmix and pixelplay.augment.mixup
    assert vit.loop.epochs == 50 and vit.store.keep_epochs == (10, 20, 30, 40, 50)
    for config in (vlg, pixelplay, vit):
        assert config.data.val == "auto" and config.data.leaks == "refuse" and config.augment.hflip == 0.5


def test_models_lists_exact_parameters_and_preprocessing() -> None:
    result = CliRunner().invoke(models, ["test_resnet", "--json"], catch_exceptions=False)
    (row,) = json.loads(result.stdout)
    wanted = timm.create_model("test_resnet")
    assert row["parameters"] == sum(parameter.numel() for parameter in wanted.parameters())
    assert (row["name"], row["train_size"], row["interpolation"]) == ("test_resnet.r160_in1k", 160, "bilinear")
    assert row["mean"] == [0.5, 0.5, 0.5]


def test_models_understands_aliases_patterns_and_names_without_weights() -> None:
    table = CliRunner().invoke(models, ["swinv2_large_256"], catch_exceptions=False).stdout
    assert "196.74 M" in table
    assert "256" in table
    names = [row["name"] for row in json.loads(CliRunner().invoke(models, ["test_v?t*", "--json"]).stdout)]
    assert {"test_vit.r160_in1k", "test_vit4"} <= set(names)


def test_models_answers_an_unknown_name_with_the_nearest() -> None:
    error = CliRunner().invoke(models, ["swinv2_large_window12_384"]).exception
    assert "did you mean swinv2_large_window12to24_192to384.ms_in22k_ft_in1k" in str(error)


def test_recipes_prints_a_file_that_loads_again_as_it_is() -> None:
    assert CliRunner().invoke(recipes, ["quick"]).stdout == recipe_text("quick")
    assert json.loads(CliRunner().invoke(recipes, ["quick", "--json"]).stdout) == load_recipe("quick")
    listed = json.loads(CliRunner().invoke(recipes, ["--json"]).stdout)
    assert listed == [{"name": name, **recipe_header(name)} for name in recipe_names()]
    (vit,) = (row for row in listed if row["name"] == "sports-vit-b16")
    assert [command.split()[1] for command in vit["commands"]] == ["train", "resume", "eval-ensemble"]
    assert vit["about"].startswith("ViT-B/16 for 100 sports") and vit["notes"].startswith("DIR may be a CSV list")
    assert vit["expected"].startswith("not measured: ")
    assert all(name in CliRunner().invoke(recipes).stdout for name in recipe_names())
