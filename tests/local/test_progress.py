"""What a person sees while a command works: a bar on a terminal; plain lines in a pipe, and in a notebook, whose `!` has a
terminal for its commands too. Where nothing can be written any more the work goes on unseen."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from sports_ray.cli.blocks_show import BlocksShow
from sports_ray.cli.show import JsonShow, LiveShow, PlainShow
from sports_ray.cli.sweep_show import LiveSweep, SweepShow
from sports_ray.data.demo import draw_demo
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import open_storage
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


def started(place: Path, *words: str, stdout: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sports_ray", *words]
    return subprocess.Popen(command, cwd=place, stdout=stdout, stderr=subprocess.PIPE, text=True)


def assert_trained_in_silence(place: Path, run: str, code: int, err: str) -> None:
    assert (code, err) == (0, "")
    assert RunDir.open(open_storage(str(place / "runs")), run).finished_epochs() == EPOCHS


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["lines", "json"])
def test_training_whose_reader_leaves_after_the_first_line_goes_on_to_its_end(
    place: Path, flags: tuple[str, ...]
) -> None:
    run = "left" + "".join(flags)
    with started(place, *train(run), *flags, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline()
        child.stdout.close()
        err = child.stderr.read()
        assert_trained_in_silence(place, run, child.wait(60), err)


def test_training_whose_lines_go_to_a_full_disk_goes_on_to_its_end(place: Path) -> None:
    with open("/dev/full", "w") as full, started(place, *train("full"), stdout=full.fileno()) as child:
        _, err = child.communicate(timeout=60)
        assert_trained_in_silence(place, "full", child.wait(60), err)


class Broken(io.StringIO):
    """A terminal that takes a few writes, and then is gone."""

    left = 1

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, "the terminal is gone")
        return super().write(text)

    def flush(self) -> None:
        if self.left < 0:
            raise OSError(errno.EIO, "the terminal is gone")


STEP = {"kind": "step", "step": 1, "total_steps": 9, "epoch": 1, "epochs": 1, "images_per_second": 9.0, "loss": 1.0}
EVALUATED = {"kind": "evaluated", "epoch": 1, "step": 9, "val_acc1": 0.5, "val_loss": 1.0, "best": True}
RESTART = {"kind": "restart", "reason": "a worker is gone"}
WORK = {"kind": "work", "member": "m", "images": 9, "to_do": 9, "device": "cpu"}
BLOCK = {"kind": "block", "member": "m", "images": 1, "bad": 0}
ROW = {"trial": "t", "state": "open", "params": {}, "epochs": 0, "val_acc1": None}


def show_training(show: PlainShow | JsonShow) -> None:
    show.fact("run", "there")
    for event in (STEP, EVALUATED, RESTART, STEP):
        show.event(event)
    show.close()
    show.fact("done", "there")


def show_sweep(show: SweepShow) -> None:
    for event in (STEP, EVALUATED, RESTART, EVALUATED, RESTART):
        show.event("t", event)
    show.close()


def show_blocks(show: BlocksShow) -> None:
    for event in (WORK, *[BLOCK] * 9, {"kind": "fitting"}):
        show.event(event)
    show.close()


@pytest.mark.parametrize(
    "shows",
    [
        lambda: show_training(JsonShow()),
        lambda: show_training(PlainShow()),
        lambda: show_training(LiveShow()),
        lambda: show_sweep(SweepShow(PlainShow())),
        lambda: show_sweep(LiveSweep(LiveShow(), [ROW])),
        lambda: show_blocks(BlocksShow(LiveShow(), as_json=False)),
    ],
    ids=["json", "lines", "bar", "lines of a sweep", "table of a sweep", "blocks"],
)
@pytest.mark.parametrize("writes", [0, 1, 3])
def test_show_that_cannot_be_written_is_quiet_from_then_on(
    shows: Callable[[], None], writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    out = Broken()
    out.left = writes
    monkeypatch.setattr(sys, "stdout", out)
    shows()
    assert -2 <= out.left < 0, (
        "it failed once for the command's own show and once for another beside it, if there is one"
    )


WAITING = """
import sys
from sports_ray.cli.show import JsonShow, PlainShow
from sports_ray.stops import Stops
stops, show = Stops().install(), {"json": JsonShow, "lines": PlainShow}[sys.argv[1]]()
stops.leave_with(lambda reason: show.fact("paused", reason))
for number in range(10_000):
    show.fact("line", f"{number} " + 70 * "=")
"""


@pytest.mark.parametrize("kind", ["json", "lines"])
def test_stop_while_a_line_waits_for_its_reader_is_told_when_he_reads_on(kind: str) -> None:
    """A terminal that Ctrl-S holds, a pager: the stop comes in the midst of a write, whose stream takes no other then."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = [sys.executable, "-c", WAITING, kind]
    with subprocess.Popen(words, env=buffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        before = -1
        while (held := bytes_in(child.stdout)) != before or not held:
            before = held
            time.sleep(0.2)
        child.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        *lines, told = child.stdout.read().decode().splitlines()
        assert child.wait() == 75 and not child.stderr.read()
    numbers = [int(re.search(r"\d+", line).group()) for line in lines]  # type: ignore[union-attr]
    assert numbers == list(range(len(lines)))
    assert told.split() == ["paused", "SIGTERM"] or json.loads(told) == {"event": "paused", "text": "SIGTERM"}


def bytes_in(pipe: IO[bytes]) -> int:
    """That wait there to be read."""
    number = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, number)
    return number[0]
