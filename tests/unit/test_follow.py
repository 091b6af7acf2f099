"""Logs that break in mid-line and go on, jobs that die and are submitted again: with a `Jobs` that follows a script."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, cast

import pytest

from sports_ray.cli.submit import submit
from sports_ray.errors import TrainingError
from sports_ray.orchestrate import follow
from sports_ray.orchestrate.follow import Follower
from sports_ray.orchestrate.jobs import LOST, STOPPED, Job, Jobs

TEXT = "one\n\ntwö\nthree, the last"
"""A log of four lines, one of them empty, and no end of line after the last."""
WORDS = ["train", "--data", "/photos", "--model", "test_resnet", "--store", "/runs"]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second between two tries."""
    monkeypatch.setattr(follow, "RETRY_SECONDS", 0.0)


class Log:
    """Of our `Jobs`, what a follower asks: a job that writes TEXT, and connections that break after so many characters."""

    def __init__(self, ends: Sequence[int], size: int, lag: int = 0) -> None:
        """In pieces of `size`; `lag`: what the job writes between the end of a connection and the next."""
        self._ends, self._size, self._lag = list(ends), size, lag
        self._written = 0

    def info(self, job: str) -> Job:
        return Job(job, "RUNNING" if self._ends else "SUCCEEDED")

    def log(self, job: str) -> str:
        return TEXT[: self._written] if self._ends else TEXT

    async def tail(self, job: str) -> AsyncIterator[str]:
        end = max(self._written, self._ends.pop(0))
        for begin in range(0, end, self._size):
            yield TEXT[begin : min(end, begin + self._size)]
        self._written = min(len(TEXT), end + self._lag)
        raise ConnectionError("the tunnel is gone")


def lines(log: Log, told: list[str]) -> list[str]:
    return [line for line, _ in Follower(cast(Jobs, log), "train-1", told.append)]


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_log_that_breaks_after_any_character_is_shown_line_by_line_each_once(size: int, lag: int) -> None:
    for first in range(len(TEXT) + 1):
        told: list[str] = []
        assert lines(Log([first, min(len(TEXT), first + 3)], size, lag), told) == TEXT.split("\n"), first
        assert [text.partition(" (")[0] for text in told] == [
            "the cluster does not answer",
            "the cluster answers again",
            "the cluster does not answer",
            "the cluster answers again",
        ]


def test_what_was_written_before_anybody_followed_is_told_apart() -> None:
    log = Log([len(TEXT)], size=5)
    log._written = len("one\n\ntw")
    shown = list(Follower(cast(Jobs, log), "train-1", lambda text: None))
    assert shown == [("one", False), ("", False), ("twö", True), ("three, the last", True)]


def test_cluster_that_stays_away_ends_the_following_and_says_how_to_go_on() -> None:
    class Away(Log):
        def info(self, job: str) -> Job:
            raise ConnectionError("refused")

    told: list[str] = []
    with pytest.raises(
        TrainingError, match="not answered for 0 s; got refused; cure: .*`sports-ray logs train-1 --follow`"
    ):
        list(Follower(cast(Jobs, Away([], 1)), "train-1", told.append, patience=0.0))
    assert told == ["the cluster does not answer (refused): trying again, its jobs go on without us"]


class Cluster:
    """Of our `Jobs`, what `submit` asks: each job that is submitted ends at once, as its turn says."""

    address = "http://head:8265"

    def __init__(self, *ends: Job) -> None:
        self.jobs: list[Job] = []
        self.lost_answers = 0
        self._ends = list(ends)
        self._known: list[Job] = []

    def running(self, words: Sequence[str], files: Mapping[str, str]) -> Job | None:
        return next((Job(job.id, "RUNNING") for job in self.jobs if job not in self._known), None)

    def submit(
        self, words: Sequence[str], python: str, environment: Mapping[str, str], files: Mapping[str, str]
    ) -> Job:
        self.jobs.append(self._ends.pop(0))
        if len(self.jobs) > 1 and self.lost_answers:
            self.lost_answers -= 1
            raise ConnectionError("the tunnel is gone")
        return Job(self.jobs[-1].id, "RUNNING")

    def info(self, job: str) -> Job:
        found = next(one for one in self.jobs if one.id == job)
        self._known.append(found)
        return found

    def log(self, job: str) -> str:
        return ""


