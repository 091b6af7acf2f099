"""HTML from Python values, escaped unless this package made it: names of classes and files come from strangers."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VOID = {"img", "meta", "br", "input", "rect", "path", "line", "circle"}
"""Elements that may be without content."""
_ASSETS = Path(__file__).parent / "assets"
# Control characters corrupt the text around them; marks of direction let one name pass for another.
_CODES = (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_HIDDEN = {code: "\ufffd" for code in _CODES}


class Html(str):
    """Markup that is inserted as it is. Only this package makes it, never from text of others."""

    __slots__ = ()


Child = Any
"""Html, text, a number, None (nothing), or an iterable of these."""


def el(tag: str, /, *children: Child, **attributes: object) -> Html:
    """One element; children and attribute values are escaped unless they are Html.

    A trailing "_" of an attribute's name falls off, other "_" become "-". None and False leave an attribute out."""
    words = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in VOID and not children:
        return Html(f"<{tag}{words}/>")
    return Html(f"<{tag}{words}>{join(*children)}</{tag}>")


def join(*children: Child) -> Html:
    """Children one after another, escaped unless they are Html."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (str, int, float)):
            parts.append(html.escape(visible(str(child))))
        elif isinstance(child, Iterable):
            parts.append(join(*child))
        elif child is not None:
            raise TypeError(f"no content for a page: {type(child).__name__}")
    return Html("".join(parts))


def visible(text: str) -> str:
    """Text that hides nothing and can be written as UTF-8: control characters and lone surrogates become U+FFFD."""
    return text.translate(_HIDDEN).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def data_block(name: str, value: object) -> Html:
    """Data for the page's script: JSON in an element that no browser executes, and that no text in it can end."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return el("script", Html(text), type="application/json", id=name)


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of a file as an address that holds them; `kind` such as image/jpeg."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def document(title: str, *body: Child) -> Html:
    """The whole page. Its policy lets nothing in from outside, and runs this very script and no other."""
    style, script = ((_ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = (
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Html(style)),
    )
    page = (el("main", *body), el("script", Html(script)))
    return Html(f"<!doctype html>\n{el('html', el('head', *head), el('body', *page), lang='en')}\n")


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{html.escape(visible(str(value)))}"'
