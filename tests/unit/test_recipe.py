"""Recipes, flags and `--set` become one config; TOML keeps it whole; the identity says which runs are the same run."""

from __future__ import annotations

import dataclasses
import random
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from sports_ray.checked import field_types
from sports_ray.config import PhaseConfig, TrainConfig
from sports_ray.errors import ConfigError
from sports_ray.recipe import (
    build_config,
    changed_keys,
    config_from_dict,
    config_to_dict,
    digest,
    identity,
    parse_override,
    to_toml,
)

KEYS = [f"{section}.{name}" for section, cls in field_types(TrainConfig).items() for name in field_types(cls)]
HOW = {
    *("data.root", "data.loader_processes", "data.cache_gb", "data.pack_cache", "data.pack_cache_gb"),
    *("loop.eval_batch", "loop.epochs", "loop.extensions"),
}
"""Keys outside store and cluster that say how a run is computed, not what."""


def other_value(key: str, old: Any) -> Any:
    """A valid value of a key that is not `old`."""
    special: dict[str, Any] = {
        "augment.crop_scale": [0.5, 0.75],
        "augment.crop_ratio": [0.5, 1.5],
        "optim.betas": [0.8, 0.95],
        "loop.lanes": 3,
        "loop.global_batch": 48,
        "store.every_seconds": 2.5,
        "loop.phases": [{"epochs": 1, "train": "head", "lr_scale": 0.5}],
        "loop.extensions": [{"after": 2, "schedule": "restart"}],
        "store.keep_epochs": [1, 3],
        "data.classes": ["tennis", "ice *"],
        "data.cache_gb": 2.5,
        "augment.policy": "auto",
    }
    if key in special:
        return special[key]
    section, name = key.split(".")
    cls = field_types(TrainConfig)[section]
    kind = field_types(cls)[name]
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != old)
    if kind is bool:
        return not old
    if kind is str:
        return f'{old} "quoted" \\ tab\t new\nline é 球 \x7f \x00'
    low, high = cls.LIMITS[name]
    choices = [low + 2, low + 1, low, high] if kind is int else [low + 0.25, (low + high) / 2]
    return next(kind(value) for value in choices if value != old and low <= value <= high)


def with_value(key: str, value: Any) -> TrainConfig:
    section, name = key.split(".")
    return config_from_dict({section: {name: value}})


@pytest.mark.parametrize("key", KEYS)
def test_toml_of_any_setting_reads_back_to_the_same_config(key: str) -> None:
    section, name = key.split(".")
    old = getattr(getattr(TrainConfig(), section), name)
    config = with_value(key, other_value(key, old))
    assert getattr(getattr(config, section), name) != old
    again = config_from_dict(tomllib.loads(to_toml(config)))
    assert again == config


