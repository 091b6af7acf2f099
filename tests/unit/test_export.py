"""What a format needs, what a file says of itself, and when two models agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sports_ray.errors import ConfigError, ExportError
from sports_ray.export.check import Images, compare
from sports_ray.export.description import describe, to_json
from sports_ray.export.formats import FORMATS, Format
from sports_ray.predict.member import Member, find_member
from tests.support.members import make_member


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Member:
    return find_member(str(make_member(tmp_path_factory.mktemp("runs"), "a")), "")


def test_missing_packages_are_named_with_the_extra_that_brings_them() -> None:
    lacking = replace(FORMATS["onnx"], packages=("json", "no_such_package", "nor_this_one"))
    with pytest.raises(ConfigError) as caught:
        lacking.converter()
    assert str(caught.value) == (
        "--format onnx; got no no_such_package, nor_this_one; wanted the extra [onnx]; cure: pip install 'sports-ray[onnx]'"
    )


@pytest.mark.parametrize("format", [one for one in FORMATS.values() if one.packages], ids=lambda one: one.name)
def test_the_extra_that_an_error_names_is_there(format: Format) -> None:
    import tomllib

    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for package in format.packages:
        assert any(line.startswith(package.replace("_", "-")) for line in extras[format.name]), package


def test_thresholds_travel_and_say_that_classes_do_not_exclude_each_other(member: Member) -> None:
    about = describe(member, {"step": 3, "thresholds": [0.5, 0.25, 0.5, 0.75]}, "ema", dynamic=True)
    assert about["activation"] == "sigmoid" and about["thresholds"] == [0.5, 0.25, 0.5, 0.75]
    assert about["input"]["shape"] == ["batch", 3, 32, 32] and about["output"]["shape"] == ["batch", 4]
    alone = describe(member, {"step": 3}, "model", dynamic=False)
    assert alone["activation"] == "softmax" and "thresholds" not in alone and alone["input"]["shape"][0] == 1


@pytest.mark.parametrize("size", [1e-3, 1.0, 50.0])
def test_what_may_differ_is_a_share_of_the_logits_and_so_small_ones_prove_something(
    member: Member, size: float
) -> None:
    """A file that answers nothing but zeros would agree to 1e-4 with a model whose logits are that small."""
    about = describe(member, {}, "model", dynamic=True)
    images = Images(np.zeros((9, 3, 32, 32), np.uint8), "images")
    expected = (np.random.default_rng(0).normal(0, 1, (9, 4)) * size).astype(np.float32)

    def answers(error: float) -> object:
        rows = iter(expected + np.float32(error * np.abs(expected).max()))
        return compare(lambda part: np.array([next(rows) for _ in part]), to_json(about), about, images, expected, True)

    assert answers(0.5e-4).batches == (1, 2, 5)  # type: ignore[attr-defined]
    for error in (2e-4, -2e-4, float("nan"), float("inf")):
        with pytest.raises(ExportError, match="does not compute what the original does"):
            answers(error)
    with pytest.raises(ExportError, match="got logits"):
        compare(lambda part: np.zeros((len(part), 3), np.float32), to_json(about), about, images, expected, True)
