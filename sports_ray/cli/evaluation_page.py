"""The page of an evaluation, written together with its scores: at once, so without heat unless that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sports_ray.errors import ConfigError, SportsRayError

if TYPE_CHECKING:
    from sports_ray.cli.show import Show
    from sports_ray.predict.plan import Plan

PAGE, PLOTS, SCORES = "report.html", "plots", "scores.json"


def drop_page(plan: Plan) -> None:
    """Takes away the page of what is about to be scored anew; ConfigError if it is not an evaluation's."""
    if "://" in plan.out:
        return
    storage = plan.storage()
    if storage.exists(PAGE) and not storage.exists(SCORES):
        raise ConfigError(
            "--out", got=f"{plan.out}, with a {PAGE} of something else", want="a new folder, or that of an evaluation"
        )
    storage.delete(PAGE)


def show_page(plan: Plan, show: Show, *, heat: bool, anew: bool) -> None:
    """Writes the page if it is not there, or if `anew`, and names it. One that cannot be written costs a warning.

    heat: with Grad-CAM laid over the mistakes, which loads a model and decodes photographs."""
    if "://" in plan.out:
        return  # a page is written from a folder; `sports-ray report` needs a copy of it
    try:
        storage = plan.storage()
        if anew or not storage.exists(PAGE):
            from sports_ray.cli.report import write_report
            from sports_ray.predict.blocks import sweep

            for folder in ("", PLOTS):  # of a death while it was written
                sweep(storage, folder)
            write_report(plan.out, plan.home, heat=heat)
    except SportsRayError as error:
        show.fact("report", f"! not written: {error}", error=str(error))
        return
    page = f"{plan.out}/{PAGE}"
    show.fact("report", page, path=page)
