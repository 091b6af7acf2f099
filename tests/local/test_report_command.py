"""`sports-ray report` and `explain` on a real run that was stopped and resumed: the files, the words, the mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from sports_ray.data.demo import draw_demo
from sports_ray.report.png import COLOURS
from tests.support import pages
from tests.support.evaluations import made_up
from tests.support.runs import small_config, train_in_child
from tests.support.shell import Shown, sports_ray


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """set/ with three sports, and runs/run, which was stopped once and then trained to its end."""
    folder = tmp_path_factory.mktemp("report")
    draw_demo(folder / "set", classes=3, per_class=8, size=80, seed=1)
    config = small_config(folder / "set", folder / "runs", data__image_size=64)
    assert train_in_child(config, stop_at=2) == 75
    assert train_in_child(config) == 0
    return folder


def one_line(shown: Shown) -> str:
    assert shown.code == 2 and shown.err.count("\n") == 1 and "Traceback" not in shown.err, shown.err
    return shown.err


def widths(path: Path) -> dict[int, float]:
    """Colour of series, 1 to 4, that is in a picture -> from its first to its last pixel, as a share of the width."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    found = {}
    for number, colour in enumerate(COLOURS, 1):
        columns = (pixels == ImageColor.getrgb(colour)).all(axis=2).any(axis=0).nonzero()[0]
        if len(columns):
            found[number] = float(columns[-1] - columns[0]) / pixels.shape[1]
    return found


def test_report_of_a_resumed_run_has_its_curves_its_resume_and_its_command(place: Path) -> None:
    shown = sports_ray(place, "report", "runs/run")
    assert shown.code == 0 and not shown.err, shown.err
    assert f"report      {place}/runs/run/report.html" in shown.out and "ray" not in shown.imported
    text = (place / "runs/run/report.html").read_text(encoding="utf-8")
    pages.assert_self_contained(text)
    page = pages.Page.of(text)
    assert len(page.all("line", "mark")) == 3, "one resume in three charts"
    record = json.loads((place / "runs/run/run.json").read_text())
    for words in (record["data"]["fingerprint"], "basketball", "trained to its end", "[optim]", "24 training images"):
        assert words in page.text, words
    plots = sorted(path.name for path in (place / "runs/run/plots").iterdir())
    assert plots == ["accuracy-run.png", "loss-run.png", "photographs-run.png", "rate-run.png"]
    # Curves go from epoch 1 of 2 to the end, which is more than a legend's piece of line; the rate from the first step on.
    seen = {name.partition("-")[0]: widths(place / "runs/run/plots" / name) for name in plots}
    assert {name: set(found) for name, found in seen.items()} == {
        "accuracy": {1, 4}, "loss": {1, 2}, "photographs": {1}, "rate": {3},
    }  # fmt: skip
    assert all(width > 0.35 for found in seen.values() for width in found.values()), seen


@pytest.mark.long
def test_moved_run_has_its_report_too_and_the_report_disturbs_no_other_command(place: Path) -> None:
    moved = place / "moved"
    shutil.copytree(place / "runs/run", moved, ignore=shutil.ignore_patterns("report.html", "plots"))
    again = sports_ray(place, "report", "moved", "--json")
    assert json.loads(again.out)["page"] == f"{moved}/report.html"
    assert sports_ray(place, "status", "runs/run").code == 0 and sports_ray(place, "verify", "runs/run").code == 0


def evaluation(place: Path) -> Path:
    """Made-up scores of the run's classes, on photographs that are really there."""
    folder = place / "runs/evaluations/made-up"
    if not folder.exists():
        record = made_up(folder, classes=["basketball", "swimming", "tennis"], each=10)
        record["members"] = [{"name": "convnext", "run": "/gone/runs/run", "weights": "best"}]
        (folder / "scores.json").write_text(json.dumps(record))
    return folder


def test_report_of_an_evaluation_finds_its_run_beside_it_and_lays_its_heat_over_the_mistakes(place: Path) -> None:
    folder = evaluation(place)
    (place / "groups.csv").write_text("class,water\nswimming,in\ntennis,out\nbasketball,out\n")
    shown = sports_ray(place, "report", str(folder), "--groups", "groups.csv")
    assert shown.code == 0 and not shown.err, shown.err
    text = (folder / "report.html").read_text(encoding="utf-8")
    pages.assert_self_contained(text)
    page = pages.Page.of(text)
    images = page.all("img")
    heats = [one for one in images if one["alt"].startswith("heat of ")]
    assert len(heats) >= 5 and len(images) == 2 * len(heats)
    assert all(plain["src"] != hot["src"] for plain, hot in zip(images[::2], images[1::2], strict=True))
    for words in ("Training of convnext", "Grad-CAM", "By water", "Sessions of convnext"):
        assert words in page.text, words
    assert (folder / "plots/loss-convnext.png").is_file()


