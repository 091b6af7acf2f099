"""The table of architectures: exact parameters, and accuracies that a package really tells."""

from __future__ import annotations

import pytest
import torch

from sports_ray.bench.architectures import PURPOSES, describe, published_top1, purpose_of
from sports_ray.errors import WeightsError
from sports_ray.model.build import resolve_name
from sports_ray.model.eager_timm import timm
from sports_ray.recipe import load_recipe, recipe_names


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "regnety_004.tv2_in1k"])
def test_parameters_are_those_of_the_model_that_is_built(name: str) -> None:
    built = timm.create_model(name)
    assert describe(name).parameters == sum(parameter.numel() for parameter in built.parameters())


def test_published_accuracies_are_those_of_the_same_file_or_left_out() -> None:
    from torchvision.models import RegNet_Y_400MF_Weights as Weights

    assert published_top1("regnety_004.tv2_in1k") == (0.75804, "torchvision, regnet_y_400mf IMAGENET1K_V2")
    assert Weights.IMAGENET1K_V2.meta["num_params"] == describe("regnety_004.tv2_in1k").parameters
    # Of the same architecture, but other weights.
    assert published_top1("resnet50.a1_in1k") == (None, "") and published_top1("resnet50.tv_in1k")[0] == 0.7613
    assert published_top1("test_resnet") == (None, "")


def test_the_models_of_recipes_are_told_what_they_are_for() -> None:
    names = {resolve_name(load_recipe(name)["model"]["name"]) for name in recipe_names()}
    assert all(map(purpose_of, names)) and describe("test_resnet").purpose == purpose_of("test_resnet")
    assert list(PURPOSES)[-1] == "swin*", "the first pattern that fits counts"


def test_an_unknown_name_is_answered_with_the_right_one() -> None:
    with pytest.raises(WeightsError, match="did you mean resnet50"):
        describe("resnet50q")


def test_building_on_the_meta_device_leaves_the_generator_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    describe("test_resnet")
    assert torch.equal(torch.get_rng_state(), state)
