"""`export`: a run as one file for another runtime, checked before it is there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sports_ray.cli.show import Show, choose_show
from sports_ray.errors import ConfigError
from sports_ray.export.formats import FORMATS

if TYPE_CHECKING:
    from sports_ray.export.write import Exported

EPILOG = """
\b
Formats, and what they need besides sports-ray:
  onnx         pip install 'sports-ray[onnx]'
  pt2          nothing (torch.export)
  torchscript  nothing; PyTorch calls it deprecated
  tflite       pip install 'sports-ray[tflite]'; one image at a time
  savedmodel   pip install 'sports-ray[savedmodel]'; one image at a time

\b
Examples:
  sports-ray export test_resnet-3f9a1c2e --format onnx --dynamic-batch
  sports-ray export runs/test_resnet-3f9a1c2e --format pt2 --output model.pt2 --check 100
  sports-ray export test_resnet-3f9a1c2e@last --format onnx --weights raw

\b
Use it, in Python without sports-ray (docs/export.md has this for each format, from the photograph on):
  session = onnxruntime.InferenceSession("model.onnx")
  about = json.loads(session.get_modelmeta().custom_metadata_map["sports_ray"])
  logits = session.run(None, {"images": images})[0]      # float32 [B, 3, S, S], normalised
  print(about["classes"][logits[0].argmax()], about["preprocessing"])

The file is compared with the original on photographs of the run's own validation split, drawn images where they are not at
hand: logits to 1e-4 of the largest, probabilities to 1e-4. What fails leaves no file. Exit codes: 0 done, 2 your mistake,
3 the model cannot be converted so, or the file does not compute the same.
"""


@click.command(epilog=EPILOG)
@click.argument("run")
@click.option("--format", "name", type=click.Choice(list(FORMATS)), required=True, help="See below.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="PATH", help="Default: RUN with the format's ending."
)
@click.option("--dynamic-batch", "dynamic", is_flag=True, help="Batches of any size. Default: one image at a time.")
@click.option(
    "--check",
    "images",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="Images to compare on.",
)
@click.option(
    "--weights", "part", type=click.Choice(["ema", "raw"]), help="Averaged or as trained. Default: as published."
)
@click.option("--data", "root", default="", metavar="DIR", help="Where the photographs lie now, if they were moved.")
@click.option("--store", default="runs", show_default=True, metavar="DIR|URI", help="Where runs are kept.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def export(
    run: str,
    name: str,
    output: Path | None,
    dynamic: bool,
    images: int,
    part: str | None,
    root: str,
    store: str,
    as_json: bool,
) -> int:
    """Write RUN, a name in the store or the path of a run's folder, as one file for another runtime.

    It holds weights, preprocessing and class names. RUN@last takes the last weights, not the best.
    """
    chosen = FORMATS[name]
    if dynamic and not chosen.dynamic:
        raise ConfigError(
            "--dynamic-batch", got=f"--format {name}", want="one image at a time", cure="leave it out, or --format onnx"
        )
    if dynamic and images < 3:
        raise ConfigError("--check", got=images, want="at least 3, so that batches of one and of two are tried")
    from sports_ray.export.write import check_output
    from sports_ray.export.write import export as write
    from sports_ray.predict.member import find_member

    member = find_member(run, store)
    target = output or Path(member.name + chosen.suffix)
    check_output(target, chosen)
    converter = chosen.converter()
    show = choose_show(as_json)
    facts = {"run": member.name, "model": member.model, "format": name, "dynamic_batch": dynamic}
    size = "batches of any size" if dynamic else "one image at a time"
    show.fact("export", f"{member.name} · {member.model} · {name} · {size} of {member.spec.eval_size} px", **facts)
    done = write(
        member,
        converter,
        target,
        dynamic=dynamic,
        images=images,
        part=part or "",
        root=root,
        note=lambda text: click.echo(f"{text} ...", err=True),
    )
    _show_done(show, done)
    return 0


def _show_done(show: Show, done: Exported) -> None:
    found = done.agreement
    batches = ", ".join(map(str, found.batches))
    text = f"{found.source} in batches of {batches}: logits differ by {found.logits:.1g} of the largest, "
    text += f"probabilities by {found.probabilities:.1g} (at most 1e-04); the same class for {found.same_class} of {found.images}"
    show.fact("check", text, **asdict(found))
    text = f"{done.path} · {done.size / 1e6:,.1f} MB · with preprocessing and {len(done.about['classes'])} classes"
    show.fact("written", text, path=str(done.path), bytes=done.size, about=done.about)
    show.close()
