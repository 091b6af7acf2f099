"""The page of an evaluation and of a run: it says what the files say, whatever their words, and needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sports_ray.errors import DataError
from sports_ray.report.curves import training
from sports_ray.report.page import evaluation_page, run_page, write
from sports_ray.report.read_evaluation import read_evaluation
from sports_ray.report.read_run import read_run
from sports_ray.report.svg import LEFT, RIGHT, WIDTH
from sports_ray.score.main_score import wilson
from sports_ray.store.codec import seal
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage
from tests.support import pages
from tests.support.evaluations import made_up

HOSTILE = [
    "</script><script>document.title='pwned'</script>", "<img src=x onerror=\"document.title='pwned'\">",
    "'\"><svg onload=document.title='pwned'>", "<!-- -->]]>&amp;", "javascript:alert(1)", "caf\udce9", "a\u202egpj.exe",
    "a" * 300,
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up evaluation of 102 classes."""
    folder = tmp_path_factory.mktemp("evaluation") / "e"
    made_up(folder)
    return folder


@pytest.fixture(scope="module")
def shown(folder: Path) -> str:
    return evaluation_page(read_evaluation(folder)).html()


def test_evaluation_page_says_what_the_scores_say(folder: Path, shown: str) -> None:
    scores, page = json.loads((folder / "scores.json").read_text()), pages.Page.of(shown)
    pages.assert_self_contained(shown)
    assert len(shown.encode()) < 4 << 20
    for one in scores["candidates"]:
        low, high = one["acc1_interval"]
        for words in (
            one["name"],
            f"{100 * one['acc1']:.1f} %",
            f"{100 * low:.1f}–{100 * high:.1f}",
            f"{one['nll']:.3f}",
        ):
            assert words in page.text, words
        if one["against_best"]:
            assert f"{100 * one['against_best']['difference']:+.1f}".replace("-", "−") in page.text
    for name in scores["classes"]:
        assert name in page.text
    assert "sports-ray eval-ensemble --data 'photos of sports' --run convnext" in page.text
    for words in ("torch 2.14.1", "truncated JPEG: 50 of 4,211 bytes", "lower loss on validation", "temperature 1.310"):
        assert words in page.text, words


def test_bars_are_the_diagonal_sorted_from_the_weakest(folder: Path, shown: str) -> None:
    scores = json.loads((folder / "scores.json").read_text())
    ensemble = next(one for one in scores["candidates"] if one["name"] == "ensemble")
    counts = np.array(ensemble["confusion"])
    recall = dict(zip(scores["classes"], counts.diagonal() / counts.sum(1), strict=True))
    bars = [one for one in pages.Page.of(shown).all("li") if "data-recall" in one]
    assert {one["data-name"]: float(one["data-recall"]) for one in bars} == pytest.approx(recall)
    values = [float(one["data-recall"]) for one in bars]
    assert values == sorted(values) and values[0] == 0.0 and values[-1] == 1.0
    zero = [name for name, value in recall.items() if value == 0]
    perfect = [name for name, value in recall.items() if value == 1]
    text = pages.Page.of(shown).text
    assert zero and perfect
    assert f"{len(perfect)} of 102 classes at 100 %" in text and f"{len(zero)} of 102 classes at 0 %" in text


def test_confusion_data_of_the_page_are_the_matrix(folder: Path, shown: str) -> None:
    block = re.search(r'<script type="application/json" id="confusion-data">(.*?)</script>', shown)
    assert block
    data, evaluation = json.loads(block[1]), read_evaluation(folder)
    counts = np.zeros((102, 102), dtype=int)
    for row, column, count in data["cells"]:
        counts[row, column] = count
    assert (counts == evaluation.confusion).all() and data["names"] == evaluation.classes
    assert sorted(data["order"]) == list(range(102))


