"""The commands: words -> config -> one call -> exit code. Only this package prints.

Each module holds one command or group and is imported when it is called, so that `sports-ray --help` is instant.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import logging
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from sports_ray import __version__
from sports_ray.cli.show import Out
from sports_ray.errors import SportsRayError, UserError

COMMANDS = {
    "train": ("sports_ray.cli.train:train", "Train a model on a folder of photographs, or go on with it."),
    "folds": ("sports_ray.cli.folds:folds", "Cross-validate: K runs, each scored on the fold it did not see."),
    "tune": ("sports_ray.cli.tune:tune", "Search settings for several models at the same time."),
    "resume": ("sports_ray.cli.train:resume", "Go on with a run as it was started."),
    "status": ("sports_ray.cli.status:status", "Show the runs of a store, or one of them."),
    "verify": ("sports_ray.cli.verify:verify", "Re-read a whole run and prove that it is sound."),
    "doctor": ("sports_ray.cli.doctor:doctor", "Look for faults of machine, photographs and runs, with cures."),
    "eval-ensemble": ("sports_ray.cli.evaluate:eval_ensemble", "Score finished runs: alone, augmented and together."),
    "predict": ("sports_ray.cli.evaluate:predict", "Predict images into a CSV."),
    "report": ("sports_ray.cli.report:report", "Write a run or an evaluation as one page."),
    "explain": ("sports_ray.cli.report:explain", "Show where in photographs a model finds its evidence."),
    "export": ("sports_ray.cli.export:export", "Write a run for ONNX, PyTorch's own or TensorFlow's runtimes."),
    "submit": ("sports_ray.cli.submit:submit", "Run train, tune or eval-ensemble on a Ray cluster."),
    "jobs": ("sports_ray.cli.submit:jobs", "List a cluster's jobs."),
    "logs": ("sports_ray.cli.submit:logs", "Show or follow what a job writes."),
    "stop": ("sports_ray.cli.submit:stop", "Stop a job: it commits and pauses."),
    "spot-watch": ("sports_ray.cli.spot:spot_watch", "Drain this node before the cloud takes it away."),
    "data": ("sports_ray.cli.data:data", "Look into photographs, or draw a set to try things with."),
    "models": ("sports_ray.cli.models:models", "List models with size and preprocessing."),
    "recipes": ("sports_ray.cli.models:recipes", "List the recipes, or show one."),
    "bench": ("sports_ray.cli.bench:bench", "Measure training, loader and checkpoints on this machine."),
    "chaos": ("sports_ray.cli.chaos:chaos", "Prove on this machine that a killed training loses nothing."),
    "demo": ("sports_ray.cli.demo:demo", "See the main job: two models, a killed worker, and a table."),
}


READER_LEFT = 141
"""Exit code where nobody reads what a command prints (`sports-ray models | head`): 128 + SIGPIPE, what the shell says of
`cat` there, and what scripts with `set -o pipefail` know."""


NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """A broken pipe ends the command without a word if it is a stream's, and like any other failure if it is not: click
    would end with exit code 1 and hide both."""
    try:
        yield
    except BrokenPipeError as error:
        if _reader_has_left():
            raise click.exceptions.Exit(READER_LEFT) from error
        raise ConnectionError(f"a pipe between processes broke: {error}") from error


def _reader_has_left() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # none there, closed, or without a descriptor
            poll.register(stream.fileno(), 0)  # that the other end is gone is told unasked
    return bool(poll.poll(0))


class LazyGroup(click.Group):
    """Imports a command's module only when the command is called."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _reader_may_leave():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _reader_may_leave():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if near:
                raise click.UsageError(f"{error.message} Did you mean {near[0]}?", error.ctx) from None
            raise


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sports-ray")
def cli() -> None:
    """Train timm image classifiers on sports photographs, on machines that may vanish, to the same last bit.

    \b
    sports-ray demo                                          see it work, in four minutes
    sports-ray data scan photos                              is the data sound?
    sports-ray train --data photos --model convnext_large    train; the same command resumes

    Exit codes: 0 done, 2 your mistake, 3 failed, 75 paused (the same command goes on).
    """


def main() -> None:
    """Entry point: every error on purpose is one line on stderr, or one JSON object with --json."""
    # What people are to see is printed; without a handler of its own Python would add the log's warnings on stderr.
    logging.getLogger("sports_ray").addHandler(logging.NullHandler())
    _show_any_name()
    # Imports of hundreds of thousands of objects, none of them garbage: by default a tenth of a start goes into the search.
    gc.set_threshold(10_000)
    try:
        code = cli.main(prog_name="sports-ray", standalone_mode=False)
    except SportsRayError as error:
        report_error(error)
        code = error.exit_code
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = 2
    except click.ClickException as error:
        report_error(usage_error(error))
        code = 2
    except (KeyboardInterrupt, click.Abort):
        _tell("interrupted")
        code = 130
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        _tell(f"error: nothing more can be written; got: {error}; cure: make room, or write it elsewhere")
        code = 3
    _finish_streams()
    sys.exit(code if isinstance(code, int) else 0)


def _show_any_name() -> None:
    """Names of files need be no text: where a stream cannot take a character, its number is shown, and no command fails."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # none there, another's, or closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def usage_error(error: click.ClickException) -> UserError:
    """A mistake in the command line itself, in the form of all other errors."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "sports-ray"
    return UserError(" ".join(error.format_message().split()).rstrip("."), cure=f"see `{command} --help`")


def report_error(error: SportsRayError) -> None:
    if "--json" in sys.argv:
        parts = {"what": error.what, "got": str(error.got), "wanted": error.want, "cure": error.cure}
        event = {"event": "error", "kind": type(error).__name__, "exit_code": error.exit_code, **parts}
        Out(sys.stdout).line(json.dumps(event))
    _tell(f"error: {error}")


def _tell(line: str) -> None:
    Out(sys.stderr).line(line)


def _finish_streams() -> None:
    """Writes what is left to be written: at its own end Python would complain of a reader that has left, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        Out(stream).flush()
