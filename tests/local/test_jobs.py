"""Commands as jobs: what is refused before anything is sent, what is sent, and which ends are deaths."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import sports_ray as package
from sports_ray.cli.submit import settle
from sports_ray.errors import ConfigError
from sports_ray.orchestrate.jobs import LOST, Job, Jobs, digest_of, stage
from tests.support.shell import sports_ray

ROOT = Path(__file__).parents[2]
TRAIN = ("train", "--data", "/photos", "--model", "test_resnet", "--store", "/runs")
SHARED = "wanted a place that outlives the job and that all nodes share"
MISTAKES = {
    "no command": ((), "job; got nothing; wanted one of train, tune, eval-ensemble; cure: sports-ray submit train ..."),
    "no job": (("verify", "run"), "job; got verify; wanted one of train, tune, eval-ensemble"),
    "an option that train has not": ((*TRAIN, "--epoch", "3"), "No such option '--epoch'"),
    "a value that train refuses": ((*TRAIN, "--epochs", "many"), "see `sports-ray train --help`"),
    "no store": (TRAIN[:-2], f"--store; got nothing, which is ./runs; {SHARED}"),
    "a store in the job's own folder": ((*TRAIN[:-1], "runs"), f"--store; got runs; {SHARED}"),
    "the same as a setting": ((*TRAIN, "--set", "store.root=runs"), f"--store; got runs; {SHARED}"),
    "photographs here": (("train", "--data", "photos", *TRAIN[3:]), "--data; got photos; wanted an absolute path"),
    "a run here": (("eval-ensemble", "--run", "a"), f"--store; got a; {SHARED}"),
    "results here": (("eval-ensemble", "--run", "/runs/a", "--out", "here"), f"--out; got here; {SHARED}"),
    "no recipe there": ((*TRAIN[:-2], "--recipe", "none.toml"), "recipe; got none.toml"),
    "no recipe, and a store": ((*TRAIN, "--recipe", "none.toml"), "recipe; got none.toml"),
    "no value": (("--env", "A", *TRAIN), "--env; got A; wanted NAME=VALUE"),
    "no address": (("--address", "nonsense", *TRAIN), "--address; got nonsense: Invalid address format"),
    "nobody there": (("--address", "http://127.0.0.1:9", *TRAIN), "wanted the address of a cluster's dashboard"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_before_anything_is_sent(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    shown = sports_ray(tmp_path, "submit", *words)
    assert shown.code == 2 and shown.out == ""
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1 and message in shown.err


def test_a_recipe_of_ones_own_is_sent_along_and_may_name_the_store(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[store]\nroot = "s3://bucket/runs"\n')
    assert settle([*TRAIN[:-2], "--recipe", str(recipe)]) == (
        [*TRAIN[:-2], "--recipe", "mine.toml", "--json"],
        {"mine.toml": recipe.read_text()},
    )
    assert settle([*TRAIN, f"--recipe={recipe}"])[0][-2:] == ["--recipe=mine.toml", "--json"]
    recipe.write_text('[store]\nroot = "runs"\n')
    with pytest.raises(Exception, match="--store; got runs"):
        settle([*TRAIN[:-2], "--recipe", str(recipe)])


@pytest.mark.parametrize("way", ["mine.toml", "./mine.toml", ".//mine.toml", "folder/../mine.toml"])
def test_a_recipe_is_found_there_however_its_path_is_written_here(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine.toml").write_text("[optim]\nlr = 1e-3\n")
    monkeypatch.chdir(tmp_path)
    for words, sent in ((["--recipe", way], ["--recipe", "mine.toml"]), ([f"--recipe={way}"], ["--recipe=mine.toml"])):
        assert settle([*TRAIN, *words]) == ([*TRAIN, *sent, "--json"], {"mine.toml": "[optim]\nlr = 1e-3\n"})


def test_recipes_of_a_sweep_are_sent_once_each_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    recipes = [tmp_path / folder / "mine.toml" for folder in ("a", "b")]
    for recipe in recipes:
        recipe.parent.mkdir()
        recipe.write_text("")
    tune = ["tune", "--data", "/photos", "--models", "a,b", "--space", "optim.lr=log:1e-5..1e-3", "--store", "/runs"]
    words, files = settle([*tune, *(word for _ in range(2) for word in ("--recipe", str(recipes[0])))])
    assert words[-5:] == ["--recipe", "mine.toml"] * 2 + ["--json"] and files == {"mine.toml": ""}
    with pytest.raises(ConfigError, match="--recipe; got two files of one name"):
        settle([*tune, *(word for recipe in recipes for word in ("--recipe", str(recipe)))])


def test_what_is_sent_is_this_package_and_nothing_that_depends_on_the_moment(tmp_path: Path) -> None:
    stage(tmp_path / "sent", {"mine.toml": "# own"})
    sent = {str(path.relative_to(tmp_path / "sent")) for path in (tmp_path / "sent").rglob("*") if path.is_file()}
    own = Path(package.__file__).parent
    files = {f"sports_ray/{path.relative_to(own)}" for path in own.rglob("*") if path.is_file()}
    assert sent == {name for name in files if "__pycache__" not in name} | {"mine.toml"}
    assert (tmp_path / "sent" / "mine.toml").read_text() == "# own"
    assert {"sports_ray/recipes/quick.toml", "sports_ray/report/assets/page.css"} <= sent
    told = subprocess.run(
        [sys.executable, "-m", "sports_ray", "--version"],
        cwd=tmp_path / "sent",
        capture_output=True,
        text=True,
        check=True,
    )
    assert package.__version__ in told.stdout


def test_equal_words_and_recipes_are_one_job_and_others_another() -> None:
    assert digest_of(TRAIN, {}) == digest_of(list(TRAIN), {}) != digest_of([*TRAIN, "--strict"], {})
    assert digest_of(["a b"], {}) != digest_of(["a", "b"], {})
    mine = {"mine.toml": "[optim]\nlr = 1e-3\n"}
    assert digest_of(TRAIN, mine) == digest_of(TRAIN, dict(mine))
    assert len({digest_of(TRAIN, files) for files in ({}, mine, {"mine.toml": "[optim]\nlr = 1e-4\n"})}) == 3


TRACEBACK = (
    500,
    "Traceback (most recent call last):\n  File job_head.py, line 404\nValueError: job train-404 is gone\n",
)
UNKNOWN = (404, "Job train-500 does not exist")
RUNNING = {"type": "SUBMISSION", "submission_id": "train-1", "status": "RUNNING", "entrypoint": "sports-ray train"}
CUT = (0, "")


@contextmanager
def dashboard(*answers: tuple[int, str]) -> Iterator[str]:
    """An address whose dashboard tells its version and then gives these answers in turn, the last one again and again;
    status 0 is a connection that breaks."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            version = (200, '{"ray_version": "2.60.0"}')
            status, body = version if self.path == "/api/version" else left.pop(0) if len(left) > 1 else left[0]
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = reply

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


