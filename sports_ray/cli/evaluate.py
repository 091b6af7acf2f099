"""`eval-ensemble` and `predict`: what finished runs say of photographs, alone and together."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sports_ray.cli.evaluation_page import drop_page, show_page
from sports_ray.cli.score_show import refuse_bad, refuse_unsound, show_bad, show_scores
from sports_ray.cli.show import Show, choose_show, own_words
from sports_ray.errors import ConfigError
from sports_ray.stops import Stops
from sports_ray.store.storage import without_keys

if TYPE_CHECKING:
    from sports_ray.predict.plan import Plan

EVALUATE_EXAMPLES = """
\b
Examples:
  sports-ray eval-ensemble --data photos --run test_resnet-3f9a1c2e
  sports-ray eval-ensemble --data photos --run convnext --run swinv2 --tta hflip --weights fit
  sports-ray eval-ensemble --data photos --run runs/a --run downloads/b --workers 1:8 --out results

Killed at any moment, the same command goes on from the blocks of 256 images that were finished; finished, it answers from
disk. Another --tta, --run or --weights computes only what is new. Exit codes: 0 done, 2 your mistake, 3 failed, 75 stopped.
"""

PREDICT_EXAMPLES = """
\b
Examples:
  sports-ray predict --images holiday --run test_resnet-3f9a1c2e --out predictions.csv
  sports-ray predict --images test.csv --run a --run b --tta hflip --header id,label --top 3

The CSV has one row an image, sorted by name; names are paths below the folder, or the list's id. An image that cannot be
read gets a row too. Of runs with several classes a photograph it has the chosen labels, with | between them, and a column
with the probability of each class. Exit codes: 0 done (also with a warning of bad images), 2 your mistake, or bad images
with --strict.
"""

_RUN = click.option(
    "--run",
    "runs",
    multiple=True,
    required=True,
    metavar="RUN",
    help="A finished run: its name in the store, or its folder; RUN@last: not its best weights. Repeatable.",
)
_TTA = click.option(
    "--tta",
    default="none",
    show_default=True,
    metavar="VIEWS",
    help="none, hflip, 5crop, 10crop or scales=0.9,1.1: views of each image whose predictions are averaged.",
)
_AVERAGE = click.option(
    "--average", type=click.Choice(["probs", "logits"]), default="probs", show_default=True, help="What is averaged."
)
_STORE = click.option(
    "--store",
    default="",
    metavar="DIR|URI",
    help="Where runs and predictions are kept. Default: ./runs, or where the first run lies.",
)
_BATCH = click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images of one forward pass. Default: 32, on a GPU 128. Another one may change the last bits.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@click.command("eval-ensemble", epilog=EVALUATE_EXAMPLES)
@click.option(
    "--data",
    default="",
    metavar="DIR",
    help="Photographs: a folder with test/, a folder of classes, or a CSV list. Default: where the first run was trained.",
)
@click.option(
    "--split",
    default="test",
    show_default=True,
    metavar="NAME",
    help="Which of them: test, val or train, or the name of a folder.",
)
@_RUN
@_TTA
@click.option(
    "--weights",
    type=click.Choice(["uniform", "fit"]),
    default="uniform",
    show_default=True,
    help="Of members; fit: on validation images, used only where a paired test says that it helps.",
)
@_AVERAGE
@click.option(
    "--workers",
    default="auto",
    metavar="0|N|MIN:MAX",
    help="0: in this process, no Ray. Default: all GPUs, or all CPUs, on Ray.",
)
@click.option(
    "--groups",
    default="",
    metavar="CSV",
    help="Groups of classes to score apart: a column class, and one for each way to group.",
)
@_STORE
@click.option(
    "--out",
    default="",
    metavar="DIR",
    help="For predictions.parquet, scores.json and report.html. Default: <store>/evaluations/<digest>",
)
@click.option("--heat", is_flag=True, help="Lay Grad-CAM over the mistakes in report.html; takes some seconds more.")
@_BATCH
@click.option("--strict", is_flag=True, help="Exit with 2 if an image cannot be read.")
@_JSON
def eval_ensemble(
    runs: tuple[str, ...], workers: str, heat: bool, batch: int | None, strict: bool, as_json: bool, **settings: Any
) -> int:
    """Score finished runs on a split: each alone, without and with test-time augmentation, and all together."""
    check_workers(workers)
    command = _Command(as_json)
    try:
        from sports_ray.predict.plan import plan_evaluation

        plan = plan_evaluation(runs, **settings, progress=command.scanning())
        command.show_plan(plan)
        scores = plan.finished()
        fresh = scores is None
        if scores is None:
            drop_page(plan)
            from sports_ray.orchestrate.cluster import prepare_environment

            prepare_environment()
            from sports_ray.predict.evaluate import evaluate

            scores = evaluate(plan, command.computer(workers, plan), command.progress, command.words, batch=batch or 0)
        else:
            command.show.fact("finished", "answered from disk", **{"from_disk": True})
        show_scores(scores, plan, command.show)
        show_page(plan, command.show, heat=heat, anew=fresh or heat)
        if strict:
            refuse_bad(scores["data"]["bad"])
            refuse_unsound(scores["candidates"])
        return 0
    finally:
        command.close()


@click.command(epilog=PREDICT_EXAMPLES)
@click.option(
    "--images",
    required=True,
    metavar="DIR|CSV",
    help="Images at any depth of a folder, or a CSV list with a column path (and id).",
)
@_RUN
@_TTA
@_AVERAGE
@click.option("--out", default="predictions.csv", show_default=True, metavar="CSV", type=click.Path(path_type=Path))
@click.option("--header", default="image_id,class", show_default=True, metavar="NAMES", help="Of the two columns.")
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=0,
    metavar="K",
    help="The K most probable classes, with their probabilities.",
)
@click.option(
    "--fill",
    default="",
    metavar="CLASS",
    help="What to write as the class of an image that cannot be read. Default: nothing.",
)
@click.option(
    "--workers",
    default="0",
    show_default=True,
    metavar="0|N|MIN:MAX|auto",
    help="0: in this process, no Ray; auto: all GPUs, or all CPUs, on Ray.",
)
@_STORE
@_BATCH
@click.option("--strict", is_flag=True, help="Exit with 2 if an image cannot be read.")
@_JSON
def predict(
    runs: tuple[str, ...],
    images: str,
    out: Path,
    header: str,
    top: int,
    fill: str,
    workers: str,
    batch: int | None,
    strict: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Predict the class of each image into a CSV, ready to be submitted."""
    check_workers(workers)
    command = _Command(as_json)
    try:
        from sports_ray.predict.write import check_out, label_lists, parse_header, submission, write_text

        names = parse_header(header)
        check_out(out, images)
        from sports_ray.predict.plan import plan_prediction
        from sports_ray.predict.record import chosen_thresholds

        plan = plan_prediction(runs, images, **settings, progress=command.scanning())
        if plan.multilabel and top:
            raise ConfigError(
                "--top", got=top, want="nothing: the probability of every class is written", cure="leave it out"
            )
        command.show_plan(plan)
        from sports_ray.orchestrate.cluster import prepare_environment

        prepare_environment()
        from sports_ray.predict.columns import output_errors
        from sports_ray.predict.evaluate import predict as predict_all

        table, errors = predict_all(plan, command.computer(workers, plan), command.progress, batch=batch or 0)
        errors = output_errors(table, errors, plan.multilabel)
        if plan.multilabel:
            cuts = chosen_thresholds(plan)
            text = label_lists(plan.names, table, errors, plan.classes, cuts, names, fill)
        else:
            text = submission(plan.names, table, errors, plan.classes, names, min(top, len(plan.classes)), fill)
        write_text(out, text)
        bad = [{"path": plan.names[row], "error": error} for row, error in enumerate(errors) if error is not None]
        show_bad(bad, command.show)
        rows = f"{len(plan.names):,} rows"
        command.show.fact("written", f"{out} · {rows}", path=str(out), rows=len(plan.names), bad=bad)
        if strict:
            refuse_bad(bad)
        return 0
    finally:
        command.close()


