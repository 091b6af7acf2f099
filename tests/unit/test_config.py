"""Settings are checked when they are made, and each complaint names the key, what it got and what it takes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any, Union, get_args, get_origin

import pytest

from sports_ray.checked import field_types
from sports_ray.config import AugmentConfig, ExtensionConfig, LoopConfig, OptimConfig, PhaseConfig, TrainConfig
from sports_ray.errors import ConfigError

SECTIONS = {**field_types(TrainConfig), "phase": PhaseConfig, "extension": ExtensionConfig}
LIMITS = {f"{section}.{name}": limit for section, cls in SECTIONS.items() for name, limit in cls.LIMITS.items()}


def number_of(kind: Any) -> Any:
    """The number in a type such as Literal["auto"] | float; any other type as it is."""
    return next((part for part in get_args(kind) if part in (int, float)), kind) if get_origin(kind) is Union else kind


@pytest.mark.parametrize(
    ("section", "setting", "text"),
    [
        ("loop", {"epochs": "three"}, "loop.epochs; got 'three'; wanted a whole number"),
        ("loop", {"epochs": 2.0}, "loop.epochs; got 2.0; wanted a whole number"),
        ("loop", {"epochs": True}, "loop.epochs; got True; wanted a whole number"),
        ("optim", {"lr": "fast"}, "optim.lr; got 'fast'; wanted a number"),
        ("optim", {"lr": True}, "optim.lr; got True; wanted a number"),
        ("model", {"compile": 1}, "model.compile; got 1; wanted true or false"),
        ("data", {"root": 7}, "data.root; got 7; wanted text"),
        ("optim", {"name": "lion"}, "optim.name; got lion; wanted adamw or adam or sgd"),
        ("augment", {"crop_scale": 0.5}, "augment.crop_scale; got 0.5; wanted a list"),
        ("augment", {"crop_scale": (0.1, 0.2, 0.3)}, "augment.crop_scale; got [0.1, 0.2, 0.3]; wanted 2 values"),
        ("data", {"classes": "tennis"}, "data.classes; got 'tennis'; wanted a list"),
        ("data", {"classes": ("tennis", 3)}, "data.classes; got 3; wanted text"),
        ("loop", {"phases": (3,)}, "loop.phases; got 3; wanted PhaseConfig"),
        ("phase", {"epochs": 0}, "phase.epochs; got 0; wanted a value of at least 1"),
        ("store", {"every_seconds": "often"}, "store.every_seconds; got 'often'; wanted auto or a number"),
        ("store", {"every_seconds": True}, "store.every_seconds; got True; wanted auto or a number"),
        ("optim", {"lr": 101}, "optim.lr; got 101.0; wanted a value from 0 to 100"),
    ],
)
def test_wrong_value_is_refused_by_key_with_what_it_takes(section: str, setting: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        SECTIONS[section](**setting)
    assert str(error.value) == text


@pytest.mark.parametrize("key", LIMITS)
def test_every_limit_holds_at_both_ends_and_not_beyond(key: str) -> None:
    section, name = key.split(".")
    cls = SECTIONS[section]
    low, high = LIMITS[key]
    kind = number_of(field_types(cls)[name])
    inside = [low] if high == float("inf") else [low, high]
    for value in inside:
        assert getattr(cls(**{name: kind(value)}), name) == value
    for value in [low - 1] + ([high + 1] if high != float("inf") else []):
        with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
            cls(**{name: kind(value)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_no_record_could_hold_are_refused_everywhere(value: float) -> None:
    for section, cls in SECTIONS.items():
        for name, kind in field_types(cls).items():
            if number_of(kind) is float:
                with pytest.raises(ConfigError, match=f"{section}.{name}.*finite"):
                    cls(**{name: value})
    with pytest.raises(ConfigError, match="finite"):
        AugmentConfig(crop_ratio=(value, 1.0))


def test_harmless_conversions_are_made_and_types_are_then_exact() -> None:
    made = OptimConfig(lr=1, betas=[0, 1])  # type: ignore[arg-type]
    assert (made.lr, made.betas) == (1.0, (0.0, 1.0))
    assert type(made.lr) is float and type(made.betas) is tuple and type(made.betas[0]) is float


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(FrozenInstanceError):
        LoopConfig().epochs = 3  # type: ignore[misc]


def test_every_limit_is_of_a_field_that_exists_and_every_number_has_one_or_a_reason() -> None:
    numbers = {
        f"{section}.{name}" for section, cls in SECTIONS.items() for name, kind in field_types(cls).items()
        if number_of(kind) in (int, float)
    }  # fmt: skip
    assert set(LIMITS) <= numbers
    assert numbers - set(LIMITS) == {"data.cache_gb"}  # below 0 it is chosen, above it is as large as the memory


def test_every_section_has_its_defaults() -> None:
    assert all(getattr(TrainConfig(), item.name) == SECTIONS[item.name]() for item in fields(TrainConfig))
