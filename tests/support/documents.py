"""The documentation as a program: its blocks, its commands, and what stands in for large models and long trainings.

docs/README.md says what the comments on the pages mean."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

from sports_ray.cli import cli
from sports_ray.cli.job import JOBS, parse
from tests.support.shell import sports_ray

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
RUN, DATA = ("sh",), ("toml", "csv", "json")
"""Languages of blocks: those that are run, and those that may be a file. Blocks without one only show."""
EXCEPTED = "sports-ray submit train --data /mnt/shared/photos --model convnext_large --store s3://bucket/runs"
"""The line of README.md that needs a cluster, among others that do not."""
LONG = ("demo", "tune", "chaos", "bench")
"""Commands that need Ray or minutes."""
CLUSTER = ("submit", "jobs", "logs", "stop", "spot-watch")
"""Commands that need a cluster or a cloud."""
TINY = shlex.split(
    "--precision fp32 --set data.image_size=32 --set loop.global_batch=8 --set loop.lanes=4 --set cluster.threads=1"
)
HERE = shlex.split("--workers 0 --set data.loader_processes=0")
ADDED = {
    "train": [*TINY, *HERE, "--weights", "none"],
    "tune": [*TINY, "--weights", "none", "--cpus-per-trial", "0.5"],
    "folds": [*TINY, *HERE, "--weights", "none"],
    "resume": HERE[:2],
    "eval-ensemble": HERE[:2],
    "chaos": ["--epochs", "2"],
}
"""Put behind the words of a command where it is run; the last of equal options counts."""
MODELS = {
    "convnext_large": "test_resnet",
    "swinv2_large": "test_efficientnet",
    "sports102-convnext": "test_resnet",
    "sports102-swinv2": "test_efficientnet",
    "convnext-tiny": "test_resnet",
    "pixelplay-convnext-tiny": "test_convnext",
    "mine.toml": "test_resnet",
}
"""What is trained in place of a model, or of the model of a recipe."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    cloud: bool = False
    file: str = ""
    """Name of the file whose content this is."""
    before: tuple[str, ...] = ()
    """Commands that come before it without the reader's doing."""
    instead: Mapping[str, str] = field(default_factory=dict)

    @property
    def to_run(self) -> list[str]:
        """Commands that a reader without a cluster would run; of README.md, whose blocks hold other things too, those alone."""
        if self.page == README:
            return [line for line in self.commands if line.startswith("sports-ray ") and line != EXCEPTED]
        return self.commands if self.language in RUN and not self.cloud else []

    @property
    def commands(self) -> list[str]:
        """Its lines without comments, continued ones joined."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        return [found for line in joined.splitlines() if (found := re.sub(r"(^|\s+)#.*$", "", line).strip())]


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks of a page, each with what the comments before it say."""
    instead: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        if note := re.fullmatch(r"<!-- (\w+)(?:: (.+))? -->", line):
            name, value = note[1], note[2] or ""
            assert name in ("file", "cloud", "test", "run"), f"{page.name}:{number}: {line}"
            if name == "test":
                before, _, after = value.partition(" => ")
                instead[before] = after
            else:
                notes.setdefault(name, []).append(value)
        elif line.startswith("```"):
            inside = []
            for _, text in lines:
                if text.startswith("```"):
                    break
                inside.append(text)
            file, before = "".join(notes.get("file", ())), tuple(notes.get("run", ()))
            cloud = "cloud" in notes
            yield Block(page, number, line[3:].strip(), "\n".join(inside), cloud, file, before, dict(instead))
            notes = {}


def inline(page: Path) -> Iterator[str]:
    """`sports-ray ...` within the text, which may leave out what the sentence is not about."""
    yield from (" ".join(found.split()) for found in re.findall(r"`(sports-ray\s[^`]+)`", prose(page)))


