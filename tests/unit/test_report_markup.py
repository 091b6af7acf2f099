"""Text from strangers stays text, and a page asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from sports_ray.report.markup import Html, data_block, document, el, join, visible

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><b>",
    "' onload='alert(1)",
    "a&lt;b",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_children_and_attributes_are_escaped_and_read_back_as_they_were(text: str) -> None:
    import html

    shown = el("p", text, el("b", text, title=text), class_="x")
    assert len(re.findall("<[a-z]", shown)) == 2, "an element more than was made"
    assert shown.count(">") == 4 and "<script" not in shown and "<img" not in shown
    inner = re.fullmatch(r'<p class="x">(.*)<b title="(.*)">(.*)</b></p>', shown)
    assert inner and [html.unescape(part) for part in inner.groups()] == [text] * 3


def test_markup_is_kept_only_where_this_package_made_it() -> None:
    assert join(el("i", "x"), ["<", None, 3]) == "<i>x</i>&lt;3"
    assert isinstance(join("<"), Html) and join("<") == "&lt;" and join(join("<")) == "&lt;"
    assert el("img", src="a", alt=None, hidden=True, lazy=False) == '<img src="a" hidden/>'
    with pytest.raises(TypeError):
        join(object())


@pytest.mark.parametrize("text", [*HOSTILE, "\u2028", "snow ☃", "\udcff"])
def test_no_text_ends_the_block_of_data_it_is_in(text: str) -> None:
    block = data_block("data", {"names": [text]})
    inner = re.fullmatch(r'<script type="application/json" id="data">(.*)</script>', block)
    assert inner and "<" not in inner[1] and json.loads(inner[1]) == {"names": [text]}


def test_invisible_characters_are_shown_as_such_and_all_text_can_be_written() -> None:
    assert visible("a\0b\x1b[31m\u202egnp.exe\u2066") == "a\ufffdb\ufffd[31m\ufffdgnp.exe\ufffd"
    assert visible("tab\tline\nümlaut ☃ 漢") == "tab\tline\nümlaut ☃ 漢"
    assert visible("caf\udce9.jpg") == "caf\ufffd.jpg"
    document("\udce9", el("p", "\udce9")).encode("utf-8")


def test_policy_allows_the_pages_own_script_and_nothing_from_outside() -> None:
    page = document("title", el("p", "text"))
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy and "default-src &#x27;none&#x27;" in policy[1] and f"&#x27;sha256-{digest}&#x27;" in policy[1]
    assert "unsafe-inline" not in policy[1].split("script-src")[1] and "unsafe-eval" not in policy[1]
    assert "http://www.w3.org/2000/svg" in page  # a name, not an address that is asked
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\((?!#)", page)