def submitted(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr("sports_ray.orchestrate.jobs.Jobs", lambda address: cluster)
    return cast(int, submit.main(["--json", *options, *WORDS], standalone_mode=False))


def ends(*how: int | str) -> list[Job]:
    """Jobs that ended with these exit codes, or with these words of the cluster."""
    return [
        Job(f"train-{number}", one) if isinstance(one, str) else Job(f"train-{number}", "FAILED", code=one)
        for number, one in enumerate(how, 1)
    ]


@pytest.mark.parametrize(
    ("retries", "how", "tried", "code"),
    [
        (0, (-9, "SUCCEEDED"), 1, 137),
        (1, (-9, "SUCCEEDED"), 2, 0),
        (2, (137, LOST, "SUCCEEDED"), 3, 0),
        (2, (1, LOST, -15, "SUCCEEDED"), 3, 143),
        (3, (-9, 2, "SUCCEEDED"), 2, 2),
        (3, ("SUCCEEDED", "SUCCEEDED"), 1, 0),
        (3, (2, "SUCCEEDED"), 1, 2),
        (3, (3, "SUCCEEDED"), 1, 3),
        (3, (75, "SUCCEEDED"), 1, 75),
        (3, (STOPPED, "SUCCEEDED"), 1, 75),
    ],
)
def test_job_that_died_is_submitted_again_so_often_and_one_that_decided_is_not(
    retries: int, how: tuple[int | str, ...], tried: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(*ends(*how))
    assert submitted(cluster, monkeypatch, "--retries", str(retries)) == code
    assert len(cluster.jobs) == tried


def test_job_submitted_again_whose_answer_is_lost_is_found_and_not_started_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(*ends(-9, "SUCCEEDED", "SUCCEEDED"))
    cluster.lost_answers = 1
    assert submitted(cluster, monkeypatch, "--retries", "1") == 0
    assert [job.id for job in cluster.jobs] == ["train-1", "train-2"]
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in shown] == ["job", "job", "restart", "connection", "connection", "job", "job"]


class Sending(Jobs):
    """Our `Jobs` up to where Ray's client is asked: it keeps what was to be sent."""

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}

    def list(self) -> list[Job]:
        return []

    def info(self, job: str) -> Job:
        return Job(job, "PENDING")

    def _ask(self, what: str, *words: Any, **named: Any) -> None:
        self.sent = named


@pytest.mark.parametrize(("given", "seconds"), [({}, "60"), ({"RAY_JOB_STOP_WAIT_TIME_S": "5"}, "5")])
def test_job_gets_time_for_its_last_commit_unless_it_is_told_otherwise(given: dict[str, str], seconds: str) -> None:
    jobs = Sending()
    jobs.submit(WORDS, "python", {"HF_HUB_OFFLINE": "1", **given}, {"mine.toml": ""})
    assert jobs.sent["runtime_env"]["env_vars"] == {"HF_HUB_OFFLINE": "1", "RAY_JOB_STOP_WAIT_TIME_S": seconds}
    assert jobs.sent["entrypoint"] == "python -m sports_ray " + " ".join(WORDS)


@pytest.mark.parametrize(("code", "tried"), [(502, 3), (503, 3), (504, 3), (500, 1)])
def test_gateway_that_answers_for_a_cluster_that_is_away_is_asked_again_and_a_refusal_is_not(
    code: int, tried: int
) -> None:
    class Behind(Sending):
        asked = 0

        def _ask(self, what: str, *words: Any, **named: Any) -> None:
            self.asked += 1
            if self.asked < 3:
                raise RuntimeError(f"Request failed with status code {code}: <html>no such pool</html>.")
            super()._ask(what, *words, **named)

    jobs, told = Behind(), list[str]()
    with suppress(TrainingError) if code == 500 else nullcontext():
        follow.patiently(lambda: jobs.submit(WORDS, "python", {}, {}), follow.Patience("train-1", told.append))
    assert jobs.asked == tried and bool(jobs.sent) == (code != 500)


def test_edited_recipe_is_another_job_and_the_same_one_is_followed() -> None:
    words, mine = [*WORDS, "--recipe", "mine.toml"], {"mine.toml": "[optim]\nlr = 1e-3\n"}
    jobs = Sending()
    jobs.submit(words, "python", {}, mine)
    known = Job(jobs.sent["submission_id"], "RUNNING", digest=jobs.sent["metadata"]["sports_ray"])
    jobs.list = lambda: [known]  # type: ignore[method-assign]
    assert jobs.running(words, dict(mine)) == known
    assert jobs.running(words, {"mine.toml": "[optim]\nlr = 1e-4\n"}) is None
