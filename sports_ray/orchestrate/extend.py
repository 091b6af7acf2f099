"""More epochs for a run that exists: what it has recorded so far, and the extension that is asked for now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sports_ray.config import ExtensionConfig, TrainConfig
from sports_ray.errors import ConfigError, RunError

DEFAULT = "stretch"
MEANING = {
    "stretch": "as if planned so long from the start",
    "restart": "the schedule begins anew, warm-up included",
    "hold": "the rate that the run ended with",
}


def recorded(record: Mapping[str, Any]) -> tuple[ExtensionConfig, ...]:
    """The extensions that a run's record holds."""
    return tuple(ExtensionConfig(**one) for one in record["config"]["loop"].get("extensions", ()))


def extended(config: TrainConfig, record: Mapping[str, Any], name: str, asked: str, stopped_at: int) -> TrainConfig:
    """The config with the run's recorded extensions and, where it asks for more epochs than the run has, with a new one.

    `asked`: a schedule of MEANING, or empty: that of the config's own extension, else DEFAULT. `stopped_at`: the epoch in
    which early stopping ended the run; 0: it did not. Raises RunError for fewer epochs, another schedule than the recorded
    one, or more epochs after an early stop.
    """
    known, before, wanted = recorded(record), int(record["config"]["loop"]["epochs"]), config.loop.epochs
    if wanted < before:
        raise RunError(
            f"run {name}", got=f"--epochs {wanted}", want=f"at least its {before}", cure="another --run NAME"
        )
    if wanted > before and stopped_at:
        raise RunError(
            f"run {name} was stopped early, in epoch {stopped_at} of {before}",
            got=f"--epochs {wanted}",
            want="the epochs that it has: early stopping would end it again before the next step",
            cure="another --run NAME that begins with its --weights RUN/weights/last.safetensors",
        )
    if wanted == before and asked and asked not in {one.schedule for one in known[-1:]}:
        got = f"--extend {asked}, and no more epochs than its {before}"
        last = f"--extend {known[-1].schedule}, as it was extended" if known else "more epochs"
        raise RunError(f"run {name}", got=got, want=last, cure=f"--epochs N, more than {before}")
    given = config.loop.extensions
    schedule = asked or next((one.schedule for one in given[len(known) :]), DEFAULT)
    new = (ExtensionConfig(after=before, schedule=schedule),) if wanted > before else ()  # type: ignore[arg-type]
    if given not in ((), known, known + new):
        raise RunError(
            f"run {name} exists with other settings",
            got=f"loop.extensions: {_words(known)} -> {_words(given)}",
            want="those that it has recorded",
            cure="leave loop.extensions out: --epochs N --extend SCHEDULE records them",
        )
    return dataclasses.replace(config, loop=dataclasses.replace(config.loop, extensions=known + new))


def check_new(name: str, asked: str) -> None:
    """ConfigError where a run that is to be extended does not exist."""
    if asked:
        raise ConfigError(f"--extend {asked}", got=f"{name}, a new run", want="a run that exists", cure="leave it out")


def newest_words(config: TrainConfig, steps_per_epoch: int) -> str:
    """What the newest extension does to the rate, for people."""
    from sports_ray.model.optim import default_lr, learning_rate

    last, loop = config.loop.extensions[-1], config.loop
    peak = default_lr(config.optim, loop.global_batch, config.model.weights == "none")
    first = last.after * steps_per_epoch

    def rate(step: int) -> str:
        arguments = (peak, config.optim, loop.phases, steps_per_epoch, loop.epochs, loop.extensions)
        return f"{learning_rate(step, *arguments):.2e}"

    others = ", ".join(name for name in MEANING if name != last.schedule)
    return (
        f"{last.after} to {loop.epochs} epochs · {last.schedule}: {MEANING[last.schedule]} · the rate goes from "
        f"{rate(first - 1)} to {rate(first)} after epoch {last.after}, and ends at "
        f"{rate(loop.epochs * steps_per_epoch - 1)} (else: --extend {others})"
    )


def record_extension(record: dict[str, Any], config: TrainConfig, name: str) -> None:
    """Notes a new extension in the record; RunError if the run got another one since the plan was made."""
    known, before = recorded(record), int(record["config"]["loop"]["epochs"])
    new = config.loop.extensions[len(known) :]
    if config.loop.extensions[: len(known)] != known or [one.after for one in new] != [before] * (
        config.loop.epochs > before
    ):
        raise RunError(f"run {name}", got="other epochs than a moment ago", cure="the same command again")
    record["extensions"] += [
        {"from_epochs": before, "to_epochs": config.loop.epochs, "schedule": one.schedule} for one in new
    ]


def _words(extensions: tuple[ExtensionConfig, ...]) -> str:
    return ", ".join(f"{one.schedule} after {one.after}" for one in extensions) or "none"
