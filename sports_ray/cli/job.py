"""Commands as jobs of a cluster: which can be, and what their words must say so that nothing of them is lost."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from sports_ray.cli import cli, main, report_error
from sports_ray.errors import ConfigError, SportsRayError

JOBS = ("train", "tune", "eval-ensemble")
STORE = "a place that outlives the job and that all nodes share: an absolute path or an address"
_CURE = "for example --store /mnt/shared/runs or --store s3://bucket/runs"


def run_job(name: str) -> None:
    """`sports-ray NAME` with the words of this process, as the entry point of a job: its store must outlive the job."""
    sys.argv[1:1] = [name]
    try:
        check_store(name, parse([name, *sys.argv[2:]]))
    except SportsRayError as error:
        report_error(error)
        sys.exit(error.exit_code)
    except (click.ClickException, click.exceptions.Exit):
        pass  # the command itself says it better
    main()


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The options of a command line, checked as the command itself would; nothing is carried out.

    Raises ConfigError for a command that is no job, click's own for a mistake in the words."""
    name, *rest = words or [""]
    command = cli.get_command(click.Context(cli), name) if name in JOBS else None
    if command is None:
        raise ConfigError(
            "job", got=name or "nothing", want="one of " + ", ".join(JOBS), cure="sports-ray submit train ..."
        )
    with click.Context(cli, info_name="sports-ray") as parent:
        return dict(command.make_context(name, list(rest), parent=parent).params)


def check_store(name: str, params: Mapping[str, Any]) -> None:
    """ConfigError where results would go below the job's own folder, which is deleted after it."""
    store = store_of(params)
    if name == "eval-ensemble" and not store:
        store = str(params["runs"][0])
    for option, place in (("--store", store or "nothing, which is ./runs"), ("--out", params.get("out") or "/")):
        if not lasts(place):
            raise ConfigError(option, got=place, want=STORE, cure=_CURE)


def store_of(params: Mapping[str, Any]) -> str:
    """Where the words, or the recipe they name, have the results kept; empty if they do not say."""
    if "models" in params:  # a sweep lies where --store says; its trials' own settings change nothing
        return str(params["store"])
    for override in reversed(params.get("overrides") or ()):
        if override.startswith("store.root="):
            return str(override).partition("=")[2]
    if params.get("store"):
        return str(params["store"])
    if params.get("recipe"):
        from sports_ray.recipe import load_recipe

        return str(load_recipe(params["recipe"]).get("store", {}).get("root", ""))
    return ""


def lasts(place: str) -> bool:
    return "://" in place or Path(place).is_absolute()