def prose(page: Path) -> str:
    """The text of a page without its blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that `sports-ray WORDS` calls, and the words left for it; AssertionError if there is none."""
    context, found, rest = click.Context(cli, info_name="sports-ray"), cli, list(words)
    while isinstance(found, click.Group):
        name = rest.pop(0) if rest else ""
        below = found.get_command(context, name)
        assert below is not None, f"no command {name!r} in sports-ray {shlex.join(words)}"
        context, found = click.Context(below, parent=context, info_name=name), below
    return found, rest


def check(line: str, whole: bool = True) -> None:
    """Holds the words of a command against its options, without carrying anything out.

    Raises click's own errors, ConfigError or AssertionError; not `whole`: only the names of options are looked at."""
    words = shlex.split(re.split(r"\s(?:&&|\||>|&)(?:\s|$)", line)[0])
    assert words.pop(0) == "sports-ray"
    if words and words[0].startswith("-"):
        return
    command, rest = command_of(words)
    if command.name == "submit" and rest and rest[0] in JOBS:
        command, _ = command_of(rest)
        if whole:
            parse(rest)
            return
    if whole and command.name != "submit":
        with click.Context(cli, info_name="sports-ray") as parent:
            command.make_context(command.name, rest, parent=parent)
        return
    known = {
        name for one in command.params if isinstance(one, click.Option) for name in (*one.opts, *one.secondary_opts)
    }
    known |= {"--help", "-h", "--version"}
    unknown = {word.partition("=")[0] for word in rest if word.startswith("--") and len(word) > 2} - known
    assert not unknown, f"sports-ray {command.name} has no {', '.join(sorted(unknown))}: {line}"


class Walk:
    """Runs blocks as a reader does, one after the other in one folder."""

    def __init__(self, folder: Path, long: bool) -> None:
        self.folder, self.long = folder, long
        self.ran: list[str] = []

    def block(self, block: Block) -> None:
        if block.file:
            (self.folder / block.file).write_text(block.text + "\n", encoding="utf-8")
        for line in (*block.before, *block.to_run):
            for before, after in block.instead.items():
                line = line.replace(before, after)
            self.line(line, f"{block.page.name}:{block.line}")

    def line(self, line: str, where: str) -> None:
        words = shlex.split(line)
        if words[0] != "sports-ray":
            done = subprocess.run(["bash", "-euc", line], cwd=self.folder, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{where}: {line}\n{done.stdout}{done.stderr}"
        elif self.long or words[1] not in LONG or "--dry-run" in words:
            words = small(words[1:])
            shown = sports_ray(self.folder, *words, timeout=600 if self.long else 60)
            expected = {"train": (0, 75), "doctor": (0, 3)}[words[0]] if may_differ(words) else (0,)
            assert shown.code in expected, f"{where}: {line}\n{shlex.join(words)}\n{shown.out}{shown.err}"
            assert "Traceback" not in shown.err, shown.err
        else:
            return
        self.ran.append(line)


def may_differ(words: list[str]) -> bool:
    """Whether the exit code depends on the machine: on its speed, or on what is wrong with it."""
    return words[0] == "doctor" or "--time-budget" in words


def small(words: list[str]) -> list[str]:
    """The command with a small model in place of its own, few epochs, and what ADDED says."""
    name, rest = words[0], list(words[1:])
    for index, word in enumerate(rest):
        if index and rest[index - 1] == "--epochs":
            rest[index] = str(max(2, int(word) // 6))
        if index and rest[index - 1] in ("--model", "--models"):
            rest[index] = ",".join(MODELS.get(one, one) for one in word.split(","))
        if index and rest[index - 1] == "--minutes":
            rest[index] = "0.3"
        if index and rest[index - 1] == "--samples":
            rest[index] = "1"
    added = list(ADDED.get(name, ()))
    recipes = [rest[index + 1] for index, word in enumerate(rest) if word == "--recipe"]
    if name in ("train", "folds"):
        added += ["--model", MODELS[recipes[0]]] if recipes and recipes[0] in MODELS else []
        added += [] if "--epochs" in rest else ["--epochs", "2"]
    return [name, *rest, *added]
