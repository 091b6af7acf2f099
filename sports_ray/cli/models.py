"""`sports-ray models` and `sports-ray recipes`: what there is to train, and ready settings for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

COLUMNS = "{:<{width}}  {:>10}  {:>5}  {:>4}  {:<13}  {:<8}  {:<35}  {}"


@click.command()
@click.argument("filters", metavar="[FILTER]...", nargs=-1)
@click.option("--measure", is_flag=True, help="Measure the speed of each here; FILTERs are then names.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table of architectures as Markdown.")
@click.option(
    "--seconds", default=3.0, show_default=True, type=click.FloatRange(0.01), help="Of each of the two measurements."
)
@click.option("--batch", default=0, type=click.IntRange(0), help="Images at once. Default: 64 on a GPU, 8 on a CPU.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def models(
    filters: tuple[str, ...], measure: bool, as_markdown: bool, seconds: float, batch: int, as_json: bool
) -> None:
    """List models: parameters, input size and preprocessing; or the table of architectures.

    FILTER is a part of a name or a shell pattern; without it, the models that recipes and aliases use and the small
    test models are listed. Sizes are in pixels; parameters are those with the model's own number of classes.

    With --measure or --markdown: what each is for, its published accuracy where an installed package tells it, and
    with --measure images per second of training and evaluation on this machine, each for some seconds.

    \b
    Examples:
      sports-ray models
      sports-ray models swinv2_large
      sports-ray models 'convnext*in22k*' --json
      sports-ray models --measure resnet50 efficientnet_b0 convnext_tiny
      sports-ray models --markdown > models.md
    """
    if measure or as_markdown:
        from sports_ray.cli.architectures import show_architectures
        from sports_ray.orchestrate.cluster import prepare_environment

        prepare_environment()  # before torch is imported: threads are then those of a training
        show_architectures(filters or tuple(_recommended()), measure, seconds, batch, as_json)
        return
    names = {name: full for each in filters for name, full in _matching(each).items()} if filters else _recommended()
    if as_json:
        click.echo(json.dumps(list(_facts(names)), indent=2))
        return
    width = max(map(len, names))
    titles = ("name", "parameters", "train", "test", "crop", "resize", "mean / std", "weights")
    click.echo(COLUMNS.format(*titles, width=width))
    for row in _facts(names):
        click.echo(COLUMNS.format(*_cells(row), width=width))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    crop = f"{row['crop_pct']:g} {row['crop_mode']}"
    norm = " / ".join(" ".join(f"{value:.3f}" for value in row[key]) for key in ("mean", "std"))
    first = (row["alias"] or row["name"], f"{row['parameters'] / 1e6:.2f} M")
    sizes = (str(row["train_size"]), str(row["eval_size"]))
    return (*first, *sizes, crop, row["interpolation"], norm, "none" if row["weights"] == "none" else "hub")


def _recommended() -> dict[str, str]:
    """Names as one types them -> timm names: aliases, recipes' models, small test models."""
    from sports_ray.model.build import ALIASES, resolve_name
    from sports_ray.model.eager_timm import timm
    from sports_ray.recipe import load_recipe, recipe_names

    of_recipes = [load_recipe(name)["model"]["name"] for name in recipe_names()]
    return {name: resolve_name(name) for name in dict.fromkeys([*ALIASES, *of_recipes, *timm.list_models("test_*")])}


def _matching(text: str) -> dict[str, str]:
    from sports_ray.model.build import ALIASES, resolve_name
    from sports_ray.model.eager_timm import timm

    pattern = text if any(sign in text for sign in "*?[") else f"*{text}*"
    found = timm.list_models(pattern, pretrained=True)
    bare = {name.partition(".")[0] for name in found}
    found += [name for name in timm.list_models(pattern) if name not in bare]
    aliases = {name: target for name, target in ALIASES.items() if name == text}
    names = {**aliases, **{name: name for name in found if name not in aliases.values()}}
    return names or {text: resolve_name(text)}


def _facts(names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """One record a model. Built without data (meta device), once for each architecture."""
    import dataclasses

    from sports_ray.model.build import image_spec, parameter_count, pretrained_cfg
    from sports_ray.model.eager_timm import timm
    from sports_ray.model.shapes import shapes_only

    counts: dict[tuple[str, int], int] = {}
    for typed, name in names.items():
        cfg = pretrained_cfg(name)
        key = (name.partition(".")[0], cfg.num_classes)
        if key not in counts:
            with shapes_only():
                counts[key] = parameter_count(timm.create_model(name))
        yield {
            "name": name,
            "alias": typed if typed != name else "",
            "parameters": counts[key],
            **dataclasses.asdict(image_spec(name)),
            "classes": cfg.num_classes,
            "weights": cfg.hf_hub_id or cfg.url or "none",
        }


@click.command()
@click.argument("name", default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: names with a line each, or the recipe's settings.")
def recipes(name: str, as_json: bool) -> None:
    """List recipes, or show the recipe NAME.

    A recipe is a complete TOML file of settings; start from one with `sports-ray train --recipe NAME`. Its header says
    which commands it is for, why its settings are what they are, and what result to expect, measured where.

    \b
    Examples:
      sports-ray recipes
      sports-ray recipes vlg-resnet50
      sports-ray recipes quick > mine.toml && sports-ray train --recipe mine.toml --data photos
    """
    from sports_ray.recipe import load_recipe, recipe_header, recipe_names, recipe_text

    if name:
        click.echo(json.dumps(load_recipe(name), indent=2) if as_json else recipe_text(name), nl=as_json)
        return
    headers = {known: recipe_header(known) for known in recipe_names()}
    if as_json:
        click.echo(json.dumps([{"name": known, **header} for known, header in headers.items()], indent=2))
        return
    width = max(map(len, headers))
    for known, header in headers.items():
        click.echo(f"{known:<{width}}  {header['about']}")