def test_galleries_hold_the_mistakes_as_small_new_jpegs_and_say_which_are_missing(folder: Path, shown: str) -> None:
    scores, page = json.loads((folder / "scores.json").read_text()), pages.Page.of(shown)
    sources = [one["src"] for one in page.all("img")]
    assert len(sources) >= 24
    for source in sources[:10]:
        kind, _, content = source.partition(",")
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert kind == "data:image/jpeg;base64" and image.format == "JPEG" and max(image.size) <= 176
    assert page.text.count("the photograph cannot be read from here") >= 2  # one is missing, one damaged
    first = scores["worst"][0]
    assert f"{first['predicted']} {100 * first['confidence']:.0f} % in truth {first['true']}" in page.text
    pair = scores["confused_pairs"][0]
    assert f"{pair['true']} taken for {pair['predicted']} {pair['count']} images" in page.text


def test_hostile_names_of_classes_and_files_stay_text(tmp_path: Path) -> None:
    record = made_up(tmp_path / "e", classes=HOSTILE, each=6, photographs=False)
    record["versions"] = {name: name for name in HOSTILE}
    record["command"] = HOSTILE
    record["data"] |= {"root": HOSTILE[1], "split": HOSTILE[0], "bad": [{"path": HOSTILE[1], "error": HOSTILE[0]}]}
    record["merge"] = {"asked": HOSTILE[0], "used": HOSTILE[1], "reason": HOSTILE[2]}
    record["by_group"] = [{"column": HOSTILE[0], "group": HOSTILE[1], "classes": HOSTILE, "images": 3, "acc1": 0.5}]
    for one in record["candidates"]:
        one["name"] = one["name"].replace("convnext", HOSTILE[1]).replace("ensemble", HOSTILE[0])
    text = json.dumps({**record, "detailed": record["candidates"][-1]["name"]})
    (tmp_path / "e" / "scores.json").write_text(text)
    page = evaluation_page(read_evaluation(tmp_path / "e"))
    shown = page.html()
    pages.assert_self_contained(shown)
    assert HOSTILE[0] in pages.Page.of(shown).text and "\udce9" not in shown and "\u202e" not in shown
    shown.encode("utf-8")
    write(page, open_storage(str(tmp_path / "out")))


