"""Every mistake of a user's ends in one line that says what to do, on stderr, with exit code 2 and nothing on disk."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sports_ray.cli import main
from sports_ray.data.demo import draw_demo
from tests.support.shell import Shown, sports_ray

TRAIN = ("train", "--data", "set", "--model", "test_resnet", "--weights", "none", "--workers", "0")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user might have it: a sound set, a leaking one, a broken one, an empty one, a file."""
    folder = tmp_path_factory.mktemp("place")
    draw_demo(folder / "set", classes=3, per_class=4, size=40)
    (folder / "empty").mkdir()
    (folder / "file.txt").write_text("no folder")
    shutil.copytree(folder / "set", folder / "leaking")
    held = next((folder / "leaking" / "test").glob("*/*"))
    shutil.copy(held, folder / "leaking" / "train" / held.parent.name / "copy.jpg")
    shutil.copytree(folder / "set", folder / "broken")
    for photo in sorted((folder / "broken" / "train").glob("*/*"))[:3]:
        photo.write_bytes(photo.read_bytes()[:50])
    (folder / "bad.pth").write_bytes(b"not weights")
    return folder


def one_line(shown: Shown) -> str:
    """The error of a call that printed nothing else to stderr."""
    assert shown.code == 2, shown.err
    assert "Traceback" not in shown.out + shown.err
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    return shown.err.removeprefix("error: ").strip()


