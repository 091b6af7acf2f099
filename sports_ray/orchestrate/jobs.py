"""Jobs of a Ray cluster: submitted, listed, stopped. Talks to its Job API alone; `follow.py` reads their logs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

import sports_ray
from sports_ray.errors import ConfigError, TrainingError
from sports_ray.orchestrate.join import token_error
from sports_ray.store.storage import without_keys

DASHBOARD = "http://127.0.0.1:8265"
"""Where a cluster on this machine answers, or a tunnel to one elsewhere."""
STOP_SECONDS = 60
"""How long a stopped job may take for its last commit; Ray's own setting is 3."""
ANSWER_SECONDS = (10, 120)
"""To connect; to answer. Ray's client would wait for ever."""
AGENT_SECONDS, AGENT_POLL_SECONDS = 60.0, 0.5
"""How long a cluster that has just begun may take until one of its nodes can start a job; how often it is asked."""
LOST, STOPPED = "LOST", "STOPPED"
_OWN_CODES = (0, 2, 3, 75, 130)
CUT = (OSError, RuntimeError, TimeoutError, aiohttp.ClientError)
"""What a lost connection, or a cluster that is just going away, may raise; requests' errors are OSErrors."""
_UNKNOWN = "Request failed with status code 404:"
"""How Ray's client begins when the cluster knows no such job."""
_AWAY = tuple(f"Request failed with status code {code}:" for code in (502, 503, 504))
"""When what stands before the cluster answers in its place: it is being started, or not reached."""
_LOGGERS = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Job:
    """What the cluster says of a job."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED; LOST: the cluster knows nothing of it (any more)."""
    command: str = ""
    digest: str = ""
    """Of the words and files it was submitted with; empty if somebody else submitted it."""
    code: int | None = None
    """Exit code of its process; negative: the signal that ended it; None: nobody saw it end."""
    message: str = ""
    started: float = 0.0
    """Unix time; 0: not told."""
    ended: float = 0.0
    setup_failed: bool = False
    """Whether its environment could not be made."""

    @property
    def over(self) -> bool:
        return self.status not in ("PENDING", "RUNNING")

    @property
    def died(self) -> bool:
        """Whether it ended other than by its own decision, so that the same command again may help."""
        return self.over and not self.setup_failed and self._code not in _OWN_CODES

    @property
    def exit_code(self) -> int:
        """Its own exit code, 128 + signal if one ended it; 75 if it was stopped; 3 if nobody saw it end."""
        if self._code is None:
            return 3
        return self._code if self._code >= 0 else 128 - self._code

    @property
    def _code(self) -> int | None:
        return {"SUCCEEDED": 0, STOPPED: 75}.get(self.status, self.code)