def test_groups_are_added_up_as_by_hand(folder: Path, tmp_path: Path) -> None:
    evaluation = read_evaluation(folder)
    names, counts = evaluation.classes, evaluation.confusion
    rows = [f"{name},{'team' if i % 3 else 'single'},{'in' if i < 40 else ''}" for i, name in enumerate(names)]
    (tmp_path / "groups.csv").write_text("\n".join(["class,kind,place", *rows]))
    shown = evaluation_page(evaluation, groups=tmp_path / "groups.csv").html()
    text = pages.Page.of(shown).text
    for members in ([i for i in range(102) if i % 3], [i for i in range(102) if not i % 3], list(range(40))):
        right, images = counts.diagonal()[members].sum(), counts[members].sum()
        low, high = wilson(int(right), int(images))
        assert f"{len(members)} {images:,} {100 * right / images:.1f} % {100 * low:.1f}–{100 * high:.1f}" in text
    (tmp_path / "groups.csv").write_text("class,kind\nno such sport,x\n")
    with pytest.raises(DataError, match="no such sport"):
        evaluation_page(evaluation, groups=tmp_path / "groups.csv")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "wanted JSON"),
        ("[]", "no object"),
        ('{"format": 2}', "format 2"),
        ('{"format": 1, "classes": ["a", "b"], "candidates": []}', "no candidates"),
        ('{"format": 1, "classes": ["a", "b"], "candidates": [{"name": "m", "confusion": [[1]]}]}', "shape (1, 1)"),
        (
            '{"format": 1, "classes": ["a", "b"], "candidates": [{"name": "m", "confusion": [[1, "x"], [0, 1]]}]}',
            "of m",
        ),
    ],
)
def test_scores_that_are_none_are_refused_in_one_line(tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(DataError) as caught:
        read_evaluation(tmp_path)
    assert part in str(caught.value) and "cure: run `sports-ray eval-ensemble` again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_least_that_scores_may_hold_makes_a_page(tmp_path: Path) -> None:
    least = {"format": 1, "classes": ["a", "b"], "candidates": [{"name": "m", "confusion": [[0, 0], [0, 0]]}]}
    (tmp_path / "scores.json").write_text(json.dumps(least))
    pages.assert_self_contained(evaluation_page(read_evaluation(tmp_path)).html())


def events(*starts: int, last: int) -> list[dict[str, Any]]:
    """timings.jsonl of sessions that started at these steps; only the last one ended by itself."""
    found: list[dict[str, Any]] = []
    for start in starts:
        found.append({"kind": "start", "step": start, "host": "<b>node</b>", "device": "cpu", "world": 1, "threads": 2})
        found.append({"kind": "commit", "step": start + 5, "stall": 0.01, "seconds": 0.1})
    return [*found, {"kind": "end", "step": last, "reason": "", "seconds": 61, "images": 320, "step_seconds": 4.0}]


def a_run(place: Path, history: list[dict[str, Any]], timings: list[dict[str, Any]]) -> RunDir:
    """A run's records without its tensors."""
    run_dir = RunDir.open(open_storage(str(place)), "run")
    config = {"model": {"name": "test_resnet", "weights": "none"}, "loop": {"global_batch": 10, "epochs": 8}}
    run_dir.create(
        {
            "config": config, "classes": ["<i>a</i>", "b"], "command": ["sports-ray", "train", "--data", "<my> photos"],
            "data": {"root": "/<photos>", "train": 100, "val": 40, "test": 9, "fingerprint": "f" * 64}, "version": "0.1",
        }
    )  # fmt: skip
    run_dir.write_metrics(history)
    for event in timings:
        run_dir.append_timing(event)
    return run_dir


def history(*scores: float) -> list[dict[str, Any]]:
    return [
        {"epoch": n, "step": 10 * n, "val_acc1": s, "val_acc5": 1.0, "val_loss": 1 - s, "train_loss": 1.0, "lr": 1e-3 / n,
         "val_images": 40}
        for n, s in enumerate(scores, 1)
    ]  # fmt: skip


def test_run_page_marks_each_resume_at_its_step_and_the_best_epoch(tmp_path: Path) -> None:
    run = read_run(a_run(tmp_path, history(0.2, 0.5, 0.7, 0.9, 0.8, 0.9), events(0, 25, 28, last=60)), "run")
    section = training(run)
    assert section is not None
    titles = {chart.title: chart for chart in section.charts}
    assert set(titles) == {"Loss", "Accuracy on validation", "Learning rate"}
    assert [at for at, _ in titles["Loss"].marks] == [2.5, 2.8]  # type: ignore[union-attr]
    assert titles["Accuracy on validation"].points[0][:2] == (4.0, 0.9)  # type: ignore[union-attr]
    shown = run_page(run).html()
    pages.assert_self_contained(shown)
    page = pages.Page.of(shown)
    assert len(page.all("line", "mark")) == 2 * 3
    at = {float(line["x1"]) for line in page.all("line", "mark")}
    assert at == {round(LEFT + part / 6 * (WIDTH - RIGHT - LEFT), 2) for part in (2.5, 2.8)}
    low, high = wilson(36, 40)
    assert f"90.0 % after epoch 4, 95 % interval {100 * low:.1f}–{100 * high:.1f}" in page.text
    for words in (
        "<b>node</b>",
        "/<photos>",
        "--data '<my> photos'",
        "killed, or still under way",
        "2 steps done again",
    ):
        assert words in page.text, words


def test_learning_rate_is_that_of_the_schedule_at_every_step(tmp_path: Path) -> None:
    run = read_run(a_run(tmp_path, history(0.2, 0.5, 0.7), events(0, last=30)), "run")
    section = training(run)
    assert section is not None and run.config is not None
    rate = next(chart for chart in section.charts if chart.title == "Learning rate").series[0]  # type: ignore[union-attr]
    assert len(rate.xs) == 30 and rate.xs[0] == 0.1 and rate.xs[-1] == 3.0
    from sports_ray.model.optim import default_lr, learning_rate

    peak = default_lr(run.config.optim, 10, True)
    assert rate.ys[9] == learning_rate(9, peak, run.config.optim, (), 10, 8)
    assert max(value for value in rate.ys if value is not None) == peak


LOSS, SCORE = "Loss", "Accuracy on validation"
PLAIN = {
    LOSS: {"training": "train_loss", "validation": "val_loss"},
    SCORE: {"top-5": "val_acc5", "top-1": "val_acc1"},
}
AVERAGED = {
    LOSS: {**PLAIN[LOSS], "validation, EMA": "ema_val_loss"},
    SCORE: {"top-5": "ema_val_acc5", "top-1": "val_acc1", "top-1, EMA": "ema_val_acc1"},
}
SEVERAL = {LOSS: PLAIN[LOSS], "mAP on validation": {"macro F1": "val_f1_macro", "mAP": "val_map"}}
"""Where photographs show several classes."""


@pytest.mark.parametrize("charts", [PLAIN, AVERAGED, SEVERAL], ids=["plain", "averaged", "several"])
def test_curves_are_the_lines_of_metrics_in_their_order(tmp_path: Path, charts: dict[str, dict[str, str]]) -> None:
    keys = sorted({key for names in charts.values() for key in names.values()})
    values = np.random.default_rng(3).permutation(8 * len(keys)).reshape(8, -1) / 1000  # no two alike
    lines: list[dict[str, Any]] = [
        {"epoch": n, "step": 10 * n, "lr": 1e-3, "val_images": 40, **dict(zip(keys, map(float, row), strict=True))}
        for n, row in enumerate(values, 1)
    ]
    lines[2]["train_loss"] = None
    del lines[4]["val_loss"]
    run = read_run(a_run(tmp_path, lines, events(0, last=80)), "run")
    written = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    section = training(run)
    assert section is not None and written == lines
    drawn = iter(pages.Page.of(run_page(run).html()).all("path", "series"))
    for title, names in charts.items():
        chart = next(chart for chart in section.charts if chart.title == title)
        assert {one.name for one in chart.series} == set(names)  # type: ignore[union-attr]
        seen = []
        for series in chart.series:  # type: ignore[union-attr]
            wanted = [line.get(names[series.name]) for line in written]
            assert list(series.xs) == [line["epoch"] for line in written] and list(series.ys) == wanted, series.name
            places = re.findall(r"[ML](\S+) ([\d.-]+)", next(drawn)["d"])
            points = [(at, value) for at, value in zip(series.xs, wanted, strict=True) if value is not None]
            seen += [(*point, float(x), float(y)) for point, (x, y) in zip(points, places, strict=True)]
        # On the page a chart's curves have one scale, upwards and to the right.
        at, value, x, y = np.array(seen).T
        for of, on, sign in ((at, x, 1), (value, y, -1)):
            slope, start = np.polyfit(of, on, 1)
            assert slope * sign > 0 and np.abs(slope * of + start - on).max() < 0.02


@pytest.mark.parametrize("lines", [[], [{"epoch": 1}], [{"epoch": 1, "step": 10, "val_acc1": None}]])
def test_run_without_a_score_yet_has_a_page(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    run = read_run(a_run(tmp_path, lines, events(0, last=3)[:1]), "run")
    assert training(run) is None
    shown = run_page(run).html()
    pages.assert_self_contained(shown)
    assert "of 8 epochs evaluated so far" in pages.Page.of(shown).text


def test_record_of_another_shape_is_left_out_and_not_a_traceback(tmp_path: Path) -> None:
    run_dir = a_run(tmp_path, history(0.5), events(0, last=10))
    record = run_dir.read_record() or {}
    record["config"] = {"model": {"name": "test_resnet", "unheard": 1}}
    run_dir.storage.write("run.json", seal(record))
    run_dir.storage.write("manifest.arrow", b"no manifest")
    run_dir.storage.write("settled.json", b"{}")
    shown = run_page(read_run(run_dir, "run")).html()
    assert "test_resnet" in shown and "Learning rate" in shown


def test_writing_leaves_one_page_and_a_png_for_each_chart(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = tmp_path_factory.mktemp("source")
    made_up(source, classes=9)
    page = evaluation_page(read_evaluation(source))
    written = write(page, open_storage(str(tmp_path)))
    assert written[0] == "report.html" and (tmp_path / "report.html").read_text(encoding="utf-8") == page.html()
    assert {"plots/confusion.png", "plots/classes.png", "plots/calibration-1.png"} <= set(written[1:])
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == sorted(written)
    for name in written[1:]:
        assert Image.open(tmp_path / name).format == "PNG"
