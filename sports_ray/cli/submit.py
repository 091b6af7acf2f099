"""`submit`, `jobs`, `logs` and `stop`: commands as jobs of a cluster, followed as if they ran here."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sports_ray.cli.blocks_show import BlocksShow
from sports_ray.cli.job import check_store, lasts, parse
from sports_ray.cli.show import choose_show, duration
from sports_ray.errors import ConfigError, RunError

if TYPE_CHECKING:
    from sports_ray.orchestrate.jobs import Job, Jobs

EXAMPLES = """
\b
Examples:
  sports-ray submit train --data /mnt/shared/photos --model convnext_large --store s3://bucket/runs
  sports-ray submit --retries 5 --no-wait train --data /mnt/shared/photos --model vit_base_patch16_224 --store /mnt/shared/runs
  sports-ray submit eval-ensemble --data /mnt/shared/photos --run /mnt/shared/runs/convnext --store /mnt/shared/runs

The words after `submit` are those of the command itself. The cluster runs this very version of sports-ray; what it needs
must be installed there. Paths are those of the cluster. A job that is running already is followed, not started twice. Ctrl-C
leaves it running. Exit codes are the job's own: 0 done, 2 your mistake, 3 failed, 75 stopped; 128 and more: killed.
"""
_BLOCKS = ("work", "block", "fitting", "scoring")
_RAYS_OWN = ("\tINFO job_manager.py:", "Running entrypoint for job ")
"""What Ray writes into a job's log."""
_ADDRESS = click.option(
    "--address", default="", metavar="URL", help="Of the dashboard. Default: RAY_ADDRESS, or http://127.0.0.1:8265."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@click.command(epilog=EXAMPLES, context_settings={"ignore_unknown_options": True})
@_ADDRESS
@click.option("--no-wait", is_flag=True, help="Do not follow the job: print its id and return.")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Submit a job again that was killed or lost, so often; it goes on with the same run.",
)
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="For the job, everywhere. Repeatable.")
@click.option("--python", default="python", show_default=True, metavar="PATH", help="The cluster's interpreter.")
@_JSON
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="train|tune|eval-ensemble ...")
def submit(
    words: tuple[str, ...],
    address: str,
    no_wait: bool,
    retries: int,
    environment: tuple[str, ...],
    python: str,
    as_json: bool,
) -> int:
    """Run train, tune or eval-ensemble on a Ray cluster as a job, and follow it to its end."""
    sent, files = settle(list(words))
    variables = parse_environment(environment)
    mirror = Mirror(as_json)
    from sports_ray.orchestrate.follow import Patience, patiently
    from sports_ray.orchestrate.jobs import Jobs, once

    jobs = Jobs(address)

    def start() -> Job:  # asked again after a lost answer, it finds what it has started
        return jobs.running(sent, files) or jobs.submit(sent, python, variables, files)

    how = "runs already: following it" if once(jobs.address, lambda: jobs.running(sent, files)) else "submitted"
    job = once(jobs.address, start)
    mirror.job(job, f"{how} at {jobs.address}")
    if no_wait:
        mirror.close()
        return 0
    try:
        for left in range(retries, -1, -1):
            job = mirror.follow(jobs, job)
            if not job.died or not left:
                break
            mirror.died(job)
            job = patiently(start, Patience(job.id, mirror.trouble))
            mirror.job(job, "submitted again")
    except KeyboardInterrupt:
        mirror.left(job)
        return 130
    mirror.ended(job)
    return job.exit_code


@click.command()
@_ADDRESS
@_JSON
def jobs(address: str, as_json: bool) -> None:
    """List the cluster's jobs, oldest first."""
    from sports_ray.orchestrate.jobs import Jobs, once

    cluster = Jobs(address)
    found = once(cluster.address, cluster.list)
    if as_json:
        click.echo(json.dumps([job_facts(job) for job in found], ensure_ascii=False))
        return
    width = max([len("job"), *(len(job.id) for job in found)])
    click.echo(f"{'job':<{width}}  {'status':<9}  {'started':<19}  {'time':>8}  command")
    for job in found:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))
        took = duration((job.ended or time.time()) - job.started)
        click.echo(f"{job.id:<{width}}  {job.status:<9}  {started}  {took:>8}  {job.command}")


@click.command()
@_ADDRESS
@click.argument("job", required=False, default="")
@click.option("--follow", "-f", is_flag=True, help="Until the job ends; the exit code is the job's own.")
@_JSON
def logs(address: str, job: str, follow: bool, as_json: bool) -> int:
    """Show what JOB has written; without a name, the newest one."""
    from sports_ray.orchestrate.jobs import Jobs, once

    cluster = Jobs(address)
    found = one_job(cluster, job)
    mirror = Mirror(as_json)
    if not follow:
        for line in once(cluster.address, lambda: cluster.log(found.id)).splitlines():
            mirror.line(line, live=False)
        mirror.close()
        return 0
    try:
        found = mirror.follow(cluster, found)
    except KeyboardInterrupt:
        mirror.left(found)
        return 130
    mirror.ended(found)
    return found.exit_code


