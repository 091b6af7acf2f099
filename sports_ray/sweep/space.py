"""What is searched: keys of the config with alternatives or ranges; settings as a pure function of (seed, backbone, index)."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from sports_ray.checked import field_types
from sports_ray.config import TrainConfig
from sports_ray.errors import ConfigError
from sports_ray.recipe import parse_override

Params = dict[str, Any]
"""{"section.key": value}, as JSON holds it."""

_NUMBER = r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"(log:)?({_NUMBER})\.\.({_NUMBER})(?:/(\d+))?")
_FORMS = "log:1e-5..1e-3, 0..0.3, 4..16, 0..0.4/5 (five values), 0,0.2,0.8 or true,false"
_FIXED = {
    "model.name": "backbones are given with --models",
    "loop.eval_batch": "it changes how a score is computed, not the score",
    "loop.early_stop_metric": "trials could not be compared by it",
}
_FREE = {"data.image_size", "data.crop_mode", "data.crop_pct", "data.sampler", "data.min_per_class"}
_FIXED_SECTIONS = {
    "data": "trials must share their photographs; how these are sized and sampled may differ",
    "store": "it changes where a run is kept, not what it learns",
    "cluster": "it changes how a run is computed, not what it learns",
}
_DRAWS = 1000
"""Draws in a row without new settings after which all that there are count as tried."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One searched key: alternatives, or a range with both ends included."""

    key: str
    text: str
    """As it was given."""
    values: tuple[Any, ...] = ()
    """Alternatives; empty for a range."""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    """Whether a range has whole numbers only."""
    backbone: str = ""
    """The only backbone that it is for; "": all."""

    def at(self, share: float) -> Any:
        """The value at a share in [0, 1) of the alternatives or of the range; ranges are rounded to four digits."""
        if self.values:
            return self.values[int(share * len(self.values))]
        if self.whole and not self.log:
            return int(self.low + math.floor(share * (self.high - self.low + 1)))
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(self.high, max(self.low, float(f"{value:.4g}")))
        return int(round(value)) if self.whole else value


def parse_space(texts: Iterable[str], backbones: Sequence[str]) -> tuple[Parameter, ...]:
    """`[MODEL:]section.key=SPEC` texts -> parameters. ConfigError for a wrong key, form, value or range."""
    found = [_parse(text, backbones) for text in texts]
    for one, other in itertools.combinations(found, 2):
        if one.key == other.key and (one.backbone == other.backbone or not (one.backbone and other.backbone)):
            raise ConfigError("--space", got=f"{one.key} twice", want="each key once for a backbone")
    return tuple(found)


def space_of(space: Sequence[Parameter], backbone: str) -> tuple[Parameter, ...]:
    """The parameters that are searched for one backbone."""
    return tuple(one for one in space if one.backbone in ("", backbone))


def _parse(text: str, backbones: Sequence[str]) -> Parameter:
    left, equals, spec = (part.strip() for part in text.partition("="))
    backbone, _, key = left.rpartition(":")
    if not equals or not spec:
        raise ConfigError("--space", got=text, want="section.key=VALUES", cure=f"VALUES such as {_FORMS}")
    if backbone and backbone not in backbones:
        raise ConfigError("--space", got=text, want=f"a backbone of --models: {', '.join(backbones)}")
    # Names a key that is none, with the nearest one; the value is looked at below.
    parse_override(f"{key}=0" if key.count(".") == 1 else key)
    _check_searchable(key)
    section, name = key.split(".")
    kind = field_types(field_types(TrainConfig)[section])[name]
    match = _RANGE.fullmatch(spec)
    values = _steps(match, key, text, kind) if match and match[4] else () if match else _alternatives(key, spec, kind)
    for value in values:
        _check_value(key, value)
    if len({json.dumps(value) for value in values}) < len(values):
        raise ConfigError("--space", got=text, want="each value once")
    if values or match is None:
        return Parameter(key, spec, tuple(values), backbone=backbone)
    low, high = _ends(match, key, text, kind)
    return Parameter(key, spec, (), low, high, bool(match[1]), kind is int, backbone)


def _check_searchable(key: str) -> None:
    reason = _FIXED.get(key) or (key not in _FREE and _FIXED_SECTIONS.get(key.partition(".")[0]))
    if reason:
        raise ConfigError("--space", got=key, want=f"a key whose values lead to scores that can be compared ({reason})")