KNOWN = (200, json.dumps([RUNNING]))
NONE = (200, "[]")
GONE = "Request failed with status code 500: ValueError: job train-404 is gone;"
ASKS = {
    "jobs": (("jobs",), (CUT,), "Connection aborted"),
    "jobs refused": (("jobs",), (TRACEBACK,), GONE),
    "logs": (("logs",), (KNOWN, TRACEBACK), GONE),
    "stop": (("stop", "train-1"), (CUT,), "Connection aborted"),
    "stop, sent": (("stop", "train-1"), (KNOWN, CUT), "Connection aborted"),
    "stop, waiting": (("stop", "train-1"), (KNOWN, (200, '{"stopped": true}'), TRACEBACK), GONE),
    "submit": (("submit", *TRAIN), (TRACEBACK,), GONE),
    "submit, sending": (("submit", *TRAIN), (NONE, CUT), "Connection aborted"),
}
"""Words, how the cluster answers them, and what it said last."""


@pytest.mark.parametrize(("words", "answers", "told"), ASKS.values(), ids=ASKS)
def test_a_cluster_that_does_not_answer_is_one_line_with_a_cure(
    words: tuple[str, ...], answers: tuple[tuple[int, str], ...], told: str, tmp_path: Path
) -> None:
    with dashboard(*answers) as address:
        shown = sports_ray(tmp_path, words[0], "--address", address, *words[1:])
    assert shown.code == 3 and shown.out == "" and shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith(f"error: the cluster at {address} did not answer, or not as it should; got ")
    assert told in shown.err and "; wanted an answer of its dashboard; cure: see whether the tunnel" in shown.err


