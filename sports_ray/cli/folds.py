"""`folds`: cross-validation. K runs, one after the other, and what each says of the photographs that it did not learn from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sports_ray.cli.train import Command, chosen_config, execute, scan_progress, train
from sports_ray.cli.train_show import show_pause, show_plan

if TYPE_CHECKING:
    from sports_ray.config import TrainConfig
    from sports_ray.orchestrate.folds import FoldRuns
    from sports_ray.orchestrate.plan import Plan

EXAMPLES = """
\b
Examples:
  sports-ray folds --data photos --model convnext_tiny --folds 5
  sports-ray folds --data photos --model test_resnet --recipe quick --folds 5 --workers 0 --run crossed
  sports-ray folds --data photos --model convnext_tiny --folds 5 --score best --time-budget 11h30m
  sports-ray train --data photos --model convnext_tiny --run NAME-fold3 --set data.folds=5 --set data.fold=3

The same command again goes on with the fold that is not finished. The last line trains one fold elsewhere, into the same
store. Exit codes: 0 done, 2 your mistake, 3 failed, 75 paused, 130 ended at once.
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--folds", "count", type=click.IntRange(min=2), default=5, show_default=True, metavar="K", help="How many."
)
@click.option(
    "--score",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="Weights that predict their fold; best: those that did best on it, which flatters the score.",
)
def folds(
    count: int,
    score: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    time_budget: str | None,
    extend: str | None,
    **flags: Any,
) -> int:
    """Cross-validate: train K runs, each on all folds of the photographs but one, and score each on its own.

    The photographs of train/ and val/ are cut into K folds, stratified, duplicates and near-duplicates together; test/ stays
    untouched. All runs share this cut (STORE/folds/NAME/folds.csv). In the end every photograph was predicted once by the run
    that had not seen it: oof.csv and scores.json, beside it. The runs are members for eval-ensemble and predict.
    """
    command = _FoldsCommand(as_json)
    config = chosen_config(overrides, time_budget, flags)
    return cross_validate(config, count, score, command, dry_run=dry_run, extend=extend or "")


folds.params += [option for option in train.params if option.name not in {option.name for option in folds.params}]


class _FoldsCommand(Command):
    """Goes on with all folds, and not with one of the runs."""

    def go_on(self, plan: Plan) -> str:
        return shlex.join(self.words)


def cross_validate(
    config: TrainConfig, count: int, kind: str, command: _FoldsCommand, *, dry_run: bool = False, extend: str = ""
) -> int:
    """Trains what is left of the folds, and predicts them. Returns the exit code."""
    show = command.show
    command.budget(config.cluster.time_budget)
    try:
        from sports_ray.orchestrate.cluster import prepare_environment

        prepare_environment(config.cluster.usage_stats)
        from sports_ray.orchestrate.folds import plan_folds

        runs = plan_folds(config, count, progress=scan_progress())
        show_runs(runs, command)
        if dry_run:
            show_plan(runs.plan(0, extend), show)
            return 0
        runs.keep_assignment()
        for fold in range(count):
            if not _train_fold(runs, fold, command, extend):
                return 75
            command.stops.unwatched()
        score_folds(runs, kind, command)
        return 0
    finally:
        command.stops.ignore()
        show.close()


def _train_fold(runs: FoldRuns, fold: int, command: _FoldsCommand, extend: str) -> bool:
    """Whether the fold's run is finished."""
    plan = command.plan = runs.plan(fold, extend)
    sizes = f"{plan.manifest.rows('train').num_rows:,} train · {plan.manifest.rows('val').num_rows:,} held out"
    facts = {"fold": fold, "name": plan.name, "status": plan.status}
    command.show.fact("fold", f"{fold + 1} of {runs.count} · {plan.name} · {sizes} · {plan.status}", **facts)
    if plan.status == "finished":
        return True
    outcome = execute(plan, command)
    if outcome.status == "paused":
        show_pause(plan, outcome, command.show, command.go_on(plan))
        return False
    return True


def show_runs(runs: FoldRuns, command: _FoldsCommand) -> None:
    """What was cut into what."""
    first = runs.manifests[0]
    images = first.rows("train").num_rows + first.rows("val").num_rows
    lines = [f"{images:,} photographs of {len(first.classes)} classes in {runs.count} folds"]
    lines += [f"! {note}" for note in first.notes]
    facts = {"name": runs.name, "store": runs.store, "runs": runs.runs, "images": images, "folds": runs.count}
    command.show.fact("photos", "\n".join(lines), **facts, notes=list(first.notes))
    command.show.fact("model", f"{runs.config.model.name} · {runs.config.loop.epochs} epochs a fold")


def score_folds(runs: FoldRuns, kind: str, command: _FoldsCommand) -> Mapping[str, Any]:
    """Predicts each fold by its run, or takes what is on disk, and shows the scores."""
    from sports_ray.cli.blocks_show import BlocksShow
    from sports_ray.cli.show import JsonShow
    from sports_ray.orchestrate.predict import computer
    from sports_ray.predict.out_of_fold import finished, plan_folds, predict_out_of_fold

    storage = runs.storage()
    plans = plan_folds(runs.runs, runs.store, runs.manifests[0].root, kind)
    scores = finished(plans, storage)
    if scores is None:
        blocks = BlocksShow(command.show, isinstance(command.show, JsonShow))
        log = None if "://" in runs.store else Path(runs.store) / "predictions" / "ray.log"
        here = runs.config.cluster.workers == "0"
        compute = computer("0" if here else "auto", log=log, ready=command.stops.install)
        scores = predict_out_of_fold(plans, storage, runs.store, compute, blocks.event, command.words)
        blocks.close()
    _show_scores(runs, kind, scores, storage.uri, command)
    return scores


def _show_scores(runs: FoldRuns, kind: str, scores: Mapping[str, Any], where: str, command: _FoldsCommand) -> None:
    from sports_ray.store.storage import without_keys

    pooled, spread = scores["candidates"][0], scores["spread"]
    lines = [f"{'fold':<7} {'images':>7} {'acc1':>7} {'95 %':<16} {'NLL':>7}"]
    for name, entry in [*((str(one["fold"]), one) for one in scores["folds"]), ("all", pooled)]:
        low, high = entry["acc1_interval"]
        lines.append(
            f"{name:<7} {entry['images']:>7,} {entry['acc1']:>7.4f} {f'[{low:.4f}, {high:.4f}]':<16} {entry['nll']:>7.4f}"
        )
    lines.append(f"folds: {spread['mean']:.4f} +- {spread['std']:.4f} (standard deviation)")
    if kind == "best":
        lines.append("! the best weights were chosen on these very photographs: their scores are flattered")
    small = {key: pooled[key] for key in ("images", "acc1", "acc1_interval", "acc5", "nll", "ece")}
    command.show.fact("result", "\n".join(lines), all=small, folds=scores["folds"], spread=spread, weights=kind)
    command.show.fact("written", f"{where}: folds.csv, oof.csv, scores.json", path=where)
    suffix = "@last" if kind == "last" else ""
    members = " ".join(f"--run {shlex.quote(run + suffix)}" for run in runs.runs)
    store = "" if runs.config.store.root == "runs" else f" --store {shlex.quote(runs.config.store.root)}"
    data = f" --data {shlex.quote(runs.config.data.root)}"
    text = without_keys(f"sports-ray eval-ensemble{data} {members}{store}")
    command.show.fact("next", text, commands=[text])