def _check_value(key: str, value: Any) -> None:
    """ConfigError where the config would not take this value, whatever the others are."""
    section, name = key.split(".")
    if not isinstance(value, list) and get_origin(field_types(field_types(TrainConfig)[section])[name]) is tuple:
        raise ConfigError("--space", got=f"{key}={value}", want="lists, apart by ';'", cure=f"{key}=0.2,1;0.5,1")
    field_types(TrainConfig)[section](**{name: value})


def _alternatives(key: str, spec: str, kind: Any) -> list[Any]:
    """Values apart by ",", or by ";" where a value has commas itself."""
    is_list = get_origin(kind) is tuple
    parts = spec.split(";") if ";" in spec or is_list else spec.split(",")
    if not all(part.strip() for part in parts):
        raise ConfigError("--space", got=f"{key}={spec}", want=_FORMS)
    return [parse_override(f"{key}={part.strip()}")[1] for part in parts]


def _ends(match: re.Match[str], key: str, text: str, kind: Any) -> tuple[float, float]:
    """Both ends of a range, checked."""
    if kind not in (int, float):
        raise ConfigError("--space", got=text, want=f"alternatives: {key} is no number", cure="apart by commas")
    low, high = float(match[2]), float(match[3])
    if kind is int and not (low.is_integer() and high.is_integer()):
        raise ConfigError("--space", got=text, want=f"whole numbers for {key}")
    if not low < high:
        raise ConfigError("--space", got=text, want="LOW..HIGH with LOW < HIGH")
    if match[1] and low <= 0:
        raise ConfigError("--space", got=text, want="above 0 for log:", cure=f"{key}={match[2]}..{match[3]}")
    for end in (low, high):
        _check_value(key, int(end) if kind is int else end)
    return low, high


def _steps(match: re.Match[str], key: str, text: str, kind: Any) -> list[Any]:
    """The N values of LOW..HIGH/N, ends included."""
    low, high = _ends(match, key, text, kind)
    count = int(match[4])
    if not 2 <= count <= 1000:
        raise ConfigError("--space", got=text, want="from 2 to 1,000 values")
    shares = [place / (count - 1) for place in range(count)]
    if match[1]:
        values = [math.exp(math.log(low) + share * (math.log(high) - math.log(low))) for share in shares]
    else:
        values = [low + share * (high - low) for share in shares]
    rounded = [float(f"{value:.4g}") for value in values]
    return list(dict.fromkeys(int(round(value)) for value in rounded)) if kind is int else rounded


def grid_size(space: Sequence[Parameter]) -> int:
    """How many settings a grid has. ConfigError for a range without a number of values."""
    for one in space:
        if not one.values:
            raise ConfigError(
                "--search grid", got=f"the range {one.key}={one.text}", want="a number of values", cure=f"{one.text}/5"
            )
    return math.prod(len(one.values) for one in space)


def grid_params(space: Sequence[Parameter], index: int) -> Params:
    """Settings number `index` of the grid; the last key changes first."""
    params: Params = {}
    for one in reversed(space):
        index, place = divmod(index, len(one.values))
        params[one.key] = one.values[place]
    return {one.key: params[one.key] for one in space}


def random_params(space: Sequence[Parameter], seed: int, backbone: str, count: int) -> list[Params]:
    """The first `count` settings: number i is a function of (seed, backbone, i) and the space, whatever `count` is.

    Each key is drawn by itself, so that another one more or less leaves it alone. Settings drawn before are left out;
    there are fewer than `count` where the space has no more."""
    found: dict[str, Params] = {}
    draw = idle = 0
    while len(found) < count and idle < _DRAWS:
        params = {one.key: one.at(share(seed, backbone, draw, one.key)) for one in space}
        text = json.dumps(params, sort_keys=True)
        idle = idle + 1 if text in found else 0
        found.setdefault(text, params)
        draw += 1
    return list(found.values())


def share(seed: int, *what: object) -> float:
    """A number in [0, 1), uniform, that is a function of the arguments: the first 53 bits of a sha256."""
    text = json.dumps([seed, *what])
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 11) / 2**53
