"""What a training is going to do, why it paused, what came of it: for people and for machines."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from sports_ray.cli.show import Show, duration

if TYPE_CHECKING:
    from sports_ray.data.manifest import Manifest
    from sports_ray.engine.link import Outcome
    from sports_ray.orchestrate.plan import Plan


def show_plan(plan: Plan, show: Show) -> None:
    for name, text, data in plan_facts(plan):
        show.fact(name, text, **data)
    if plan.lengthened:
        from sports_ray.orchestrate.extend import newest_words

        last = plan.config.loop.extensions[-1]
        facts = {"from_epochs": last.after, "to_epochs": plan.config.loop.epochs, "schedule": last.schedule}
        show.fact("extended", newest_words(plan.config, plan.schedule.steps_per_epoch), **facts)


def plan_facts(plan: Plan) -> list[tuple[str, str, dict[str, Any]]]:
    """The plan as (name, words, data), for people and for machines."""
    schedule, manifest = plan.schedule, plan.manifest
    counts = {split: manifest.rows(split).num_rows for split in ("train", "val", "test")}
    test = f"{counts['test']:,}, untouched" if counts["test"] else "none"
    photos = f"{counts['train']:,} train · {counts['val']:,} validation · test: {test}"
    photos += f" · {len(manifest.classes)} classes"
    if (copies := schedule.train_images - counts["train"]) > 0:
        photos += f" · {copies:,} copies of small classes"
    photos += " · each class drawn as often" if plan.config.data.sampler == "weighted" else ""
    photos += ", several a photograph" if manifest.multilabel else ""
    lines = [photos, *(f"! {note}" for note in manifest.notes)]
    facts = {**counts, "classes": len(manifest.classes), "notes": list(manifest.notes)}
    sizes = {
        "epochs": schedule.epochs,
        "steps_per_epoch": schedule.steps_per_epoch,
        "total_steps": schedule.total_steps,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "workers": list(plan.workers),
    }
    model = {"name": plan.config.model.name, "parameters": plan.parameters, "image_size": plan.image_size}
    return [
        ("photos", "\n".join(lines), facts),
        ("model", _model_words(plan), model),
        ("plan", _plan_words(plan), sizes),
        (
            "run",
            f"{plan.run_dir.storage.uri}      {plan.status}",
            {"name": plan.name, "store": plan.store, "status": plan.status},
        ),
    ]


def _model_words(plan: Plan) -> str:
    model, precision = plan.config.model, plan.config.loop.precision
    starts = {"none": "from scratch", "auto": "from timm's pretrained weights"}
    start = starts.get(model.weights, f"from {model.weights}")
    return f"{model.name} · {plan.parameters / 1e6:.2f} M parameters · {start} · {plan.image_size} px · {precision}"


def _plan_words(plan: Plan) -> str:
    schedule, store, (low, high) = plan.schedule, plan.config.store, plan.workers
    every = [f"every {store.every_steps} steps"] if store.every_steps else []
    if store.every_seconds == "auto":
        every += ["as often as pays"]
    elif store.every_seconds:
        every += [f"every {store.every_seconds:g} s"]
    workers = f"{low} to {high} workers" if low < high else f"{low} worker{'s' * (low > 1)}"
    return (
        f"{schedule.epochs} epochs x {schedule.steps_per_epoch} steps · batch {schedule.global_batch} in "
        f"{schedule.lanes} lanes · commits {' and '.join(every)} ({plan.checkpoint_bytes / 1e6:.0f} MB) · "
        f"{workers if high else 'in this process'}"
    )


def show_dry_run(plan: Plan, show: Show) -> None:
    from sports_ray.recipe import config_to_dict, to_toml

    show.fact("config", to_toml(plan.config), config=config_to_dict(plan.config))
    show_plan(plan, show)
    table = class_counts(plan.manifest)
    lines = [f"{name}: {train} train, {val} validation, {test} test" for name, train, val, test in table]
    show.fact("classes", "\n".join(lines), classes=[list(row) for row in table])


def class_counts(manifest: Manifest) -> list[tuple[str, int, int, int]]:
    """(class, train, val, test images), a row a class."""
    columns = []
    for split in ("train", "val", "test"):
        columns.append(manifest.class_images(split).tolist())
    return list(zip(manifest.classes, *columns, strict=True))


def show_pause(plan: Plan, outcome: Outcome, show: Show, command: str) -> None:
    """`command`: the words that go on with it."""
    text = f"step {outcome.step} of {outcome.total_steps} is safe ({outcome.reason})."
    if outcome.lost:
        text += f" The store did not take the {outcome.lost} steps after it, they will be trained again."
    text += f" First {outcome.cure}, then go on with:" if outcome.cure else " Go on with:"
    facts = {"step": outcome.step, "total_steps": outcome.total_steps, "reason": outcome.reason, "command": command}
    facts |= {"lost_steps": outcome.lost, "cure": outcome.cure, "note": outcome.note}
    show.fact("paused", "\n".join([text, command, *([f"! {outcome.note}"] if outcome.note else [])]), **facts)


def show_summary(plan: Plan, show: Show) -> None:
    """Scores with their interval, where the weights lie, and what to do next."""
    from sports_ray.engine.record import time_facts
    from sports_ray.score.main_score import NAMES, score_name, score_of, wilson

    run_dir = plan.run_dir
    where = run_dir.storage.uri
    for name in ("best", "last"):
        sidecar = run_dir.describe_weights(name) or {}
        scores = sidecar.get("scores", {})
        name_of, score = score_name(scores), score_of(scores)
        text = f"step {sidecar.get('step')}"
        data: dict[str, Any] = {
            "step": sidecar.get("step"),
            "scores": scores,
            "weights": f"{where}/weights/{name}.safetensors",
        }
        if score is not None and name_of != "acc1":
            text = f"val {NAMES[name_of]} {score:.4f} ({int(scores['val_images'])} images) · {text}"
        elif score is not None:
            images = int(scores["val_images"])
            low, high = wilson(round(score * images), images)
            text = f"val acc1 {score:.4f} (95 %: {low:.3f} to {high:.3f}, {images} images) · {text}"
            data["interval95"] = [low, high]
        show.fact(name, f"{text} · {where}/weights/{name}.safetensors", **data)
    facts = time_facts(run_dir.read_timings())
    show.fact("done", f"{duration(facts['seconds'])} of training in {facts['sessions']} sessions", **facts)
    commands = next_commands(plan)
    show.fact("next", "\n".join(commands), commands=commands)


def next_commands(plan: Plan) -> list[str]:
    """What to look at a finished run with, to be pasted into a shell. An address keeps its options, and loses a key and
    secret in it; only files of this machine are named to TensorBoard, which knows none of the options."""
    from sports_ray.store.storage import below, without_keys

    commands = [["sports-ray", "status", without_keys(below(plan.store, plan.name))]]
    where = plan.run_dir.storage.uri
    if "://" not in where:
        commands.append(["tensorboard", "--logdir", f"{where}/tensorboard"])
    return [shlex.join(words) for words in commands]