def test_what_answers_without_being_ray_is_a_wrong_address(tmp_path: Path) -> None:
    with dashboard((200, "{}")) as address:
        shown = sports_ray(tmp_path, "jobs", "--address", f"{address}/prefix")
    assert shown.code == 2 and shown.err.startswith(f"error: --address; got {address}/prefix: "), shown.err
    assert shown.err.count("\n") == 1 and "wanted the address of a cluster's dashboard; cure: " in shown.err


def test_only_a_job_that_the_cluster_does_not_know_is_lost() -> None:
    with dashboard(UNKNOWN) as address:
        assert Jobs(address).info("train-500") == Job("train-500", LOST)
    with dashboard(TRACEBACK) as address, pytest.raises(RuntimeError, match="status code 500"):
        Jobs(address).info("train-404")
    with dashboard((200, json.dumps(RUNNING))) as address:
        assert Jobs(address).info("train-1").status == "RUNNING"


@pytest.mark.parametrize(
    ("job", "code", "died"),
    [
        (Job("j", "SUCCEEDED", code=0), 0, False),
        (Job("j", "FAILED", code=2), 2, False),
        (Job("j", "FAILED", code=3), 3, False),
        (Job("j", "FAILED", code=75), 75, False),
        (Job("j", "STOPPED"), 75, False),
        (Job("j", "FAILED", code=1), 1, True),
        (Job("j", "FAILED", code=137), 137, True),
        (Job("j", "FAILED", code=-9), 137, True),
        (Job("j", "FAILED"), 3, True),
        (Job("j", "LOST"), 3, True),
        (Job("j", "FAILED", setup_failed=True), 3, False),
    ],
)
def test_a_job_that_was_killed_or_lost_has_died_and_one_that_decided_has_not(job: Job, code: int, died: bool) -> None:
    assert (job.exit_code, job.died, job.over) == (code, died, True)
    assert not Job("j", "PENDING").over and not Job("j", "RUNNING").died


ENTRIES = {"train": ("--data", "/a"), "tune": ("--data", "/a"), "eval_ensemble": ("--run", "a")}
"""Words of each that say nothing of a store."""


@pytest.mark.parametrize(("name", "words"), ENTRIES.items())
def test_the_entry_point_of_a_job_is_the_command_and_keeps_its_results(
    name: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    command = name.replace("_", "-")
    helped = call("--help")
    assert helped.returncode == 0 and f"Usage: sports-ray {command}" in helped.stdout
    refused = call(*words)
    assert refused.returncode == 2 and refused.stderr.startswith("error: --store; got ") and SHARED in refused.stderr
    wrong = call(*words, "--nonsense")
    assert wrong.returncode == 2 and f"see `sports-ray {command} --help`" in wrong.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_driver_on_a_head_without_gpus_plans_for_those_of_the_cluster(tmp_path: Path) -> None:
    from sports_ray.data.demo import draw_demo
    from sports_ray.orchestrate.plan import make_plan
    from tests.support.runs import small_config

    draw_demo(tmp_path / "set", classes=2, per_class=4, size=40)
    settings = {"cluster__workers": "auto", "loop__lanes": 4}
    plan = make_plan(small_config(tmp_path / "set", tmp_path, cluster__gpus=3, **settings))
    assert (plan.gpus, plan.workers) == (3, (3, 3))
    assert make_plan(small_config(tmp_path / "set", tmp_path, cluster__gpus=64, **settings)).workers == (4, 4)
