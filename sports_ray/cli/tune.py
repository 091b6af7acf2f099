"""`tune`: settle the sweep, show it, run it, say what came of it and how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sports_ray.cli.show import Show, choose_show, own_words
from sports_ray.cli.train import parse_duration, scan_progress
from sports_ray.score.main_score import NAMES, score_of
from sports_ray.stops import Stops, own_start

if TYPE_CHECKING:
    from sports_ray.cli.sweep_show import SweepShow
    from sports_ray.orchestrate.plan_sweep import SweepPlan
    from sports_ray.sweep.board import Row
    from sports_ray.sweep.conduct import Conductor

EXAMPLES = """
\b
Examples:
  sports-ray tune --data photos --models convnext_large,swinv2_large \\
      --recipe sports102-convnext --recipe sports102-swinv2 --samples 12 --epochs 8 \\
      --space optim.lr=log:1e-5..1e-3 --space augment.mixup=0,0.2,0.8
  sports-ray tune --data photos --models test_resnet,test_efficientnet --recipe quick --search grid \\
      --space optim.lr=2e-3,4e-3 --space optim.weight_decay=0.02,0.1
  sports-ray tune --data photos --models resnet50 --scheduler asha --search optuna --space optim.lr=log:1e-5..1e-2

--space takes SECTION.KEY=VALUES: alternatives (0,0.2,0.8; lists apart by ';'), a range (0..0.3), a logarithmic one
(log:1e-5..1e-3), or so many values of a range (log:1e-5..1e-3/5). MODEL:SECTION.KEY=VALUES is for one backbone.