@click.command()
@_ADDRESS
@click.argument("job")
@_JSON
def stop(address: str, job: str, as_json: bool) -> None:
    """Stop JOB: it commits and pauses; the same submission again goes on with the same run."""
    from sports_ray.orchestrate.jobs import Jobs, once

    cluster = Jobs(address)
    found = one_job(cluster, job)
    mirror = Mirror(as_json)
    if found.over:
        mirror.ended(found)
        return
    found = once(cluster.address, lambda: cluster.stop(found.id))
    mirror.ended(found, "the same submission goes on from its last commit")


class Mirror:
    """Shows here what a job says there: its JSON lines as the command itself would show them, anything else on stderr."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._show = choose_show(as_json)
        self._blocks = BlocksShow(self._show, as_json)

    def follow(self, jobs: Jobs, job: Job) -> Job:
        """Shows the job's log to its end; how it ended."""
        from sports_ray.orchestrate.follow import Follower, Patience, patiently

        for line, live in Follower(jobs, job.id, self.trouble):
            self.line(line, live)
        self.close()
        return patiently(lambda: jobs.info(job.id), Patience(job.id, self.trouble))

    def line(self, text: str, live: bool) -> None:
        """One line of the log; of steps that are long past only the evaluations are shown."""
        record = _record(text)
        if self._as_json and record is not None:
            print(text, flush=True)
        elif record is None:
            self.close()
            if text.strip() and not any(words in text for words in _RAYS_OWN):
                print(text, file=sys.stderr, flush=True)
        elif record["event"] == "error":
            pass  # the same, in words, is the next line
        elif "text" in record:
            self._show.fact(record["event"], record["text"])
        elif "trial" in record:
            from sports_ray.cli.sweep_show import SweepShow

            SweepShow(self._show).event(record["trial"], {"kind": record["event"], **record})
        elif record["event"] in _BLOCKS:
            self._blocks.event({"kind": record["event"], **record})
        elif live or record["event"] != "step":
            self._show.event({"kind": record["event"], **record})

    def trouble(self, text: str) -> None:
        self.close()
        self._show.fact("connection", f"! {text}", text=text)

    def job(self, job: Job, how: str) -> None:
        self._show.fact("job", f"{job.id} · {how}", **job_facts(job))

    def died(self, job: Job) -> None:
        self.ended(job)
        self._show.event({"kind": "restart", "reason": f"job {job.id} died"})

    def left(self, job: Job) -> None:
        self.close()
        text = f"{job.id} goes on without us. To see it again, or to stop it:"
        commands = [f"sports-ray logs {job.id} --follow", f"sports-ray stop {job.id}"]
        self._show.fact("left", "\n".join([text, *commands]), id=job.id, commands=commands)

    def ended(self, job: Job, words: str = "") -> None:
        self.close()
        text = f"{job.id} · {job.status.lower()}, exit code {job.exit_code}"
        if job.died and job.message:
            words = job.message.strip().splitlines()[0]
        self._show.fact("job", f"{text}{': ' * bool(words)}{words}", **job_facts(job))

    def close(self) -> None:
        self._blocks.close()
        self._show.close()


def settle(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """The words to submit and the files to send with them (texts by name); every mistake that can be seen is told here."""
    from sports_ray.recipe import recipe_text

    params = parse(words)
    check_store(words[0], params)
    data = str(params.get("data_root") or params.get("data") or "/")
    if not lasts(data):
        raise ConfigError("--data", got=data, want="an absolute path, or an address, as the cluster's nodes see it")
    given = params.get("recipes") or [params.get("recipe") or ""]
    names = {recipe: Path(recipe).name for recipe in given if recipe.endswith(".toml")}
    if len(set(names.values())) < len(names):
        raise ConfigError("--recipe", got="two files of one name", want="names that differ", cure="rename one of them")
    # There they lie in the job's own folder; here they are read once, that a job submitted again is the same.
    there = names | {f"--recipe={recipe}": f"--recipe={name}" for recipe, name in names.items()}
    files = {name: recipe_text(recipe) for recipe, name in names.items()}
    return [*(there.get(word, word) for word in words), "--json"], files


def parse_environment(given: tuple[str, ...]) -> dict[str, str]:
    for one in given:
        if not one.partition("=")[0] or "=" not in one:
            raise ConfigError("--env", got=one, want="NAME=VALUE", cure="for example --env HF_HUB_OFFLINE=1")
    return dict(one.split("=", 1) for one in given)


def one_job(jobs: Jobs, job: str) -> Job:
    """A job by its id, or the newest one; RunError if there is none."""
    from sports_ray.orchestrate.jobs import once

    known = once(jobs.address, jobs.list)
    found = [one for one in known if one.id == job] if job else known[-1:]
    if not found:
        raise RunError("job", got=job or "none", want="a job of this cluster", cure="see `sports-ray jobs`")
    return found[0]


def job_facts(job: Job) -> dict[str, Any]:
    facts = {"id": job.id, "status": job.status, "exit_code": job.exit_code if job.over else None}
    return facts | {"command": job.command, "started": job.started, "ended": job.ended, "message": job.message}


def _record(text: str) -> dict[str, Any] | None:
    """An event as a command prints it with --json; None for any other line."""
    if not text.startswith('{"event"'):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
