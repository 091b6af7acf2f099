"""`sports-ray bench`: what things cost on this machine, next to what they replace."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from sports_ray.stops import terminated_like_interrupted

if TYPE_CHECKING:
    from sports_ray.bench.figure import Figure


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure training, loader, checkpoints and starts on this machine, each next to what it replaces.

    \b
    sports-ray bench train                               against a bare PyTorch loop
    sports-ray bench train --timm-script timm/train.py   and against timm's script
    sports-ray bench loader --data photos                against timm's loader, per core
    sports-ray bench checkpoint                          what a commit costs
    sports-ray bench predict                             predictions, against a bare loop
    sports-ray bench start                               how long until the first step
    sports-ray bench recovery                            after each death, against plain Ray Train
    sports-ray bench tune                                a sweep, against its runs without Ray
    sports-ray bench pack                                packs against files
    sports-ray bench scale                               what 256 workers and 100 M images would do

    The sides take turns, and each figure is the median of its turns: compare ratios, for times are this machine's. Most
    take up to ten minutes on two cores, `recovery` a quarter of an hour.
    """
    click.get_current_context().with_resource(terminated_like_interrupted())


data_option = click.option("--data", default="", metavar="DIR", help="Photographs. Default: a set is drawn.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
rounds_option = click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns a side.")


@bench.command()
@data_option
@click.option("--model", default="convnext_atto", show_default=True, metavar="NAME", help="A timm model, from scratch.")
@click.option("--size", default=128, show_default=True, metavar="PX", help="Side of an image.")
@click.option("--batch", default=32, show_default=True, type=click.IntRange(2), help="Images of a step.")
@click.option("--steps", default=120, show_default=True, type=click.IntRange(8), help="Steps of a turn.")
@rounds_option
@click.option("--precision", default="bf16", show_default=True, type=click.Choice(["bf16", "fp16", "fp32"]))
@click.option("--workers", default="1", show_default=True, metavar="0|N", help="Workers; 0: without Ray.")
@click.option("--strict", is_flag=True, help="Train with --strict too, to show what it costs.")
@click.option("--timm-script", default="", metavar="PATH", help="timm's train.py, to compare with it too.")
@json_option
def train(as_json: bool, **options: Any) -> None:
    """The whole training path against a bare loop, and against timm's script.

    The path is a Ray worker with loader, rand-m7-n2, mixup, EMA and a commit in each turn. The bare loop trains the
    same model on tensors that lie in memory.

    \b
    sports-ray bench train
    sports-ray bench train --data photos --model test_convnext --size 160 --workers 0
    sports-ray bench train --data photos --timm-script pytorch-image-models/train.py
    """
    from sports_ray.orchestrate.cluster import prepare_environment

    environment = dict(os.environ)
    prepare_environment()
    # Imports torch, which reads what was prepared.
    from sports_ray.bench.train import Setting, bench_train

    _show("train", bench_train(Setting(**options), environment, _say), as_json)


@bench.command()
@data_option
@click.option("--size", default=160, show_default=True, metavar="PX", help="Side of a training image.")
@click.option("--images", default=512, show_default=True, type=click.IntRange(32), help="Images of a turn.")
@rounds_option
@json_option
def loader(as_json: bool, **options: Any) -> None:
    """The stream of images against timm's loader, per core.

    From the photographs as they are and blown up to 1024 x 768 px, to augmented uint8 batches; cached or not.

    \b
    sports-ray bench loader
    sports-ray bench loader --data photos --size 224
    """
    from sports_ray.bench.loader import Setting, bench_loader

    _show("loader", bench_loader(Setting(**options), _say), as_json)


@bench.command()
@data_option
@click.option("--model", default="convnext_atto", show_default=True, metavar="NAME", help="A timm model, from scratch.")
@click.option("--steps", default=160, show_default=True, type=click.IntRange(32), help="Steps of the run.")
@click.option("--every", default=16, show_default=True, type=click.IntRange(4), help="Steps between two commits.")
@json_option
def checkpoint(as_json: bool, **options: Any) -> None:
    """What a commit costs: stall of the training thread, writing, and slower steps meanwhile.

    \b
    sports-ray bench checkpoint
    sports-ray bench checkpoint --model convnext_tiny --every 40
    """
    from sports_ray.bench.checkpoint import Setting, bench_checkpoint

    _show("checkpoint", bench_checkpoint(Setting(**options), _say), as_json)


@bench.command()
@data_option
@click.option(
    "--model", default="convnext_atto", show_default=True, metavar="NAME", help="A timm model, random weights."
)
@click.option("--size", default=128, show_default=True, metavar="PX", help="Side of an image.")
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1), help="Images of a forward pass.")
@click.option("--images", default=12288, show_default=True, type=click.IntRange(1024), help="Images of a turn.")
@rounds_option
@click.option("--precision", default="bf16", show_default=True, type=click.Choice(["bf16", "fp16", "fp32"]))
@click.option("--workers", default="auto", show_default=True, metavar="0|N|auto", help="On Ray; 0: without that side.")
@click.option("--timm-script", default="", metavar="PATH", help="timm's validate.py, to compare with it too.")
@click.option("--rows", default=1_000_000, show_default=True, metavar="N", help="Made-up rows to score; 0: none.")
@json_option
def predict(as_json: bool, **options: Any) -> None:
    """Predictions in process and on Ray against a bare loop and timm's script; what mirrored views and scoring cost.

    All sides decode and predict the same photographs with the same model. The speed is that of the middle half of a
    turn: neither Ray's start counts nor what is decoded ahead.

    \b
    sports-ray bench predict
    sports-ray bench predict --data photos --timm-script pytorch-image-models/validate.py
    """
    from sports_ray.cli.evaluate import check_workers
    from sports_ray.orchestrate.cluster import prepare_environment

    check_workers(options["workers"])
    environment = dict(os.environ)
    prepare_environment()
    from sports_ray.bench.predict import Setting, bench_predict

    _show("predict", bench_predict(Setting(**options), environment, _say), as_json)


