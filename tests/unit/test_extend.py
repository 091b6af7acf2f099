"""More epochs for a run that exists: what is recorded, what is refused, and what people are told."""

from __future__ import annotations

from typing import Any

import pytest

from sports_ray.config import ExtensionConfig, TrainConfig
from sports_ray.errors import ConfigError, RunError
from sports_ray.orchestrate.extend import check_new, extended, newest_words, record_extension
from sports_ray.recipe import build_config, config_to_dict


def config_of(epochs: int, *extensions: tuple[int, str]) -> TrainConfig:
    tables = [{"after": after, "schedule": schedule} for after, schedule in extensions]
    return build_config(None, {"loop.epochs": epochs, "loop.extensions": tables, "optim.lr": 1e-3})


def record_of(config: TrainConfig) -> dict[str, Any]:
    return {"config": config_to_dict(config), "extensions": []}


def ask(config: TrainConfig, record: dict[str, Any], asked: str = "", stopped_at: int = 0) -> TrainConfig:
    return extended(config, record, "run", asked, stopped_at)


def test_more_epochs_become_an_extension_and_the_same_command_again_changes_nothing() -> None:
    record = record_of(config_of(5))
    assert ask(config_of(5), record).loop.extensions == ()
    for asked, schedule in (("", "stretch"), ("restart", "restart"), ("hold", "hold")):
        longer = ask(config_of(8), record, asked)
        assert longer.loop.extensions == (ExtensionConfig(after=5, schedule=schedule),)  # type: ignore[arg-type]
        again = record_of(longer)
        assert ask(config_of(8), again, asked) == ask(config_of(8), again) == ask(longer, again) == longer
        assert [one.after for one in ask(config_of(9), again).loop.extensions] == [5, 8]
    given = config_of(8, (5, "hold"))
    assert ask(given, record) == given


def test_a_run_that_was_extended_before_extensions_were_recorded_goes_on_as_it_was() -> None:
    record = record_of(config_of(8))
    del record["config"]["loop"]["extensions"]
    record["extensions"] = [{"from_epochs": 5, "to_epochs": 8}]
    assert ask(config_of(8), record).loop.extensions == ()
    assert ask(config_of(9), record).loop.extensions == (ExtensionConfig(after=8),)


@pytest.mark.parametrize(
    ("config", "asked", "stopped_at", "message"),
    [
        (config_of(4), "", 0, "run run; got --epochs 4; wanted at least its 8; cure: another --run NAME"),
        (
            config_of(8),
            "hold",
            0,
            "got --extend hold, and no more epochs than its 8; wanted --extend restart, as it was",
        ),
        (config_of(9), "", 6, "run run was stopped early, in epoch 6 of 8; got --epochs 9"),
        (config_of(8, (4, "restart")), "", 0, "loop.extensions: restart after 5 -> restart after 4"),
        (config_of(9, (5, "restart"), (8, "hold")), "restart", 0, "restart after 5 -> restart after 5, hold after 8"),
    ],
)
def test_what_would_change_the_past_or_nothing_at_all_is_refused(
    config: TrainConfig, asked: str, stopped_at: int, message: str
) -> None:
    with pytest.raises(RunError) as error:
        ask(config, record_of(config_of(8, (5, "restart"))), asked, stopped_at)
    assert message in str(error.value)


def test_extending_needs_a_run_and_more_epochs() -> None:
    check_new("run", "")
    with pytest.raises(ConfigError, match="--extend hold; got run, a new run; wanted a run that exists"):
        check_new("run", "hold")
    with pytest.raises(RunError, match="wanted more epochs; cure: --epochs N, more than 5"):
        ask(config_of(5), record_of(config_of(5)), "hold")


def test_record_holds_the_policy_and_notices_that_another_driver_was_faster() -> None:
    record = record_of(config_of(5))
    record_extension(record, ask(config_of(8), record, "restart"), "run")
    assert record["extensions"] == [{"from_epochs": 5, "to_epochs": 8, "schedule": "restart"}]
    record_extension(record, config_of(5), "run")
    assert len(record["extensions"]) == 1
    with pytest.raises(RunError, match="other epochs than a moment ago; cure: the same command again"):
        record_extension(record_of(config_of(6)), config_of(8, (5, "restart")), "run")


def test_words_tell_what_happens_to_the_rate_and_which_other_ways_there_are() -> None:
    words = newest_words(config_of(8, (5, "restart")), 10)
    assert words.startswith(
        "5 to 8 epochs · restart: the schedule begins anew, warm-up included · the rate goes from 1."
    )
    assert "e-05 to 1.00e-05 after epoch 5, and ends at" in words
    assert words.endswith("(else: --extend stretch, hold)")
