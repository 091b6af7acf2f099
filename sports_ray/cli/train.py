"""`train` and `resume`: settle the plan, show it, run it, say how to go on."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from sports_ray.cli.show import can_be_drawn_over, choose_show, own_words
from sports_ray.cli.train_show import show_dry_run, show_pause, show_plan, show_summary
from sports_ray.errors import ConfigError, SportsRayError
from sports_ray.stops import Stops, own_start

if TYPE_CHECKING:
    from sports_ray.config import TrainConfig
    from sports_ray.engine.link import Outcome
    from sports_ray.orchestrate.plan import Plan

EXAMPLES = """
\b
Examples:
  sports-ray train --data photos --model convnext_large
  sports-ray train --data photos --model test_resnet --recipe quick --workers 0
  sports-ray train --data photos --model vit_base_patch16_224 --time-budget 11h30m --store s3://bucket/runs
  sports-ray train --data photos --model test_resnet --weights none --set optim.lr=4e-3 --dry-run

The same command again goes on where it stopped. Ctrl-C, SIGTERM and the time budget save and pause; a second Ctrl-C
ends at once. Exit codes: 0 done, 2 your mistake, 3 failed, 75 paused, 130 ended at once.
"""


EXTEND = click.option(
    "--extend",
    type=click.Choice(["stretch", "restart", "hold"]),
    help="The rate in more --epochs than the run had: as if planned so long (default), anew with warm-up, or as it ended.",
)


def parse_duration(text: str) -> float:
    """`11h30m`, `45m`, `90s`, `2h` or plain seconds -> seconds; ConfigError otherwise."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not text.strip() or not match:
        raise ConfigError("--time-budget", got=text, want="hours, minutes, seconds", cure="for example 11h30m")
    seconds = int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + float(match[3] or 0)
    if seconds <= 0:
        raise ConfigError("--time-budget", got=text, want="more than zero", cure="for example 11h30m")
    return seconds


@click.command(epilog=EXAMPLES)
@click.option(
    "--data",
    "data_root",
    metavar="DIR",
    help="Folder with train/ (val/, test/), a CSV with path, label, split, a pack, or CIFAR-10's own files.",
)
@click.option("--model", metavar="NAME", help="A timm model, or convnext_large, swinv2_large, swinv2_large_256.")
@click.option("--recipe", metavar="R", help="Start from a recipe: a name of `sports-ray recipes`, or a .toml file.")
@click.option(
    "--run", "run_name", metavar="NAME", help="Name of the run. Default: model + digest of settings and data."
)
@click.option("--store", metavar="DIR|URI", help="Where runs are kept. Default: ./runs")
@click.option("--epochs", type=int, metavar="N", help="Passes over the training images.")
@EXTEND
@click.option("--workers", metavar="0|N|MIN:MAX", help="0: in this process, no Ray. Default: one for each GPU, or 1.")
@click.option("--precision", metavar="P", help="auto, bf16, fp16 or fp32. Default: auto, by device or measurement.")
@click.option("--weights", metavar="auto|PATH|none", help="Where to start from: timm's hub, a file, or from scratch.")
@click.option("--time-budget", metavar="T", help="Pause in time before this long has passed, such as 11h30m.")
@click.option("--seed", type=int, metavar="N", help="Fixes order, augmentation and random start.")
@click.option("--strict", is_flag=True, default=None, help="Equal bits at any number of workers, at a cost in speed.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Any other setting; repeatable.")
@click.option("--dry-run", is_flag=True, help="Print the whole config and the plan, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def train(
    overrides: tuple[str, ...], dry_run: bool, as_json: bool, time_budget: str | None, extend: str | None, **flags: Any
) -> int:
    """Train a model on a folder of photographs. Run again, the same command goes on where it stopped."""
    command = Command(as_json)
    config = chosen_config(overrides, time_budget, flags)
    return carry_out(config, command, dry_run=dry_run, extend=extend or "")


def chosen_config(overrides: tuple[str, ...], time_budget: str | None, flags: Mapping[str, Any]) -> TrainConfig:
    """The settings that `train`'s options ask for."""
    from sports_ray.recipe import build_config

    keys = {
        "data_root": "data.root",
        "model": "model.name",
        "run_name": "store.run",
        "store": "store.root",
        "epochs": "loop.epochs",
        "workers": "cluster.workers",
        "precision": "loop.precision",
        "weights": "model.weights",
        "seed": "loop.seed",
        "strict": "loop.strict",
    }
    named = {keys[name]: value for name, value in flags.items() if name in keys}
    named["cluster.time_budget"] = parse_duration(time_budget) if time_budget else None
    return build_config(flags["recipe"], named, overrides)