MISTAKES = {
    "no data": (("train", "--model", "test_resnet"), ["data.root; got nothing", "cure: --data DIR"]),
    "no model": (("train", "--data", "set"), ["model.name; got nothing", "`sports-ray models`"]),
    "missing folder": ((*TRAIN, "--data", "nowhere"), ["nowhere"]),
    "empty folder": ((*TRAIN, "--data", "empty"), ["empty"]),
    "file for a folder": ((*TRAIN, "--data", "file.txt"), ["file.txt"]),
    "unknown model": ((*TRAIN, "--model", "test_resnt"), ["got 'test_resnt'", "did you mean test_resnet"]),
    "wrong timm name": (
        (*TRAIN, "--model", "swinv2_large_window12_384.ms_in22k_ft_in1k"),
        ["did you mean swinv2_large_window12to24_192to384.ms_in22k_ft_in1k?"],
    ),
    "unknown recipe": ((*TRAIN, "--recipe", "quik"), ["recipe; got quik", "did you mean quick"]),
    "unknown key": ((*TRAIN, "--set", "optim.lrr=3"), ["got optim.lrr", "did you mean optim.lr?"]),
    "wrong value": ((*TRAIN, "--set", "optim.lr=fast"), ["optim.lr; got 'fast'; wanted a number"]),
    "value out of range": ((*TRAIN, "--epochs", "0"), ["loop.epochs; got 0; wanted a value from 1"]),
    "value that is no number": ((*TRAIN, "--epochs", "many"), ["'--epochs': 'many'", "see `sports-ray train --help`"]),
    "unknown option": ((*TRAIN, "--epoch", "3"), ["No such option", "see `sports-ray train --help`"]),
    "unknown command": (("trian",), ["No such command 'trian'", "Did you mean train?", "see `sports-ray --help`"]),
    "unknown policy": ((*TRAIN, "--set", "augment.policy=foo"), ["augment.policy; got 'foo'"]),
    "phase that matches nothing": (
        (*TRAIN, "--set", 'loop.phases=[{train="nothing*"}]'),
        ["loop.phases: train; got 'nothing*'", "fc.weight"],
    ),
    "impossible size": (
        (*TRAIN, "--model", "test_vit", "--set", "data.image_size=33"),
        ["--set data.image_size=32 or 48"],
    ),
    "more workers than lanes": (
        (*TRAIN, "--workers", "5"),
        ["workers; got 5; wanted at most loop.lanes = 4; cure: --set loop.lanes=5"],
    ),
    "workers as words": ((*TRAIN, "--workers", "many"), ["workers; got many; wanted 0, N or MIN:MAX"]),
    "workers upside down": ((*TRAIN, "--workers", "3:1"), ["workers; got 3:1; wanted MIN:MAX with 1 <= MIN <= MAX"]),
    "workers from none": ((*TRAIN, "--workers", "0:2"), ["workers; got 0:2"]),
    "bad budget": ((*TRAIN, "--time-budget", "soon"), ["--time-budget; got soon", "cure: for example 11h30m"]),
    "no budget": ((*TRAIN, "--time-budget", "0h"), ["--time-budget; got 0h; wanted more than zero"]),
    "missing weights": ((*TRAIN, "--weights", "gone.pth"), ["weights; got gone.pth; wanted auto, none or a file"]),
    "run with a slash": ((*TRAIN, "--run", "a/b"), ["name of the run; got 'a/b'", "cure: choose another with --run"]),
    "store that is a file": ((*TRAIN, "--store", "file.txt"), ["store; got file.txt", "is no folder", "--store"]),
    "store below a file": ((*TRAIN, "--store", "file.txt/x"), ["store; got file.txt/x", "is no folder"]),
    "leaks": ((*TRAIN, "--data", "leaking"), ["data.leaks"]),
    "class without a match": ((*TRAIN, "--set", "data.classes=curling"), ["curling"]),
    "too many bad files": ((*TRAIN, "--data", "broken"), ["data.max_bad_fraction"]),
    "resume of nothing": (("resume", "ghost"), ["run; got ghost; wanted a run in runs", "see `sports-ray status`"]),
    "status of nothing": (("status", "ghost"), ["ghost"]),
    "status of a file": (("status", "file.txt"), ["run; got file.txt, a file; wanted a run in runs"]),
    "status of a store that is a file": (("status", "--store", "file.txt"), ["store; got file.txt: is no folder"]),
    "status below a file": (("status", "file.txt/run"), ["store; got file.txt/run: is no folder", "--store"]),
    "scan of nothing": (("data", "scan", "empty"), ["no photograph in", "empty; got nothing", "data demo DIR"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_answered_by_one_line(place: Path, mistake: str) -> None:
    words, parts = MISTAKES[mistake]
    text = one_line(sports_ray(place, *words))
    for part in parts:
        assert part in text
    assert not (place / "runs").exists()


def test_store_where_nothing_can_be_made_is_answered_by_one_line(place: Path) -> None:
    text = one_line(sports_ray(place, *TRAIN, "--store", "/proc/nowhere"))
    assert text.startswith("store; got /proc/nowhere") and text.endswith("cure: another --store DIR")


def test_weights_that_cannot_be_read_are_answered_by_one_line(place: Path, tmp_path: Path) -> None:
    text = one_line(sports_ray(place, *TRAIN, "--weights", "bad.pth", "--store", str(tmp_path)))
    assert "bad.pth" in text


@pytest.mark.parametrize("mistake", ["unknown key", "leaks", "unknown option", "workers as words"])
def test_mistake_is_one_json_object_for_machines(place: Path, mistake: str) -> None:
    words, _ = MISTAKES[mistake]
    shown = sports_ray(place, *words, "--json")
    text = one_line(shown)
    (event,) = shown.events
    assert event["event"] == "error" and event["exit_code"] == 2
    assert {"kind", "what", "got", "wanted", "cure"} < event.keys()
    assert text.startswith(event["what"]) and text.endswith(event["cure"])


def test_help_names_every_command_and_the_exit_codes(tmp_path: Path) -> None:
    shown = sports_ray(tmp_path, "--help")
    assert shown.code == 0 and not shown.err
    for word in ("train", "resume", "status", "data", "models", "recipes", "bench", "demo", "75 paused"):
        assert word in shown.out
    assert sports_ray(tmp_path).code == 2


def test_recipes_are_listed_and_shown(tmp_path: Path) -> None:
    names = {item["name"] for item in json.loads(sports_ray(tmp_path, "recipes", "--json").out)}
    assert "quick" in names
    assert sports_ray(tmp_path, "recipes", "quick").out.startswith("#")


def test_unusual_files_are_read_in_a_fresh_process_too(tmp_path: Path) -> None:
    """Image libraries register formats as they are used: what this process has loaded must not matter."""
    draw_demo(tmp_path / "set", classes=2, per_class=4, size=32, dirty=True)
    words = [sys.executable, "-m", "sports_ray", "data", "scan", str(tmp_path / "set"), "--json"]
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    answer = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=100)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    report = json.loads(answer.stdout)
    unreadable = [
        item[0] for finding in report["findings"] if finding["kind"] == "unreadable" for item in finding["items"]
    ]
    assert unreadable == ["train/basketball/damaged.png"]


@pytest.mark.parametrize(
    ("words", "code"),
    [(("models",), 141), (("--help",), 141), (("train", "--help"), 141), (("train", "--epoch", "3", "--json"), 2)],
)
def test_command_whose_reader_has_left_ends_without_a_word(words: tuple[str, ...], code: int) -> None:
    """As `cat` does in a shell, killed by SIGPIPE; a mistake keeps its exit code and its line on stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        command = [sys.executable, "-m", "sports_ray", *words]
        ended = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == code
    assert not ended.stderr if code == 141 else (ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1)


def test_command_whose_reader_has_left_both_streams_ends_with_its_own_code() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        command = [sys.executable, "-m", "sports_ray", "train", "--epoch", "3", "--json"]
        assert subprocess.run(command, stdout=pipe, stderr=pipe, timeout=60).returncode == 2


def test_command_whose_output_finds_no_room_says_so_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "sports_ray", "models"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 3
    assert (
        ended.stderr.startswith("error: nothing more can be written; got: [Errno 28]") and ended.stderr.count("\n") == 1
    )


def test_pipe_that_breaks_between_processes_is_no_reader_that_left(tmp_path: Path) -> None:
    """click would end with exit code 1 and not say a word of it."""
    script = (
        "import sports_ray.cli as c, sports_ray.cli.models as m\n"
        "def broken(**_): raise BrokenPipeError(32, 'a loader process is gone')\n"
        "m.models.callback = broken\n"
        "import sys; sys.argv = ['sports-ray', 'models']; c.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "a loader process is gone" in ended.stderr


def strictly(*words: str) -> tuple[int, str]:
    """Exit code and all output of a call whose streams refuse what is not UTF-8."""
    command, streams = [sys.executable, "-m", "sports_ray", *words], {"PYTHONIOENCODING": "utf-8:strict"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **streams})
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stdout + ended.stderr


def test_names_that_are_no_text_are_shown_on_a_strict_terminal(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(place / "set", folder)
    for name in (b"train/t\xef", b"ex\xeftra"):
        os.mkdir(os.path.join(os.fsencode(folder), name))
    code, text = strictly("data", "scan", str(folder))
    assert code == 0 and r"train/t\udcef" in text and r"ex\udceftra" in text
    code, text = strictly("data", "scan", str(folder), "--json")
    found = {finding["kind"]: finding["items"] for finding in json.loads(text)["findings"]}
    assert code == 0 and found["passed-over"] == [["ex\udceftra"]] and found["empty-class"] == [["train/t\udcef"]]
    code, text = strictly("data", "scan", os.fsdecode(b"no\xefwhere"))
    assert code == 2 and r"got no\udcefwhere" in text


def test_streams_of_another_kind_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "argv", ["sports-ray", "models", "resnet18"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        assert stream is None or "resnet18" in stream.getvalue()
