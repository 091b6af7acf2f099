"""`report` and `explain`: a run or an evaluation as a page, and where in a photograph a model looks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sports_ray.errors import DataError, RunError, SportsRayError

if TYPE_CHECKING:
    from sports_ray.report.explain import Seer
    from sports_ray.report.page import Page
    from sports_ray.report.read_evaluation import EvaluationRecord
    from sports_ray.store.run_dir import RunDir
    from sports_ray.store.storage import Storage


@click.command()
@click.argument("target", metavar="RUN|SWEEP|DIR")
@click.option("--store", metavar="DIR|URI", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--run", "runs", multiple=True, metavar="RUN", help="A member of the evaluation, where it lies now.")
@click.option("--groups", metavar="CSV", help="Groups of classes: a header class,COLUMN,... and a row a class.")
@click.option("--heat/--no-heat", default=True, show_default=True, help="Lay Grad-CAM over the mistakes.")
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def report(
    target: str, store: str, runs: tuple[str, ...], groups: str | None, heat: bool, show: bool, as_json: bool
) -> int:
    """Write RUN, SWEEP, or the evaluation in DIR, as one page: report.html in its folder, its plots as PNG beside it.

    \b
    A run: curves over all sessions, learning rate, sessions, photographs, settings and versions. An evaluation: its
    candidates with intervals and paired tests, classes, confusion, the worst mistakes, calibration, and its runs.
    A sweep: its leaderboard, scores against settings, learning curves, and what deaths have cost.

    \b
    Examples:
      sports-ray report runs/test_resnet-3f9a1c2e --open
      sports-ray report runs/evaluations/5d0c7a9131d24b6c --groups groups.csv
    """
    page, *plots = write_report(target, store, runs, groups, heat)
    if as_json:
        click.echo(json.dumps({"page": page, "plots": plots}))
    else:
        click.echo(f"report      {page}")
        click.echo(f"plots       {len(plots)} PNG files in {page.rpartition('/')[0]}/plots")
    if show and "://" not in page:
        click.launch(Path(page).resolve().as_uri())
    return 0


def write_report(
    target: str, store: str = "runs", runs: Sequence[str] = (), groups: str | None = None, heat: bool = True
) -> list[str]:
    """Writes the page of a run or an evaluation and its plots; their paths or addresses, the page first."""
    from sports_ray.report.page import write

    page, storage = _page(target, store, runs, groups, heat)
    return [f"{storage.uri}/{path}" for path in write(page, storage)]


def _page(target: str, store: str, runs: Sequence[str], groups: str | None, heat: bool) -> tuple[Page, Storage]:
    from sports_ray.report.page import evaluation_page, run_page
    from sports_ray.report.read_evaluation import is_evaluation, read_evaluation
    from sports_ray.report.read_run import read_run
    from sports_ray.store.storage import open_storage

    if is_evaluation(Path(target)):
        evaluation = read_evaluation(Path(target))
        found = _members(evaluation, runs, store)
        records = [read_run(run_dir, name) for name, run_dir in found.items()]
        seer = _seer(evaluation, found, () if runs else _places(evaluation)) if heat else None
        return evaluation_page(evaluation, records, seer, Path(groups) if groups else None), open_storage(target)
    if groups:
        cure = "name the folder that eval-ensemble wrote"
        raise DataError("--groups", got=f"{target}, no evaluation", want="a folder with scores.json", cure=cure)
    from sports_ray.sweep.folder import find_sweep

    if (sweep := find_sweep(target, store)) is not None:
        from sports_ray.report.page import sweep_page
        from sports_ray.report.read_sweep import read_sweep

        return sweep_page(read_sweep(sweep)), sweep.storage
    run_dir = _run_dir(target, store)
    if run_dir is None:
        want = f"a run in {store}, the path of one, or an evaluation's folder"
        raise RunError("run", got=target, want=want, cure="see `sports-ray status`")
    return run_page(read_run(run_dir, _name(run_dir))), run_dir.storage


def _run_dir(run: str, store: str) -> RunDir | None:
    """A run, a name in `store` or the path or URI of its folder; None if there is none."""
    from sports_ray.store.run_dir import RunDir
    from sports_ray.store.storage import open_storage

    found = [RunDir(open_storage(run))]
    if "/" not in run:
        with suppress(RunError):  # a path such as "..", which no run can be called
            found.insert(0, RunDir.open(open_storage(store), run))
    for run_dir in found:
        if any(run_dir.storage.exists(name) for name in ("run.json", "run.copy.json")):
            return run_dir
    return None


def _name(run_dir: RunDir) -> str:
    return run_dir.storage.uri.rstrip("/").rpartition("/")[2] or "run"


def _members(evaluation: EvaluationRecord, runs: Sequence[str], store: str) -> dict[str, RunDir]:
    """Folders of the members that can be found, by name: those named now, else where the evaluation saw them, or, as the
    store may have moved, beside the evaluation."""
    found: dict[str, RunDir] = {}
    for run in runs:
        run_dir = _run_dir(run, store)
        if run_dir is None:
            raise RunError(
                "--run", got=run, want=f"a run in {store}, or the path of one", cure="see `sports-ray status`"
            )
        found[_name(run_dir)] = run_dir
    for name, place in _places(evaluation) if not runs else ():
        with suppress(SportsRayError):
            run_dir = _run_dir(place, store)
            if run_dir is not None:
                found.setdefault(name, run_dir)
    return found


def _places(evaluation: EvaluationRecord) -> Iterator[tuple[str, str]]:
    """Names of the members and where each may lie: where the evaluation saw it, or beside the evaluation."""
    home = evaluation.folder.resolve().parent.parent
    for name, where in evaluation.runs.items():
        yield name.partition("@")[0], where
        yield name.partition("@")[0], str(home / where.rstrip("/").rpartition("/")[2])


def _seer(evaluation: EvaluationRecord, members: dict[str, RunDir], others: Iterable[tuple[str, str]]) -> Seer | None:
    """The best single model where it is at hand, else the first member that is; `others`: folders with weights alone."""
    best = str(evaluation.scores.get("best_single") or "").partition("/")[0].partition("@")[0]
    places = [(name, run_dir.storage.uri) for name, run_dir in members.items()]
    for _, place in sorted([*places, *others], key=lambda one: one[0] != best):
        with suppress(SportsRayError):
            seer = open_seer(place)
            if list(seer.classes) == evaluation.classes:
                return seer
    return None


def open_seer(run: str, store: str = "runs") -> Seer:
    """The model of a finished run, on the GPU where there is one; RunError or WeightsError as `predict.member` says."""
    import torch

    from sports_ray.predict.member import find_member, load_model
    from sports_ray.report.explain import Seer

    member = find_member(run, store)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(member, device)
    return Seer(member.name, model, member.classes, member.spec, device, member.max_pixels, member.multilabel)


@click.command()
@click.option("--run", required=True, metavar="RUN", help="A finished run: a name in the store, or its folder.")
@click.option(
    "--images", required=True, multiple=True, metavar="DIR|PACK|FILES", help="Photographs; folders, packs of them."
)
@click.argument("more", nargs=-1, metavar="")
@click.option(
    "--class", "target", metavar="NAME", help="Show the evidence for this class. Default: the model's answer."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("explained"), show_default=True, metavar="DIR")
@click.option("--store", metavar="DIR|URI", default="runs", show_default=True, help="Where runs are kept.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an image.")
def explain(
    run: str, images: tuple[str, ...], more: tuple[str, ...], target: str | None, out: Path, store: str, as_json: bool
) -> int:
    """Show where in photographs RUN finds the evidence for a class (Grad-CAM): an overlay of each as PNG in --out.

    \b
    Examples:
      sports-ray explain --run runs/test_resnet-3f9a1c2e --images photos/test
      sports-ray explain --run test_resnet-3f9a1c2e --images a.jpg b.jpg --class tennis
    """
    from sports_ray.report.overlays import explain_files, list_images

    files = list_images((*images, *more))
    seer = open_seer(run, store)
    counts = [0, 0]
    for done in explain_files(seer, files, out, target):
        counts[bool(done.error)] += 1
        if as_json:
            click.echo(json.dumps(done.facts(), ensure_ascii=False))
        elif done.error:
            click.echo(f"! {done.path}: {done.error}", err=True)
        else:
            click.echo(f"{done.probability:>6.1%}  {done.shown:<24} {done.overlay}")
    if not counts[0]:
        raise DataError(
            "photographs", got=f"{counts[1]}, none of which can be read", want="JPEG, PNG, WebP, BMP or GIF"
        )
    if not as_json:
        click.echo(
            f"explained   {counts[0]:,} photographs in {out}" + (f", {counts[1]:,} cannot be read" if counts[1] else "")
        )
    return 0
