"""The prediction path against a bare DataLoader loop and, where it is at hand, timm's validation script; what views and a
million rows cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sports_ray.bench.figure import Figure, Say, median, middle_rate, ratio, take_turns
from sports_ray.bench.photos import linked, listed, photographs
from sports_ray.bench.predict_bare import bare_predict_turn
from sports_ray.bench.scoring import score_turn
from sports_ray.bench.timm_script import timm_validate_per_second
from sports_ray.config import ModelConfig
from sports_ray.errors import ConfigError
from sports_ray.model.build import create, image_spec
from sports_ray.orchestrate.predict import computer
from sports_ray.predict.blocks import ROWS
from sports_ray.predict.member import Member, find_member
from sports_ray.predict.plan import Plan, plan_prediction
from sports_ray.predict.work import Work
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage

PER_BARE = 0.95
PER_TIMM = 1.2
PER_PLAIN = 0.5
MOST_MEMORY, MOST_SECONDS = 2.0, 60.0
"""GiB and seconds, of scoring a million rows."""
CLASSES = 102
"""Of the rows that are made up."""
LEAST_BLOCKS = 4
"""Speed is measured between the first quarter of the blocks and the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all sides have in common."""

    data: str = ""
    """Folder of photographs; empty: drawn."""
    model: str = "convnext_atto"
    size: int = 128
    batch: int = 32
    images: int = 12288
    """Of one turn; where there are fewer photographs, they come again."""
    rounds: int = 3
    precision: str = "bf16"
    workers: str = "auto"
    """On Ray; 0: not on Ray at all."""
    timm_script: str = ""
    rows: int = 1_000_000
    """To be scored; 0: none."""
    per_class: int = 64
    """Photographs a class, where they are drawn."""


def bench_predict(setting: Setting, environment: Mapping[str, str], say: Say = lambda line: None) -> list[Figure]:
    """Images per second of each side and their ratios; memory and time of scoring.

    `environment`: the user's, for the other sides; this process's was changed for ours."""
    if setting.timm_script and not Path(setting.timm_script).is_file():
        raise ConfigError("--timm-script", got=setting.timm_script, want="timm's validate.py", cure="check the path")
    with tempfile.TemporaryDirectory(prefix="sports-ray-bench-") as name:
        folder = Path(name)
        root = photographs(setting.data, folder, max(160, setting.size), setting.per_class, say)
        manifest = listed(root, folder)
        blocks = max(LEAST_BLOCKS, -(-setting.images // ROWS))
        tree = linked(manifest, folder / "linked", blocks * ROWS, split="test", repeat=True)
        short = linked(manifest, folder / "short", LEAST_BLOCKS * ROWS, split="test", repeat=True)
        member = make_member(folder / "runs", "member", setting, manifest.classes)
        turns = _turns(setting, member, (tree, short), environment, say)
        values = take_turns(setting.rounds, turns, say)
        figures = _figures(values)
        if setting.rows:
            figures += _scoring(setting, folder, environment, say)
    return figures


def make_member(store: Path, name: str, setting: Setting, classes: Sequence[str]) -> Member:
    """A member with drawn weights: a run folder with all that a prediction needs."""
    model = create(ModelConfig(name=setting.model), len(classes), setting.size)
    sidecar = {
        "model": setting.model, "classes": list(classes), "step": 1, "epochs": 1, "weights": "model", "scores": {},
        "preprocessing": asdict(image_spec(model, setting.size)),
    }  # fmt: skip
    RunDir.open(open_storage(str(store)), name).publish_weights("best", model.state_dict(), sidecar)
    return replace(find_member(name, str(store)), precision=setting.precision)


def _turns(
    setting: Setting, member: Member, trees: tuple[Path, Path], environment: Mapping[str, str], say: Say
) -> dict[str, Callable[[], float]]:
    """trees: the photographs of a turn, and those of a trial."""
    tree, batch = trees[0], setting.batch
    plans = {tta: _plan(member, tree, tta) for tta in ("none", "hflip")}

    def bare(workers: int, tree: Path) -> float:
        return bare_predict_turn(member, tree, batch, workers, environment)

    def timm(workers: int, tree: Path) -> float:
        script = Path(setting.timm_script)
        return timm_validate_per_second(script, tree, member, batch=batch, workers=workers, environment=environment)

    turns: dict[str, Callable[[], float]] = {
        "bare": _faster("bare loop", bare, trees, say),
        "here": partial(_rate, plans["none"], setting, "0", tree.parent),
        "ray": partial(_rate, plans["none"], setting, setting.workers, tree.parent),
        "hflip": partial(_rate, plans["hflip"], setting, "0", tree.parent),
    }
    if setting.workers == "0":
        del turns["ray"]
    if setting.timm_script:
        turns["timm"] = _faster("timm's script", timm, trees, say)
    return turns


def _faster(name: str, run: Callable[[int, Path], float], trees: tuple[Path, Path], say: Say) -> Callable[[], float]:
    """One turn of another side, with one loader process or two, whichever a trial finds faster."""
    trial = {workers: run(workers, trees[1]) for workers in (1, 2)}
    say(f"{name}: {trial[1]:.4g} with one loader process, {trial[2]:.4g} with two")
    return partial(run, max(trial, key=lambda workers: trial[workers]), trees[0])


def _plan(member: Member, tree: Path, tta: str) -> Plan:
    plan = plan_prediction([str(Path(member.store) / member.run)], str(tree), tta=tta)
    return replace(plan, members=(member,))


def _rate(plan: Plan, setting: Setting, workers: str, folder: Path) -> float:
    """Images per second of one member through the path that users take, all of it computed anew."""
    done: list[tuple[float, int]] = []

    def on_progress(event: Mapping[str, Any]) -> None:
        if event["kind"] == "block":
            done.append((time.perf_counter(), event["images"]))

    with tempfile.TemporaryDirectory(dir=folder) as home:
        work = Work.of(replace(plan, home=home), plan.images, computer(workers), on_progress, batch=setting.batch)
        work.complete()
    return middle_rate(done)


def _figures(values: Mapping[str, list[float]]) -> list[Figure]:
    words = {
        "bare": "bare DataLoader loop, the same model, batch and pixels",
        "here": "prediction path in this process",
        "ray": "prediction path on Ray",
        "hflip": "prediction path with --tta hflip",
        "timm": "timm's validation script",
    }
    sides = {name: median(name, words[name], found, "images/s") for name, found in values.items()}
    figures = list(sides.values())
    for other, least in (("bare", PER_BARE), ("timm", PER_TIMM)):
        for ours in ("here", "ray"):
            if ours in sides and other in sides:
                text = f"{'on Ray' if ours == 'ray' else 'in process'} / {words[other].partition(',')[0]}"
                figures.append(ratio(f"{ours}_per_{other}", text, sides[ours], sides[other], least))
    figures.append(ratio("hflip_per_plain", "with hflip / without", sides["hflip"], sides["here"], PER_PLAIN))
    return figures


def _scoring(setting: Setting, folder: Path, environment: Mapping[str, str], say: Say) -> list[Figure]:
    """Time and memory of the driver's own work, where all is computed: prove, merge, score, write."""
    say(f"making up {setting.rows:,} rows of {CLASSES} logits")
    small = replace(setting, model="test_resnet", size=32)
    make_member(folder / "scored", "member", small, [f"class {number:03d}" for number in range(CLASSES)])
    seconds, memory = score_turn(folder / "scored", setting.rows, environment)
    share = setting.rows / 1_000_000
    words = f"scoring {setting.rows:,} rows of {CLASSES} logits, from disk to disk"
    return [
        Figure(name="scoring_seconds", words=words, value=seconds, unit="s", most=MOST_SECONDS * share),
        Figure(name="scoring_memory", words="the same: most memory", value=memory, unit="GiB", most=MOST_MEMORY),
    ]
