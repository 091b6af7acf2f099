"""What a person sees while a command works: a bar on a terminal; plain lines in a pipe, and in a notebook, whose `!` has a
terminal for its commands too."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from sports_ray.cli.show import PlainShow
from sports_ray.data.demo import draw_demo
from tests.support.members import make_member, photographs
from tests.support.shell import sports_ray
from tests.support.terminal import CONTROL, on_terminal

NOTEBOOK = {"JPY_PARENT_PID": "1", "TERM": "xterm-color", "FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"}
"""What Jupyter's kernels set, and the commands that they start inherit."""
ESCAPE = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
EPOCHS = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    draw_demo(folder / "set", classes=2, per_class=16, size=40)
    photographs(folder / "many", 40)
    make_member(folder / "runs", "member", seed=1)
    return folder


def train(run: str) -> list[str]:
    settings = ("data.image_size=32", "data.loader_processes=0", "loop.global_batch=4", "cluster.threads=1")
    words = ["train", "--data", "set", "--model", "test_resnet", "--weights", "none", "--workers", "0", "--precision"]
    words += ["fp32", "--epochs", str(EPOCHS), "--run", run]
    return [*words, *(word for setting in settings for word in ("--set", setting))]


def test_on_a_terminal_a_bar_shows_speed_loss_the_best_score_and_the_time_left(place: Path) -> None:
    code, shown = on_terminal(place, *train("terminal"), environment={"TERM": "xterm-256color", "COLUMNS": "160"})
    assert code == 0, shown
    text = ESCAPE.sub("", shown)
    bar = rf"epoch \d+/{EPOCHS} [━╸╺ ]+\d+% \d+ images/s · loss \d+\.\d\d · best \d\.\d{{3}} \(epoch \d+\) · \d+:\d\d left"
    assert re.search(bar, text), text
    assert "\x1b[?25l" in shown and shown.count("\x1b[?25h") >= shown.count("\x1b[?25l"), "the cursor stays hidden"
    for epoch in range(1, EPOCHS + 1):
        assert len(re.findall(rf"^.*epoch {epoch}: train loss", text, re.MULTILINE)) == 1


def test_time_left_of_a_second_training_counts_from_its_own_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sports_ray.cli.show.PLAIN_SECONDS", 0.0)
    show = PlainShow()
    for steps in ((1,), (1, 2)):
        show.event({"kind": "start", "step": 0, "total_steps": 11, "precision": "fp32"})
        for step in steps:
            told = {"step": step, "total_steps": 11, "epoch": 1, "epochs": 1, "images_per_second": 9.0, "loss": 1.0}
            show.event({"kind": "step", **told})
        time.sleep(0.5)  # a pause between two trainings: over one step it would be five seconds more to wait
    assert capsys.readouterr().out.splitlines()[-1].endswith("0:00 left")


def test_in_a_pipe_and_in_a_notebook_the_same_run_is_plain_lines(place: Path) -> None:
    piped = sports_ray(place, *train("pipe"))
    code, noted = on_terminal(place, *train("notebook"), environment=NOTEBOOK)
    assert piped.code == code == 0, noted
    for shown in (piped.out, noted):
        assert not CONTROL.search(shown), repr(CONTROL.search(shown))
        for epoch in range(1, EPOCHS + 1):
            pattern = rf"^epoch {epoch}: train loss \d\.\d{{4}} · val \d\.\d{{4}} · EMA \d\.\d{{4}}( · best)?$"
            assert len(re.findall(pattern, shown, re.MULTILINE)) == 1
        assert re.search(r"^best +val acc1", shown, re.MULTILINE) and re.search(r"^done ", shown, re.MULTILINE)


@pytest.mark.parametrize(
    "words", [("eval-ensemble", "--data", "many", "--run", "member", "--workers", "0"), ("status",)]
)
def test_other_commands_too_write_plain_lines_in_a_notebook(place: Path, words: tuple[str, ...]) -> None:
    code, shown = on_terminal(place, *words, environment=NOTEBOOK)
    assert code == 0 and shown.strip() and not CONTROL.search(shown), repr(shown)