@click.command()
@click.argument("run")
@click.option("--store", metavar="DIR|URI", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--epochs", type=int, metavar="N", help="More epochs than the run was started with.")
@EXTEND
@click.option("--workers", metavar="0|N|MIN:MAX", help="Other workers than last time.")
@click.option("--data", "data_root", metavar="DIR", help="Where the photographs lie now.")
@click.option("--time-budget", metavar="T", help="Pause in time before this long has passed, such as 11h30m.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def resume(run: str, store: str, as_json: bool, time_budget: str | None, extend: str | None, **flags: Any) -> int:
    """Go on with RUN, a name in the store or a path to its folder, as it was started.

    \b
    Examples:
      sports-ray resume convnext
      sports-ray resume s3://bucket/runs/convnext --time-budget 11h30m
      sports-ray resume convnext --epochs 100 --extend restart
    """
    command = Command(as_json)
    config = recorded_config(run, store, time_budget, **flags)
    return carry_out(config, command, extend=extend or "")


class Command:
    """A command from its first moment on: when it was started, who asks it to stop, and how it shows what it does.

    See `Stops`: until the engine's loop looks for itself, a signal ends the process at once; the end of the time budget
    does so at any time, if the engine's stop, which leaves room for a commit, should come too late.
    """

    def __init__(self, as_json: bool) -> None:
        self.stops = Stops().install()
        self.started = own_start()
        self.words = own_words()
        self.plan: Plan | None = None
        self.show = choose_show(as_json)
        self.stops.leave_with(self.leave)

    def go_on(self, plan: Plan) -> str:
        """The words that go on with a run that is there."""
        return go_on_command(plan)

    def budget(self, seconds: float) -> None:
        """From now on the process ends before so many seconds have passed since its start; 0: no limit."""
        if seconds:
            self.stops.alarm(self.started + seconds)

    def leave(self, reason: str) -> None:
        """Says, before the process ends, what is safe and how to go on. Called from a signal's handler, maybe in the midst
        of an import: it needs no module that is not there yet."""
        step, total, command = 0, 0, shlex.join(self.words)
        if self.plan is not None:
            total = self.plan.schedule.total_steps
            with suppress(SportsRayError):
                from sports_ray.orchestrate.plan import safe_step

                step = safe_step(self.plan)
                command = self.go_on(self.plan) if self.plan.run_dir.read_record() else command
        nothing = "no step is safe yet" if self.stops.looked else "before the first step: nothing is lost"
        text = f"step {step} of {total} is safe" if step else nothing
        facts = {"step": step, "total_steps": total, "reason": reason, "command": command}
        self.show.fact("paused", f"{text} ({reason}). Go on with:\n{command}", **facts)
        self.show.close()


def go_on_command(plan: Plan) -> str:
    """The words that go on with a run; an address keeps its options, and loses a key and secret in it."""
    from sports_ray.store.storage import below, without_keys

    return shlex.join(["sports-ray", "resume", without_keys(below(plan.store, plan.name))])


def recorded_config(
    run: str, store: str, time_budget: str | None, *, epochs: int | None, workers: str | None, data_root: str | None
) -> TrainConfig:
    """Config of an existing run, with what may differ from session to session replaced."""
    from sports_ray.orchestrate.plan import find_run
    from sports_ray.recipe import config_from_dict

    root, name, record = find_run(run, store)
    settings = record["config"]
    settings["store"] |= {"root": root, "run": name}
    settings["cluster"]["time_budget"] = parse_duration(time_budget) if time_budget else 0.0
    if epochs is not None:
        settings["loop"]["epochs"] = epochs
    if workers is not None:
        settings["cluster"]["workers"] = workers
    if data_root is not None:
        settings["data"]["root"] = data_root
    return config_from_dict(settings)


def carry_out(config: TrainConfig, command: Command, dry_run: bool = False, extend: str = "") -> int:
    """Plans, shows and runs a training. Returns the exit code."""
    show = command.show
    command.budget(config.cluster.time_budget)
    try:
        from sports_ray.orchestrate.cluster import prepare_environment

        prepare_environment(config.cluster.usage_stats)
        from sports_ray.orchestrate.plan import make_plan

        plan = command.plan = make_plan(config, progress=scan_progress(), extend=extend)
        if dry_run:
            show_dry_run(plan, show)
            return 0
        show_plan(plan, show)
        if plan.status == "finished":
            show_summary(plan, show)
            return 0
        outcome = execute(plan, command)
        if outcome.status == "paused":
            show_pause(plan, outcome, show, command.go_on(plan))
            return 75
        show_summary(plan, show)
        return 0
    finally:
        command.stops.ignore()
        show.close()


def execute(plan: Plan, command: Command) -> Outcome:
    """Runs the plan in this process or on Ray."""
    from sports_ray.engine.record import log_to_file

    try:
        log_to_file(plan.run_dir, "driver.log")
    except OSError as error:
        got, want = f"{plan.store}: {error.strerror}", "a folder that can be written"
        raise ConfigError("store", got=got, want=want, cure="another --store DIR") from error
    if plan.workers == (0, 0):
        from sports_ray.orchestrate.local import train_here

        return train_here(plan, command.show.event, command.started, command.stops)
    from sports_ray.orchestrate.train import train_on_ray

    return train_on_ray(plan, command.show.event, command.started, command.stops)


def scan_progress() -> Any:
    """A callback that shows on a terminal how far the files have been read."""
    if not can_be_drawn_over(sys.stderr):
        return None

    def show(done: int, total: int) -> None:
        end = "\r\033[K" if done >= total else "\r"
        print(f"reading     {done:,} of {total:,} files", end=end, file=sys.stderr, flush=True)

    return show