def test_toml_of_many_settings_at_once_reads_back_exactly() -> None:
    draw = random.Random(7)
    for _ in range(50):
        settings = config_to_dict(TrainConfig())
        for key in draw.sample(KEYS, 20):
            section, name = key.split(".")
            settings[section][name] = other_value(key, settings[section][name])
        settings["optim"]["lr"] = draw.random() * 10 ** draw.randint(-12, 1)
        settings["loop"]["seed"] = draw.randrange(2**63)
        config = config_from_dict(settings)
        assert config_from_dict(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("optim.lrr=1", "optim.lr"),
        ("loop.epoch=3", "loop.epochs"),
        ("optim.momentun=3", "optim.momentum"),
        ("augmet.mixup=1", "augment.mixup"),
        ("store.every_step=1", "store.every_steps"),
        ("data.imagesize=1", "data.image_size"),
    ],
)
def test_unknown_key_is_answered_with_the_nearest_known_one(text: str, near: str) -> None:
    key = text.partition("=")[0]
    with pytest.raises(ConfigError) as error:
        build_config(overrides=[text])
    assert str(error.value).startswith(f"setting; got {key}; wanted a known key of data, model,")
    assert str(error.value).endswith(f"cure: did you mean {near}?")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optim.lr=3e-4", 3e-4),
        ("optim.lr = 1", 1.0),
        ("loop.epochs=12", 12),
        ("model.compile=true", True),
        ("ema.enabled=false", False),
        ("model.name=resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("model.weights=/tmp/a=b.pth", "/tmp/a=b.pth"),
        ('data.root="my photos"', "my photos"),
        ("data.root=123", "123"),
        ("data.classes=tennis, ice hockey,foot*", ("tennis", "ice hockey", "foot*")),
        ('data.classes=["tennis", "a,b"]', ("tennis", "a,b")),
        ("augment.crop_scale=0.5,0.75", (0.5, 0.75)),
        ("augment.crop_scale=[0.5, 0.75]", (0.5, 0.75)),
        ("optim.betas=0.8, 0.9", (0.8, 0.9)),
        ("augment.policy=rand-m7-n2", "rand-m7-n2"),
        ("cluster.workers=2", "2"),
        (
            'loop.phases=[{epochs=1, train="head"}, {epochs=2, train="layer4*", lr_scale=0.5}]',
            (PhaseConfig(epochs=1), PhaseConfig(epochs=2, train="layer4*", lr_scale=0.5)),
        ),
        ("loop.phases=[]", ()),
        ("store.keep_epochs=10", (10,)),
        ("store.keep_epochs=10, 20", (10, 20)),
    ],
)
def test_override_is_read_as_its_key_wants_it(text: str, value: Any) -> None:
    section, name = text.partition("=")[0].strip().split(".")
    found = getattr(getattr(build_config(overrides=[text]), section), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lr", "--set; got optim.lr; wanted section.key=value"),
        ("lr=3", "--set; got lr=3; wanted section.key=value"),
        ("a.b.c=3", "--set; got a.b.c=3; wanted section.key=value"),
        ("optim.lr=fast", "optim.lr; got 'fast'; wanted a number"),
        ("optim.lr=", "optim.lr; got ''; wanted a number"),
        ("loop.epochs=3.5", "loop.epochs; got 3.5; wanted a whole number"),
        ("loop.epochs=0", "loop.epochs; got 0; wanted a value from 1 to 1e+06"),
        ("model.compile=yes", "model.compile; got 'yes'; wanted true or false"),
        ("loop.precision=fp8", "loop.precision; got fp8; wanted auto or bf16 or fp16 or fp32"),
        ("optim.betas=a,b", "optim.betas; got 'a,b'; wanted a list"),
        ("optim.betas=0.9,1.0", "optim.betas; got [0.9, 1.0]; wanted two values from 0 to below 1"),
        ("augment.crop_scale=0.9,0.1", "augment.crop_scale; got [0.9, 0.1]; wanted 0 < low <= high <= 1"),
        ("loop.phases=1", "loop.phases; got 1; wanted a list of tables"),
        ("loop.phases=head", "loop.phases; got 'head'; wanted a list of tables"),
        ("loop.phases=[{epoch=1}]", "loop.phases; got {'epoch': 1}; wanted tables with epochs, train, lr_scale"),
        (
            "loop.phases=[{epochs=30}]",
            "loop.phases; got 30 epochs; wanted fewer than loop.epochs = 30; cure: --epochs 31 or more, or shorter",
        ),
        (
            "store.keep_epochs=5,31",
            "store.keep_epochs; got [5, 31]; wanted epochs from 1 to loop.epochs = 30; cure: --epochs 31 or more, or others",
        ),
        ("store.keep_epochs=ten", "store.keep_epochs; got 'ten'; wanted a list"),
        ("loop.extensions=[{after=30}]", "loop.extensions; got more epochs after 30; wanted rising, below loop.epochs"),
        (
            "loop.extensions=[{after=3, schedule='anew'}]",
            "extension.schedule; got anew; wanted stretch or restart or hold",
        ),
        ("loop.lanes=33", "loop.lanes; got 33; wanted at most loop.global_batch = 32"),
        ("store.every_seconds=0", "store; got every_steps = 0 and every_seconds = 0; wanted at least one above 0"),
    ],
)
def test_override_that_cannot_be_is_refused_with_its_reason(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_config(overrides=[text])
    assert str(error.value).startswith(message)


def test_later_wins_recipe_then_flag_then_set(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[loop]\nepochs = 5\nseed = 5\nglobal_batch = 5\n[optim]\nlr = 0.5\n")
    flags = {"loop.epochs": 6, "loop.seed": 6, "model.name": None}
    config = build_config(str(recipe), flags, ["loop.epochs=7"])
    assert (config.loop.epochs, config.loop.seed, config.loop.global_batch, config.optim.lr) == (7, 6, 5, 0.5)
    assert config.loop.eval_batch == TrainConfig().loop.eval_batch and config.model.name == ""
    assert build_config(overrides=["loop.seed=1", "loop.seed=2"]).loop.seed == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[loop\n", "recipe; got "),
        (b"\xff\xfe", "recipe; got "),
        (b"epochs = 3\n", "recipe "),
        (b"[loops]\n", "setting; got loops; wanted a known key of data"),
        (b"[loop]\nepoch = 3\n", "setting; got loop.epoch; wanted a known key"),
        (b"[loop]\nphases = 3\n", "loop.phases; got 3; wanted a list of tables"),
    ],
)
def test_broken_recipe_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        build_config(str(path))
    assert str(error.value).startswith(message)


def test_recipe_with_an_empty_section_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("[optim]\n")
    assert build_config(str(path)) == TrainConfig()


def test_unknown_recipe_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got quik; wanted one of .*; cure: did you mean quick"):
        build_config("quik")
    with pytest.raises(ConfigError, match="wanted a readable TOML file"):
        build_config(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("key", KEYS)
def test_identity_holds_what_a_run_is_and_leaves_out_how(key: str) -> None:
    section, name = key.split(".")
    config = TrainConfig()
    changed = with_value(key, other_value(key, getattr(getattr(config, section), name)))
    how = key in HOW or section in ("store", "cluster")
    assert (key not in identity(changed)) == how
    assert (identity(changed) == identity(config)) == how
    # A default name must not join runs of different lengths, though a named run may be extended.
    long = key in ("loop.epochs", "loop.extensions")
    assert (digest(changed, "data") == digest(config, "data")) == (how and not long)


def test_digest_changes_with_the_data() -> None:
    first, second = digest(TrainConfig(), "a"), digest(TrainConfig(), "b")
    assert first != second and len(first) == len(second) == 8


def test_identity_survives_the_record_on_disk() -> None:
    import json

    config = with_value("loop.phases", [{"epochs": 1, "train": "head"}])
    stored = json.loads(json.dumps(identity(config)))
    assert changed_keys(stored, identity(config)) == []
    other = dataclasses.replace(config, loop=dataclasses.replace(config.loop, seed=4))
    assert changed_keys(stored, identity(other)) == ["loop.seed: 0 -> 4"]


def test_override_keeps_the_key_and_the_value() -> None:
    assert parse_override(" optim.lr = 2 ") == ("optim.lr", 2)
