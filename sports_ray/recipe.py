"""Reads recipes, flags and overrides into one TrainConfig, writes it as TOML, and tells which runs are the same run.

Order of starting points, later wins: 1. the defaults of `config.py`  2. a recipe (`--recipe`)  3. named flags  4. `--set`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

from sports_ray.checked import field_types
from sports_ray.config import LoopConfig, TrainConfig
from sports_ray.errors import ConfigError

# What says *how* a run is computed and not *what*: another value resumes the same run.
NOT_IDENTITY = frozenset(
    {
        "data.root",
        "data.loader_processes",
        "data.cache_gb",
        "data.pack_cache",
        "data.pack_cache_gb",
        "loop.eval_batch",
        "loop.epochs",
        "loop.extensions",
    }
)
NOT_IDENTITY_SECTIONS = frozenset({"store", "cluster"})
# Keys that came later, whose default changes nothing: at it they are left out, so that older runs keep their names and go on.
LATER = frozenset(
    {
        "model.head",
        "data.crop_mode",
        "data.crop_pct",
        "data.folds",
        "data.fold",
        "data.sampler",
        "data.min_per_class",
        "loop.class_weights",
        "data.labels",
        "loss.multilabel",
        "loss.gamma",
        "loss.alpha",
        "loss.pos_weight",
        "loss.pos_weight_most",
    }
)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    folder = resources.files("sports_ray") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """The TOML text of a recipe of the package, or of a file when `name` ends in .toml."""
    path = Path(name)
    if name.endswith(".toml"):
        if not path.is_file():
            raise ConfigError("recipe", got=name, want="a readable TOML file")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("recipe", got=f"{name}: {error}", want="a readable TOML file, in UTF-8") from error
    if name not in recipe_names():
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError("recipe", got=name, want="one of " + ", ".join(recipe_names()), cure=hint + "or a .toml file")
    return (resources.files("sports_ray") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")


def recipe_header(name: str) -> dict[str, Any]:
    """What the comment above a recipe says: {`about`: its first line, `commands`, `notes`, `expected`}."""
    lines = []
    for line in recipe_text(name).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    commands = [line.strip() for line in lines if line.startswith("  sports-ray ")]
    prose = " ".join(line for line in lines[1:] if not line.startswith("  sports-ray ")).strip()
    notes, _, expected = prose.partition("Expected: ")
    return {"about": lines[0] if lines else "", "commands": commands, "notes": notes.strip(), "expected": expected}


def load_recipe(name: str) -> dict[str, Any]:
    """A recipe as nested settings, unchecked: {section: {key: value}}."""
    try:
        return tomllib.loads(recipe_text(name))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("recipe", got=f"{name}: {error}", want="valid TOML") from error


def parse_override(text: str) -> tuple[str, Any]:
    """`section.key=value` -> (`section.key`, value); the value is read as TOML, else as plain text."""
    key, equals, raw = text.partition("=")
    key, raw = key.strip(), raw.strip()
    if not equals or key.count(".") != 1:
        raise ConfigError("--set", got=text, want="section.key=value", cure="for example --set optim.lr=3e-4")
    section, name = key.split(".")
    kind = _field_kind(section, name)
    if kind is str or (get_origin(kind) is tuple and get_args(kind)[0] is str and not raw.startswith("[")):
        return key, raw.strip("\"'") if kind is str else [part.strip() for part in raw.split(",") if part.strip()]
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    if get_origin(kind) is tuple and get_args(kind)[0] is int and type(value) is int:
        return key, [value]
    if get_origin(kind) is tuple and isinstance(value, str) and "," in value:
        with suppress(tomllib.TOMLDecodeError):
            value = tomllib.loads(f"value = [{raw}]")["value"]
    return key, value


def build_config(
    recipe: str | None = None, flags: Mapping[str, Any] | None = None, overrides: Iterable[str] = ()
) -> TrainConfig:
    """One checked TrainConfig from a recipe, flags ({"loop.epochs": 3}; None is skipped) and `section.key=value` texts.

    Raises ConfigError for an unknown key (with the nearest known one), a wrong type or a value out of range.
    """
    settings: dict[str, dict[str, Any]] = {}
    if recipe:
        for section, values in load_recipe(recipe).items():
            if not isinstance(values, dict):
                raise ConfigError(f"recipe {recipe}", got=section, want="sections such as [optim]")
            settings[section] = dict(values)
    chosen = {key: value for key, value in (flags or {}).items() if value is not None}
    chosen.update(parse_override(text) for text in overrides)
    for key, value in chosen.items():
        section, name = key.split(".")
        settings.setdefault(section, {})[name] = value
    return config_from_dict(settings)


def config_from_dict(settings: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """Nested settings -> TrainConfig; the inverse of `config_to_dict`."""
    sections: dict[str, Any] = {}
    kinds = field_types(TrainConfig)
    for section, values in settings.items():
        for name in values if section in kinds else [*values, ""]:
            _field_kind(section, name)
        arguments = dict(values)
        for name, (kind, *_) in _tables(kinds[section]).items():
            if name in arguments:
                arguments[name] = _records(f"{section}.{name}", arguments[name], kind)
        sections[section] = kinds[section](**arguments)
    return _consistent(TrainConfig(**sections))


def _tables(section: Any) -> dict[str, tuple[Any, ...]]:
    """Keys of a section that hold a list of tables: name -> (record's class, ...)."""
    found = {name: get_args(kind) for name, kind in field_types(section).items() if get_origin(kind) is tuple}
    return {name: kinds for name, kinds in found.items() if is_dataclass(kinds[0])}


def _records(key: str, items: Any, kind: Any) -> tuple[Any, ...]:
    names = ", ".join(field_types(kind))
    if not isinstance(items, (list, tuple)):
        raise ConfigError(key, got=repr(items), want=f"a list of tables with {names}")
    for item in items:
        if not isinstance(item, Mapping) or not set(item) <= field_types(kind).keys():
            raise ConfigError(key, got=item, want=f"tables with {names}")
    return tuple(kind(**item) for item in items)


def _consistent(config: TrainConfig) -> TrainConfig:
    """Checks what concerns more than one key."""
    loop = config.loop
    if loop.lanes > loop.global_batch:
        raise ConfigError("loop.lanes", got=loop.lanes, want=f"at most loop.global_batch = {loop.global_batch}")
    if not config.store.every_steps and not config.store.every_seconds:
        raise ConfigError("store", got="every_steps = 0 and every_seconds = 0", want="at least one above 0")
    for key, (low, high) in {
        "augment.crop_scale": config.augment.crop_scale,
        "augment.crop_ratio": config.augment.crop_ratio,
    }.items():
        if not 0 < low <= high or (key.endswith("scale") and high > 1):
            raise ConfigError(key, got=[low, high], want="0 < low <= high" + (" <= 1" if key.endswith("scale") else ""))
    if 0 < config.data.crop_pct < 0.1:
        raise ConfigError("data.crop_pct", got=config.data.crop_pct, want="0, or from 0.1 to 1")
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise ConfigError("optim.betas", got=list(config.optim.betas), want="two values from 0 to below 1")
    _consistent_course(loop)
    if not all(1 <= epoch <= loop.epochs for epoch in config.store.keep_epochs):
        want = f"epochs from 1 to loop.epochs = {loop.epochs}"
        raise ConfigError(
            "store.keep_epochs",
            got=list(config.store.keep_epochs),
            want=want,
            cure=f"--epochs {max(config.store.keep_epochs)} or more, or others with --set store.keep_epochs={loop.epochs}",
        )
    return config


def _consistent_course(loop: LoopConfig) -> None:
    lengths = [*(extension.after for extension in loop.extensions), loop.epochs]
    if lengths != sorted(set(lengths)):
        got = f"more epochs after {', '.join(map(str, lengths[:-1]))}"
        raise ConfigError("loop.extensions", got=got, want=f"rising, below loop.epochs = {loop.epochs}")
    phases = sum(phase.epochs for phase in loop.phases)
    if phases >= lengths[0] and loop.phases:
        planned = "loop.epochs" if len(lengths) == 1 else "those before the first extension"
        raise ConfigError(
            "loop.phases",
            got=f"{phases} epochs",
            want=f"fewer than {planned} = {lengths[0]}",
            cure=f"--epochs {phases + 1} or more, or shorter ones: --set \"loop.phases=[{{epochs=1, train='head'}}]\"",
        )


def _field_kind(section: str, name: str) -> Any:
    """Type of a config key, or ConfigError with the nearest known key."""
    sections = field_types(TrainConfig)
    if section in sections and name in field_types(sections[section]):
        return field_types(sections[section])[name]
    known = [f"{s}.{f}" for s, cls in sections.items() for f in field_types(cls)]
    near = difflib.get_close_matches(f"{section}.{name}", known, n=1, cutoff=0.5)
    raise ConfigError(
        "setting",
        got=f"{section}.{name}".rstrip("."),
        want=f"a known key of {', '.join(sections)}",
        cure=f"did you mean {near[0]}?" if near else "see `sports-ray train --dry-run` for all keys",
    )


def config_to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values (dataclasses to dicts, tuples to lists), as JSON and TOML take them."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(config)


def to_toml(config: TrainConfig) -> str:
    """The whole config as TOML; reading it back gives an equal config."""
    lines: list[str] = []
    for section, values in config_to_dict(config).items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML forbids it raw, JSON does not
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml_value(item)}" for key, item in value.items()) + " }"
    return repr(value)


def identity(config: TrainConfig) -> dict[str, Any]:
    """What makes a run this run: {"section.key": value} without what only says how it is computed, and without keys of
    LATER at their defaults."""
    found = {
        f"{section}.{key}": value
        for section, values in config_to_dict(config).items()
        if section not in NOT_IDENTITY_SECTIONS
        for key, value in values.items()
        if f"{section}.{key}" not in NOT_IDENTITY
    }
    defaults = config_to_dict(TrainConfig())
    return {
        key: value
        for key, value in found.items()
        if key not in LATER or value != defaults[(at := key.split("."))[0]][at[1]]
    }


def digest(config: TrainConfig, data_fingerprint: str) -> str:
    """Eight hex digits of the identity, the epochs and the data's content; a run's default name ends in it."""
    content = {**identity(config), "loop.epochs": config.loop.epochs, "data": data_fingerprint}
    if config.loop.extensions:
        content["loop.extensions"] = config_to_dict(config)["loop"]["extensions"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines `key: old -> new` for each identity key that differs."""
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