@bench.command()
@click.option("--files", default=20_000, show_default=True, metavar="N", help="Files of the folder to list; 0: none.")
@rounds_option
@json_option
def start(as_json: bool, **options: Any) -> None:
    """Seconds of --help, to the first step without and with Ray, and of listing a folder again.

    \b
    sports-ray bench start
    sports-ray bench start --files 100000
    """
    from sports_ray.bench.start import Setting, bench_start

    _show("start", bench_start(Setting(**options), _say), as_json)


@bench.command()
@click.option("--model", default="test_resnet", show_default=True, metavar="NAME", help="A timm model, from scratch.")
@click.option("--size", default=64, show_default=True, metavar="PX", help="Side of an image.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(4), help="Images of a step.")
@click.option("--every", default=5, show_default=True, type=click.IntRange(1), help="Steps between two commits.")
@rounds_option
@json_option
def recovery(as_json: bool, **options: Any) -> None:
    """Seconds to the next step after a start and after each death, against plain Ray Train with the same settings.

    Worker, controller, driver, a node and the whole cluster are really killed, and a node falls silent, on both sides.
    Plain Ray Train saves its own checkpoints; where it ends with its controller it is started again at once.

    \b
    sports-ray bench recovery
    sports-ray bench recovery --model convnext_atto --size 128 --every 20
    """
    from sports_ray.orchestrate.cluster import prepare_environment

    prepare_environment()
    from sports_ray.bench.recovery import Setting, bench_recovery

    _show("recovery", bench_recovery(Setting(**options), dict(os.environ) | {"RAY_ADDRESS": ""}, _say), as_json)


@bench.command()
@click.option(
    "--models", default="test_resnet,test_efficientnet", show_default=True, metavar="A,B", help="From scratch."
)
@click.option("--samples", default=4, show_default=True, type=click.IntRange(2), help="Trials of each backbone.")
@click.option("--epochs", default=24, show_default=True, type=click.IntRange(1), help="Length of a trial.")
@click.option("--images", default=256, show_default=True, type=click.IntRange(32), help="Photographs to train on.")
@click.option("--size", default=64, show_default=True, metavar="PX", help="Side of an image.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(4), help="Images of a step.")
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(1), help="Turns a side.")
@json_option
def tune(as_json: bool, **options: Any) -> None:
    """A sweep on two cores against its runs without Ray; seconds after the death of its driver.

    Trials of one thread each, two at once. The same runs are trained one after the other in one warm process without
    Ray, and for comparison in two such processes at once; their scores have to be equal. The ratio of the trials counts
    from the first one's start in its process to the last one's end, that of the whole command all that it takes: over a
    sweep of hours both are the same.

    \b
    sports-ray bench tune
    sports-ray bench tune --epochs 100 --rounds 1
    """
    from sports_ray.orchestrate.cluster import prepare_environment

    prepare_environment()
    from sports_ray.bench.tune import Setting, bench_tune

    _show("tune", bench_tune(Setting(**options), dict(os.environ) | {"RAY_ADDRESS": ""}, _say), as_json)


@bench.command()
@data_option
@click.option("--size", default=160, show_default=True, metavar="PX", help="Side of a training image.")
@click.option("--images", default=512, show_default=True, type=click.IntRange(32), help="Images of a turn.")
@click.option("--rows", default=100_000, show_default=True, type=click.IntRange(1000), help="Images of a pack to open.")
@rounds_option
@json_option
def pack(as_json: bool, **options: Any) -> None:
    """A pack against the files that it was made of: reading, the stream without a cache, opening, memory.

    \b
    sports-ray bench pack
    sports-ray bench pack --data photos --size 224
    """
    from sports_ray.bench.pack import Setting, bench_pack

    _show("pack", bench_pack(Setting(**options), _say), as_json)


@bench.command()
@click.option("--workers", default=256, show_default=True, type=click.IntRange(1))
@click.option("--per-node", default=8, show_default=True, type=click.IntRange(1), help="Workers of a node.")
@click.option("--images", default=100_000_000, show_default=True, type=click.IntRange(1), help="Of the training split.")
@click.option("--checkpoint-gb", default=10.0, show_default=True, help="Size of a checkpoint.")
@click.option("--node-hours", default=24.0, show_default=True, help="Mean life of a node.")
@click.option(
    "--storm-hours", default=24.0, show_default=True, help="Between losses of a quarter of all nodes; 0: none."
)
@click.option("--store-gb-s", default=2.0, show_default=True, help="What the store gives to all readers together.")
@click.option("--node-memory-gb", default=1000.0, show_default=True)
@click.option("--days", default=7.0, show_default=True, help="Length of the simulated run.")
@click.option(
    "--measure", default=1_000_000, show_default=True, type=click.IntRange(1000), help="Images to measure with."
)
@click.option(
    "--measure-mb", default=512, show_default=True, type=click.IntRange(64), help="Checkpoint to measure with."
)
@json_option
def scale(as_json: bool, measure: int, measure_mb: int, **options: Any) -> None:
    """What a run would do at a size that is not here, simulated with constants measured here.

    Which resource gives out first and at which size, and a week of deaths, storms and resizes at four numbers of
    workers. See sports_ray/bench/scale.py for all that is assumed.

    \b
    sports-ray bench scale
    sports-ray bench scale --workers 1024 --checkpoint-gb 40 --store-gb-s 10
    """
    from sports_ray.bench.scale import Setting
    from sports_ray.bench.scale_measure import bench_scale

    _show("scale", bench_scale(Setting(**options), measure, measure_mb, _say), as_json)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show(name: str, figures: list[Figure], as_json: bool) -> None:
    if as_json:
        for figure in figures:
            click.echo(json.dumps({"event": "figure", "bench": name, **figure.to_json()}))
        return
    width = max(len(figure.words) for figure in figures)
    for figure in figures:
        click.echo(f"{figure.words:<{width}}  {_number(figure.value):>8} {figure.unit:<15} {_verdict(figure)}".rstrip())


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def _verdict(figure: Figure) -> str:
    if figure.met is None:
        return ""
    bound = f"at least {figure.least:g}" if figure.least is not None else f"at most {figure.most:g}"
    return f"{'✓' if figure.met else '✗'} {bound}"