def digest_of(words: Sequence[str], files: Mapping[str, str]) -> str:
    """Eight hexadecimal digits that tell commands apart, and what the files say that go with them."""
    return hashlib.sha256(json.dumps([list(words), dict(files)]).encode()).hexdigest()[:8]


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, address: str = "") -> None:
        """Connects to the dashboard at `address` (RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this machine's).

        Raises ConfigError if nobody answers there or the token is missing or wrong."""
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        self.address = address or _address_in_environment() or DASHBOARD
        if address:  # otherwise these would win over what was given
            os.environ.pop("RAY_API_SERVER_ADDRESS", None)
            os.environ.pop("RAY_ADDRESS", None)
        try:
            self._client = _Client(self.address, headers=_token_header())
        except AuthenticationError as error:
            known = bool(_token_header() or os.environ.get("RAY_AUTH_TOKEN"))
            raise token_error(self.address, another=known) from error
        # Of an address that Ray cannot read, or where something else than Ray answers, it raises anything.
        except (OSError, RuntimeError, ValueError, LookupError, TypeError, AssertionError) as error:
            raise ConfigError(
                "--address",
                got=f"{self.address}: {first_line(error)}",
                want="the address of a cluster's dashboard",
                cure="`ray dashboard cluster.yaml` or `ssh -L 8265:localhost:8265 HEAD`, then --address " + DASHBOARD,
            ) from error

    def submit(
        self, words: Sequence[str], python: str, environment: Mapping[str, str], files: Mapping[str, str]
    ) -> Job:
        """Starts `python -m sports_ray WORDS` with this very package, and `files` (texts by name) beside it, on every node."""
        digest = digest_of(words, files)
        shown = without_keys(shlex.join(["sports-ray", *(word for word in words if word != "--json")]))
        number = 1 + sum(job.digest == digest for job in self.list())
        end = time.monotonic() + AGENT_SECONDS
        with tempfile.TemporaryDirectory() as folder:
            stage(Path(folder), files)
            while True:
                name = f"{words[0]}-{digest}-{number}"
                try:
                    self._ask(
                        "submit_job",
                        entrypoint=shlex.join([python, "-m", "sports_ray", *words]),
                        submission_id=name,
                        runtime_env={"working_dir": folder, "env_vars": _environment(environment)},
                        metadata={"sports_ray": digest, "command": shown},
                    )
                except RuntimeError as error:
                    if "already exists" in str(error):
                        number += 1
                    elif "No available agent" in str(error) and time.monotonic() < end:
                        time.sleep(AGENT_POLL_SECONDS)
                    elif str(error).startswith(_AWAY):
                        raise
                    else:
                        raise TrainingError("the cluster did not take the job", got=first_line(error)) from error
                else:
                    return self.info(name)

    def running(self, words: Sequence[str], files: Mapping[str, str]) -> Job | None:
        """A job of the same words and files that has not ended."""
        digest = digest_of(words, files)
        return next((job for job in self.list() if job.digest == digest and not job.over), None)

    def list(self) -> list[Job]:
        """All jobs that were submitted, oldest first."""
        jobs = [_job(details) for details in self._ask("list_jobs") if details.submission_id]
        return sorted(jobs, key=lambda job: job.started)

    def info(self, job: str) -> Job:
        """What the cluster says of it; status LOST if nothing."""
        try:
            return _job(self._ask("get_job_info", job))
        except RuntimeError as error:
            if str(error).startswith(_UNKNOWN):
                return Job(job, LOST)
            raise

    def stop(self, job: str) -> Job:
        """Asks it to stop and waits until it has ended."""
        self._ask("stop_job", job)
        while not (found := self.info(job)).over:
            time.sleep(0.2)
        return found

    def log(self, job: str) -> str:
        """All that it has written so far."""
        return str(self._ask("get_job_logs", job))

    def tail(self, job: str) -> AsyncIterator[str]:
        """Its log from the start, in pieces, until it ends or the connection breaks."""
        return self._client.tail_job_logs(job)

    def _ask(self, what: str, *words: Any, **named: Any) -> Any:
        try:
            return getattr(self._client, what)(*words, **named)
        except AuthenticationError as error:
            known = bool(_token_header() or os.environ.get("RAY_AUTH_TOKEN"))
            raise token_error(self.address, another=known) from error


def once(address: str, act: Callable[[], Answer]) -> Answer:
    """What `act` returns; TrainingError if the cluster at `address` cannot be reached, or has not done it."""
    try:
        return act()
    except CUT as error:
        raise TrainingError(
            f"the cluster at {address} did not answer, or not as it should",
            got=first_line(error),
            want="an answer of its dashboard",
            cure="see whether the tunnel and the head still run, then give the same command again",
        ) from error


def stage(folder: Path, files: Mapping[str, str]) -> None:
    """Puts this package, and `files`, into `folder`, as every node shall find them."""
    package = Path(sports_ray.__file__).parent
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


class _Client(JobSubmissionClient):
    def _do_request(self, method: str, endpoint: str, **named: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": ANSWER_SECONDS, **named})


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    # Ray's supervisor of the job reads this from the job's own environment.
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **given}


def _address_in_environment() -> str:
    return os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""


def _token_header() -> dict[str, str]:
    """A token that lies where Ray looks for one, where RAY_AUTH_MODE says nothing; else Ray itself decides."""
    if os.environ.get("RAY_AUTH_MODE"):
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and path.is_file():
        token = path.read_text(encoding="utf-8").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id or details.job_id or "",
        status=str(getattr(details.status, "value", details.status)),
        command=metadata.get("command") or details.entrypoint,
        digest=metadata.get("sports_ray", ""),
        code=details.driver_exit_code,
        message=details.message or "",
        started=(details.start_time or 0) / 1000,
        ended=(details.end_time or 0) / 1000,
        setup_failed=details.error_type == "RUNTIME_ENV_SETUP_FAILURE",
    )


def first_line(error: BaseException) -> str:
    """What it says in one line; of a traceback that a cluster has sent, its last line."""
    lines = str(error).strip(" .\n").splitlines() or [type(error).__name__]
    line = lines[0].replace("Traceback (most recent call last):", lines[-1].strip())
    return line[:200]