def test_explain_writes_an_overlay_of_each_photograph_and_tells_of_bad_ones(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "set/test/tennis", tmp_path / "photos/tennis")
    shutil.copytree(place / "set/test/swimming", tmp_path / "photos/swimming")
    (tmp_path / "photos/tennis/broken.jpg").write_bytes(b"\xff\xd8 no more")
    (tmp_path / "photos/notes.txt").write_text("no photograph")
    shown = sports_ray(tmp_path, "explain", "--run", str(place / "runs/run"), "--images", "photos", "--out", "seen")
    assert shown.code == 0, shown.err
    assert shown.err.count("\n") == 1 and "tennis/broken.jpg" in shown.err
    wanted = {
        path.relative_to(tmp_path / "photos").with_suffix(".png") for path in (tmp_path / "photos").rglob("0*.jpg")
    }
    found = {path.relative_to(tmp_path / "seen") for path in (tmp_path / "seen").rglob("*.*")}
    assert found == wanted and len(found) == 4
    assert "explained   4 photographs in seen, 1 cannot be read" in shown.out
    for name in found:
        overlay = Image.open(tmp_path / "seen" / name)
        assert overlay.format == "PNG" and overlay.size == (64, 64)
    photo = sorted(wanted)[0].with_suffix(".jpg")
    one = ("explain", "--run", str(place / "runs/run"), "--images", f"photos/{photo}", f"photos/{photo}", "--json")
    asked = [sports_ray(tmp_path, *one, "--out", f"asked-{name}", "--class", name) for name in ("tennis", "swimming")]
    assert [[line["shown"] for line in done.events] for done in asked] == [["tennis"] * 2, ["swimming"] * 2]
    files = [[Path(line["overlay"]) for line in done.events] for done in asked]
    assert files[0][0] != files[0][1] and files[0][0].read_bytes() == files[0][1].read_bytes()
    pictures = [np.asarray(Image.open(names[0])).astype(int) for names in files]
    assert np.abs(pictures[0] - pictures[1]).max() > 10, "the same heat for two classes"


def test_explain_shows_the_same_of_a_pack_as_of_its_folder(place: Path, tmp_path: Path) -> None:
    packed = sports_ray(tmp_path, "data", "pack", str(place / "set/test"), "packed")
    assert packed.code == 0, packed.err
    seen = []
    for images in (str(place / "set/test"), "packed"):
        out = tmp_path / f"of-{len(seen)}"
        one = ("explain", "--run", str(place / "runs/run"), "--images", images, "--out", str(out))
        shown = sports_ray(tmp_path, *one)
        assert shown.code == 0, shown.err
        seen.append({path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")})
    assert len(seen[0]) >= 4 and seen[0] == seen[1]


def test_mistakes_are_one_clear_line(place: Path, tmp_path: Path) -> None:
    assert "got nowhere; wanted a run in runs, the path of one, or an evaluation's folder" in one_line(
        sports_ray(tmp_path, "report", "nowhere")
    )
    folder = evaluation(place)
    assert "absent.csv" in one_line(sports_ray(place, "report", str(folder), "--groups", "absent.csv"))
    explain = ("explain", "--run", str(place / "runs/run"), "--images")
    assert "did you mean 'tennis'" in one_line(
        sports_ray(tmp_path, *explain, str(place / "set/test"), "--class", "tenis")
    )
    (tmp_path / "bad.jpg").write_bytes(b"x")
    bad = sports_ray(tmp_path, *explain, "bad.jpg")
    assert bad.code == 2 and "1, none of which can be read" in bad.err and "Traceback" not in bad.err
    assert not (tmp_path / "explained").exists()


@pytest.mark.long
def test_rarer_mistakes_are_one_clear_line_too(place: Path, tmp_path: Path) -> None:
    assert "no evaluation; wanted a folder with scores.json" in one_line(
        sports_ray(place, "report", "runs/run", "--groups", "groups.csv")
    )
    folder = evaluation(place)
    assert "--run; got elsewhere" in one_line(sports_ray(place, "report", str(folder), "--run", "elsewhere"))
    explain = ("explain", "--run", str(place / "runs/run"), "--images")
    assert "got absent; wanted a photograph" in one_line(sports_ray(tmp_path, *explain, "absent"))
    (tmp_path / "empty").mkdir()
    assert "got no photograph" in one_line(sports_ray(tmp_path, *explain, "empty"))
    photos = str(place / "set/test")
    assert "wanted a run" in one_line(sports_ray(tmp_path, "explain", "--run", "none", "--images", photos))
    assert not (tmp_path / "explained").exists()