class _Command:
    """A command from its first moment on: signals, what is shown, and how to go on."""

    def __init__(self, as_json: bool) -> None:
        from sports_ray.cli.blocks_show import BlocksShow

        self.stops = Stops().install()
        self.words = own_words()
        self.show: Show = choose_show(as_json)
        self.blocks = BlocksShow(self.show, as_json)
        self.stops.leave_with(self._leave)

    def progress(self, event: Mapping[str, Any]) -> None:
        self.blocks.event(event)

    def scanning(self) -> Callable[[int, int], None] | None:
        from sports_ray.cli.train import scan_progress

        return scan_progress()  # type: ignore[no-any-return]

    def computer(self, workers: str, plan: Plan) -> Any:
        from sports_ray.orchestrate.predict import computer

        log = None if "://" in plan.home else Path(plan.home) / "predictions" / "ray.log"
        return computer(workers, log=log, ready=self.stops.install)

    def show_plan(self, plan: Plan) -> None:
        labels = plan.images.column("label")
        known = sum(label >= 0 for label in labels)
        place = without_keys(plan.data)
        text = f"{len(plan.images):,} of {plan.split} in {place} · {known:,} labelled"
        if not plan.split:
            text = f"{len(plan.images):,} in {place}"
        facts = {"images": len(plan.images), "labelled": known, "split": plan.split, "notes": list(plan.notes)}
        self.show.fact("photos", "\n".join([text, *(f"! {note}" for note in plan.notes)]), **facts)
        for member in plan.members:
            views = len(plan.views(member))
            text = f"{member.name} · {member.model} · {member.kind} weights · {member.spec.eval_size} px · {member.precision}"
            text += f" · {views} views ({plan.tta})" if views > 1 else ""
            facts = {"name": member.name, "model": member.model, "weights": member.kind, "sha256": member.sha256}
            self.show.fact("member", text, **facts, views=views)

    def close(self) -> None:
        self.stops.ignore()
        self.blocks.close()
        self.show.close()

    def _leave(self, reason: str) -> None:
        command = shlex.join(self.words)
        self.blocks.close()
        text = f"finished blocks are safe ({reason}). Go on with:\n{command}"
        self.show.fact("paused", text, reason=reason, command=command)
        self.show.close()


def check_workers(workers: str) -> None:
    if workers != "auto" and not re.fullmatch(r"\d+(:\d+)?", workers):
        raise ConfigError("--workers", got=workers, want="0, N, MIN:MAX or auto", cure="for example --workers 1:4")
