"""Reads a page as a browser would: its elements, what they ask for, and its text."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Page(HTMLParser):
    """Elements of a page, in order."""

    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    @classmethod
    def of(cls, text: str) -> Page:
        page = cls()
        page.feed(text)
        page.close()
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open[-1:]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str, class_: str = "") -> list[dict[str, str]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and (not class_ or class_ in attributes.get("class", "").split())
        ]


def assert_self_contained(text: str) -> None:
    """No element runs, loads or leads to anything outside the page."""
    page = Page.of(text)
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "base", "form", "link", "foreignobject"), tag
        assert not [name for name in attributes if name.startswith("on")], f"{tag} has a handler"
        for name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), f"{tag} {name}={attributes.get(name)}"
    kinds = [script.get("type", "") for script in page.all("script")]
    assert kinds.count("") == 1 and set(kinds) <= {"", "application/json"}
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")


def browser() -> str:
    """Path of a Chromium; "" where there is none."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), "")


def measured(page: Path, width: int, probe: str) -> str:
    """What a script finds in the page when it has been shown `width` px wide: in a copy of it without its policy, which
    would not let the script run."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    script = f"<script>addEventListener('load', () => setTimeout(() => parent.postMessage(String({probe}), '*'), 50))</script>"
    probed = page.with_name(f"probe-{width}.html")
    probed.write_text(text.replace("</body>", f"{script}</body>"), encoding="utf-8")
    shown = _run(_frame(probed, width, 900), ["--dump-dom", "--virtual-time-budget=5000"])
    answer = re.search(r"<title>(.*?)</title>", shown)
    assert answer and answer[1], f"no answer from the browser: {shown[:500]}"
    return answer[1]


def screenshot(page: Path, width: int, height: int, to: Path, dark: bool = False) -> None:
    """A PNG of the page's first `height` px, `width` px wide."""
    options = [f"--screenshot={to}", f"--window-size={max(width, 500)},{height}", "--virtual-time-budget=3000"]
    scheme = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    _run(_frame(page, width, height), [*options, *scheme])


def _frame(page: Path, width: int, height: int) -> Path:
    """A window cannot be as narrow as a telephone, a frame in it can."""
    frame = page.with_name(f"frame-{width}-{height}.html")
    frame.write_text(
        "<!doctype html><html><head><title></title><meta name='color-scheme' content='light dark'></head>"
        "<body style='margin:0'><script>addEventListener('message', e => document.title = e.data)</script>"
        f"<iframe src='{page.name}' style='border:0;width:{width}px;height:{height}px'></iframe></body></html>"
    )
    return frame


def _run(page: Path, options: list[str]) -> str:
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command.append(f"--user-data-dir={page.parent / 'browser'}")
    done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=90, check=True)
    return done.stdout