Killed at any moment, the same command goes on: finished trials are not run again. Each trial is a run in the sweep's
folder: `sports-ray status --store STORE/SWEEP`. Exit codes: 0 done, 2 your mistake, 3 failed, 75 paused.
"""


@click.command(epilog=EXAMPLES)
@click.option("--data", "data_root", metavar="DIR", help="Folder with train/ (val/, test/), or a CSV list.")
@click.option(
    "--models", default="", metavar="A,B", help="Backbones: timm models; one trial of each is always under way."
)
@click.option(
    "--recipe", "recipes", multiple=True, metavar="R", help="What trials start from: one recipe, or one for each model."
)
@click.option("--space", multiple=True, metavar="KEY=VALUES", help="A key to search, and its values; repeatable.")
@click.option(
    "--search",
    type=click.Choice(["random", "grid", "optuna"]),
    default="random",
    show_default=True,
    help="How settings are chosen; optuna: from what was found so far.",
)
@click.option(
    "--samples", type=int, metavar="N", help="Settings tried of each backbone. Default: 8; a grid has its own."
)
@click.option(
    "--scheduler",
    type=click.Choice(["none", "asha"]),
    default="none",
    show_default=True,
    help="asha: stop the worse trials of each backbone early.",
)
@click.option(
    "--reduction", type=int, default=3, show_default=True, metavar="N", help="asha: one of N goes on at a rung."
)
@click.option(
    "--grace", type=int, default=0, metavar="EPOCHS", help="asha: the first rung. Default: a ninth of all epochs."
)
@click.option(
    "--sweep", "name", default="", metavar="NAME", help="Name of the sweep. Default: from its settings and data."
)
@click.option("--store", default="runs", show_default=True, metavar="DIR|URI", help="Where sweeps and runs are kept.")
@click.option("--epochs", type=int, metavar="N", help="Passes over the training images.")
@click.option("--weights", metavar="auto|PATH|none", help="Where to start from: timm's hub, a file, or from scratch.")
@click.option(
    "--precision", metavar="P", help="auto, bf16, fp16 or fp32. Default: auto, settled once for each backbone."
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Fixes settings, order and start.")
@click.option("--workers-per-trial", "workers", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option(
    "--cpus-per-trial", "cpus", type=float, default=0.0, metavar="N", help="Of a worker. Default: a fair share."
)
@click.option(
    "--gpus-per-trial", "gpus", type=float, metavar="N", help="Of a worker, such as 0.5. Default: a fair share."
)
@click.option("--max-concurrent", "concurrent", type=click.IntRange(1), metavar="N", help="Trials at once.")
@click.option(
    "--keep", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Newest checkpoints of a trial."
)
@click.option(
    "--keep-weights",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    metavar="K",
    help="Best trials of a backbone whose weights stay.",
)
@click.option("--retry-failed", is_flag=True, help="Try trials again that have failed.")
@click.option("--time-budget", metavar="T", help="Pause in time before this long has passed, such as 11h30m.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Any other setting of all trials.")
@click.option("--dry-run", is_flag=True, help="Print the trials and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def tune(as_json: bool, time_budget: str | None, dry_run: bool, retry_failed: bool, **flags: Any) -> int:
    """Search settings for one or more backbones at the same time. Run again, the same command goes on."""
    command = _Command(as_json)
    try:
        seconds = parse_duration(time_budget) if time_budget else 0.0
        command.budget(seconds)
        from sports_ray.orchestrate.cluster import prepare_environment

        prepare_environment()
        plan = _plan(flags)
        show_plan(plan, command.show, dry_run)
        if dry_run:
            return 0
        conductor, reason = command.run(plan, command.started + seconds if seconds else 0.0, retry_failed)
        show_board(conductor.publish(), plan, command.show)
        if reason:
            command.paused(reason, conductor)
            return 75
        return show_end(conductor, command.show)
    finally:
        command.close()


class _Command:
    """A command from its first moment on: signals, what is shown, and how to go on."""

    def __init__(self, as_json: bool) -> None:
        self.stops = Stops().install()
        self.started = own_start()
        self.words = own_words()
        self.show = choose_show(as_json)
        self.shown: SweepShow | None = None
        self.stops.leave_with(self._leave)

    def budget(self, seconds: float) -> None:
        if seconds:
            self.stops.alarm(self.started + seconds)

    def run(self, plan: SweepPlan, deadline: float, retry_failed: bool) -> tuple[Conductor, str]:
        from sports_ray.cli.sweep_show import choose_sweep_show
        from sports_ray.orchestrate.tune import run_sweep
        from sports_ray.sweep.conduct import Conductor

        self.shown = choose_sweep_show(self.show, Conductor(plan.spec, plan.folder).rows())
        try:
            return run_sweep(
                plan.spec,
                plan.folder,
                self.shown.event,
                concurrent=plan.concurrent,
                deadline=deadline,
                stops=self.stops,
                command=self.words,
                prepare=lambda: plan.write(self.words),
                retry_failed=retry_failed,
            )
        finally:
            self.shown.close()

    def paused(self, reason: str, conductor: Conductor) -> None:
        left = conductor.left()
        words = ", ".join(f"{count} of {name}" for name, count in left.items() if count)
        again = shlex.join(word for word in self.words if word != "--retry-failed")
        text = f"trials left: {words}; their last commits are safe ({reason}). Go on with:\n{again}"
        self.show.fact("paused", text, reason=reason, left=left, command=again)

    def close(self) -> None:
        self.stops.ignore()
        self.show.close()

    def _leave(self, reason: str) -> None:
        again = shlex.join(self.words)
        self.show.fact(
            "paused", f"what was committed is safe ({reason}). Go on with:\n{again}", reason=reason, command=again
        )
        self.show.close()


def _plan(flags: Mapping[str, Any]) -> SweepPlan:
    from sports_ray.orchestrate.plan_sweep import Asked, plan_sweep
    from sports_ray.store.storage import absolute

    data = flags["data_root"]
    named = {
        "data.root": absolute(data) if data else None,
        "loop.epochs": flags["epochs"],
        "loop.precision": flags["precision"],
        "model.weights": flags["weights"],
        "store.keep": flags["keep"],
    }
    same = ["models", "recipes", "overrides", "space", "search", "samples", "scheduler", "reduction", "grace", "seed"]
    same += ["name", "store", "workers", "cpus", "gpus", "keep_weights"]
    asked = Asked(flags=named, concurrent=flags["concurrent"] or 0, **{name: flags[name] for name in same})
    return plan_sweep(asked, progress=scan_progress())


def show_plan(plan: SweepPlan, show: Show, whole: bool) -> None:
    """Photographs, backbones, space, trials and resources; `whole`: every trial's settings too."""
    from sports_ray.cli.sweep_show import params_words
    from sports_ray.cli.train_show import plan_facts

    spec = plan.spec
    for name, text, data in plan_facts(plan.plans[0]):
        if name == "photos":
            show.fact(name, text, **data)
    for one, base in zip(spec.backbones, plan.plans, strict=True):
        count = spec.count(one)
        text = f"{base.config.model.name} · {base.parameters / 1e6:.2f} M parameters · {base.image_size} px · {one.precision}"
        text += f" · {count} trials of {base.schedule.epochs} epochs x {base.schedule.steps_per_epoch} steps"
        show.fact("backbone", text, name=one.name, trials=count, precision=one.precision, parameters=base.parameters)
    lines = [f"{one.backbone + ': ' if one.backbone else ''}{one.key} = {one.text}" for one in spec.space]
    search = (
        spec.search
        if spec.halving is None
        else f"{spec.search}, halved at epochs {', '.join(map(str, spec.halving.rungs))}"
    )
    show.fact("space", "\n".join(lines) or "nothing", search=spec.search, space=lines)
    text = f"{search} · {plan.concurrent} trials at once, each {spec.share.words()}"
    text += f" · {spec.keep_weights} best of each backbone kept"
    show.fact("plan", text, concurrent=plan.concurrent, **spec.to_json()["share"])
    where = plan.folder.storage.uri
    show.fact("sweep", f"{where}      {plan.status}", name=spec.name, where=where, status=plan.status)
    for name, params in spec.drawn().items() if whole else ():
        show.fact("trial", f"{name} · {params_words(params)}", name=name, params=params)


