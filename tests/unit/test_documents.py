"""What README.md and docs/ name is there: commands and their options, files that they link to, and how blocks are marked."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from sports_ray.errors import SportsRayError
from tests.support.documents import (
    CLUSTER,
    DATA,
    EXCEPTED,
    PAGES,
    README,
    ROOT,
    RUN,
    Block,
    blocks,
    check,
    inline,
    prose,
)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def lines(block: Block) -> list[str]:
    return [line for line in block.commands if line.startswith("sports-ray ")]


@pages
def test_every_command_of_a_page_is_one_with_options_that_exist(page: Path) -> None:
    for block in blocks(page):
        for line in lines(block):
            try:
                check(line.removesuffix(" ..."), whole=not line.endswith("..."))
            except (AssertionError, click.ClickException, SportsRayError) as error:
                raise AssertionError(f"{page.name}:{block.line}: {line}: {error}") from None
    for line in inline(page):
        check(line.removesuffix("..."), whole=False)


@pages
def test_every_block_with_a_command_is_run_or_marked_as_needing_a_cloud(page: Path) -> None:
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        commands = lines(block)
        if page == README:
            commands = [line for line in commands if line != EXCEPTED]
        elif block.language not in (*RUN, *DATA) and not block.cloud:
            assert not commands, f"{where}: a block with commands is ```sh, or marked <!-- cloud -->"
        assert not block.file or block.language in DATA, f"{where}: a file is one of {DATA}"
        far = [line for line in commands if shlex.split(line)[1] in CLUSTER]
        assert block.cloud or not far, f"{where}: needs a cluster, and is not marked <!-- cloud -->: {far}"
        assert not block.cloud or far or "ray " in block.text, f"{where}: nothing in it needs a cloud"


@pages
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    text = prose(page)
    for name in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in name:
            assert (page.parent / name).exists(), f"{page.name} links to {name}"
    for name in re.findall(r"`((?:docs|jobs|tests|sports_ray)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("sports-ray trein --data photos", "no command 'trein'"),
        ("sports-ray train --dataset photos", "dataset"),
        ("sports-ray train --epochs many", "many"),
        ("sports-ray data skan photos", "no command 'skan'"),
        ("sports-ray predict --run mine", "images"),
        ("sports-ray submit train --dataset photos --store /mnt/runs", "dataset"),
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str, part: str) -> None:
    with pytest.raises((AssertionError, click.ClickException), match=part):
        check(line)


def test_comments_of_a_page_say_what_its_blocks_are(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        "<!-- test: /far => near -->\n<!-- file: a.csv -->\n```csv\nclass\n```\n<!-- run: mkdir x -->\n```sh\n"
        "sports-ray status \\\n    --store /far  # all\n# alone\n```\n<!-- cloud -->\n```\nsports-ray jobs\n```\n```sh\n```\n"
    )
    first, second, third, last = blocks(tmp_path / "page.md")
    assert (first.file, first.text, first.before, first.instead) == ("a.csv", "class", (), {"/far": "near"})
    assert (second.before, second.commands, second.file) == (("mkdir x",), ["sports-ray status --store /far"], "")
    assert third.cloud and not last.cloud and last.instead == {"/far": "near"}
