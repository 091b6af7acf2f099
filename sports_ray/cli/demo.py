"""`demo`: the main job in small. Two backbones on Ray Train, a worker killed on the way, the proof that nothing was lost, and
what both are worth alone and together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sports_ray.cli.blocks_show import BlocksShow
from sports_ray.cli.evaluation_page import drop_page, show_page
from sports_ray.cli.score_show import show_scores
from sports_ray.cli.show import Show, choose_show, duration

if TYPE_CHECKING:
    from sports_ray.config import TrainConfig
    from sports_ray.predict.plan import Plan

MODELS = ("test_resnet", "test_efficientnet")
EPOCHS = 10


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("sports-ray-demo"))
@click.option("--seed", type=int, default=0, show_default=True, help="Fixes the drawn photographs and the training.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def demo(folder: Path, seed: int, as_json: bool) -> int:
    """Draw sports photographs in FOLDER, train two models on Ray, kill a worker, and score them alone and together.

    Takes two to four minutes on two cores. Run again, it goes on where it was interrupted.
    """
    from sports_ray.data.demo import draw_demo
    from sports_ray.orchestrate.cluster import ray_cluster

    show, started = choose_show(as_json), time.monotonic()
    blocks = BlocksShow(show, as_json)  # takes hold of the streams, which lead to a log while Ray is up
    try:
        photos = folder / "photos"
        if not photos.exists():
            report = draw_demo(photos, classes=6, per_class=48, size=112, seed=seed)
            show.fact("drawn", f"{sum(report.images.values())} photographs of {len(report.classes)} sports in {photos}")
        rows = []
        with ray_cluster("auto", log=folder / "ray.log"):
            for model in MODELS:
                config = _config(photos, folder / "runs", model, seed)
                rows.append(_train(config, show, kill=model == MODELS[0]))
            plan, scores = _evaluate(photos, folder / "runs", show, blocks)
        proof = _prove(_config(photos, folder / "unbroken", MODELS[0], seed), folder / "runs" / MODELS[0], show)
        _table(rows, proof, show)
        show_scores(scores, plan, show)
        show_page(plan, show, heat=True, anew=False)
        seconds, command = time.monotonic() - started, f"sports-ray status {folder / 'runs'}"
        text = f"{duration(seconds)} in all. Open the report in a browser, or look around with:\n{command}"
        show.fact("next", text, seconds=round(seconds, 1))
    finally:
        blocks.close()
        show.close()
    return 0 if proof["equal"] else 3


def _config(photos: Path, store: Path, model: str, seed: int) -> TrainConfig:
    from sports_ray.recipe import build_config

    flags = {
        "data.root": str(photos),
        "model.name": model,
        "store.root": str(store),
        "store.run": model,
        "loop.epochs": EPOCHS,
        "loop.seed": seed,
        "loop.precision": "fp32",
        "cluster.workers": "1",
        "store.every_steps": 20,
    }
    return build_config("quick", flags)


def _train(config: TrainConfig, show: Show, kill: bool) -> dict[str, Any]:
    """One run on Ray Train; with `kill`, the worker is killed once, half-way."""
    from sports_ray.orchestrate.plan import make_plan
    from sports_ray.orchestrate.train import train_on_ray

    plan = make_plan(config)
    show.fact("model", f"{plan.config.model.name} · {plan.parameters / 1e6:.2f} M parameters · run {plan.status}")
    killed: list[int] = []

    def on_progress(event: Mapping[str, Any]) -> None:
        show.event(event)
        if kill and not killed and event["kind"] == "step" and 2 * event["step"] >= event["total_steps"]:
            killed.append(event["step"])
            os.kill(event["pid"], signal.SIGKILL)
            show.fact("killed", f"worker {event['pid']} with SIGKILL at step {event['step']}; Ray starts another")

    start = time.monotonic()
    if plan.status != "finished":
        train_on_ray(plan, on_progress)
    sidecar = plan.run_dir.describe_weights("best") or {}
    return {
        "model": config.model.name,
        "parameters": plan.parameters,
        "scores": sidecar["scores"],
        "seconds": time.monotonic() - start,
        "killed_at_step": killed[0] if killed else None,
        "weights": str(Path(plan.store) / plan.name / "weights" / "best.safetensors"),
    }


def _prove(config: TrainConfig, broken: Path, show: Show) -> dict[str, Any]:
    """Trains the killed run again, unbroken and without Ray, and compares the final weights byte for byte."""
    from sports_ray.orchestrate.local import train_here
    from sports_ray.orchestrate.plan import make_plan

    config = replace(config, cluster=replace(config.cluster, workers="0"))
    show.fact("proof", f"{config.model.name} once more, unbroken, in this process")
    plan = make_plan(config)
    if plan.status != "finished":
        train_here(plan, show.event)
    mine = (Path(plan.store) / plan.name / "weights" / "last.json").read_text()
    other = (broken / "weights" / "last.json").read_text()
    last = "weights/last.safetensors"
    equal = (Path(plan.store) / plan.name / last).read_bytes() == (broken / last).read_bytes() and mine == other
    return {"equal": equal, "unbroken": str(Path(plan.store) / plan.name), "broken": str(broken)}


def _evaluate(photos: Path, store: Path, show: Show, blocks: BlocksShow) -> tuple[Plan, dict[str, Any]]:
    """Both models on the test photographs, plain and mirrored, on Ray Data; what is finished is read from disk."""
    from sports_ray.orchestrate.predict import computer
    from sports_ray.predict.evaluate import evaluate
    from sports_ray.predict.plan import plan_evaluation

    plan = plan_evaluation([str(store / model) for model in MODELS], data=str(photos), store=str(store), tta="hflip")
    scores = plan.finished()
    if scores is not None:
        return plan, scores
    show.fact("evaluation", f"{len(plan.images)} test photographs, plain and mirrored, each model once")
    drop_page(plan)
    runs = [word for model in MODELS for word in ("--run", model)]
    words = ["sports-ray", "eval-ensemble", "--data", str(photos), "--store", str(store), *runs, "--tta", "hflip"]
    return plan, evaluate(plan, computer("1"), blocks.event, words)


def _table(rows: list[dict[str, Any]], proof: dict[str, Any], show: Show) -> None:
    lines = [f"{'model':<20}{'parameters':>11}{'val acc1':>10}{'EMA':>8}{'time':>7}   weights"]
    for row in rows:
        scores = row["scores"]
        lines.append(
            f"{row['model']:<20}{row['parameters'] / 1e6:>9.2f} M{scores['val_acc1']:>10.3f}{scores['ema_val_acc1']:>8.3f}"
            f"{duration(row['seconds']):>7}   {row['weights']}"
        )
    show.fact("trained", "\n".join(lines), models=rows)
    verdict = (
        "equal, byte for byte, to those of the unbroken run" if proof["equal"] else "DIFFERENT from the unbroken run's"
    )
    show.fact("nothing lost", f"final weights of the killed run are {verdict}", **proof)