def show_board(rows: list[Row], plan: SweepPlan, show: Show) -> None:
    from sports_ray.cli.sweep_show import params_words

    width = max(len(one["trial"]) for one in rows)
    lines = []
    for one in rows:
        found = score_of(one)
        score = f"{found:.4f}" if found is not None else "-"
        line = f"{one['rank']:>3}  {one['trial']:<{width}}  {one['state']:<7} {score:>6}  {params_words(one['params'])}"
        lines.append(f"{line}  {one['reason']}".rstrip())
    show.fact("board", "\n".join(lines), trials=rows)
    where = plan.folder.storage.uri
    show.fact(
        "files", f"{where}/leaderboard.csv and .json", files=[f"{where}/leaderboard.{kind}" for kind in ("csv", "json")]
    )


def show_end(conductor: Conductor, show: Show) -> int:
    """The winners, and the commands that follow. Exit code 3 where nothing came to its end."""
    from sports_ray.sweep.board import winners

    rows, where, spec = conductor.rows(), conductor.folder.storage.uri, conductor.spec
    best = {backbone: names[0] for backbone, names in winners(rows, 1).items()}
    data = str(spec.data["root"])
    commands = [
        shlex.join(["sports-ray", "train", "--recipe", recipe_file(conductor, name), "--data", data])
        for name in best.values()
    ]
    runs = [word for name in best.values() for word in ("--run", f"{where}/{name}")]
    if runs:
        split = [] if spec.data["test"] else ["--split", "val"]
        commands.append(shlex.join(["sports-ray", "eval-ensemble", "--data", data, *split, *runs]))
    commands.append(shlex.join(["sports-ray", "report", where]))
    for backbone, name in best.items():
        score, kind = next(score_of(one) for one in rows if one["trial"] == name), spec.score_name
        facts = {"backbone": backbone, "trial": name, f"val_{kind}": score}
        words = f"{score:.4f}" if score is not None else "-"
        show.fact("best", f"{backbone}: {name} · val {NAMES[kind]} {words}", **facts)
    show.fact("next", "\n".join(commands), commands=commands)
    return 0 if best else 3


def recipe_file(conductor: Conductor, name: str) -> str:
    """Path of the recipe of a trial; of a sweep in an object store it is written here too, for `train` reads files."""
    from sports_ray.sweep.conduct import recipe_name

    where, recipe = conductor.folder.storage.uri, recipe_name(conductor.trials[name])
    if "://" not in where:
        return f"{where}/{recipe}"
    Path(f"{conductor.spec.name}-{recipe}").write_text(conductor.recipe(name), encoding="utf-8")
    return f"{conductor.spec.name}-{recipe}"
