"""The page: one HTML file with its script, style and list of masks inside, which loads its small pictures alone.

What is said and how it looks stands in templates/. Names are put into it as JSON, and from there as text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cpn_fast.files.labelmap import VOID
from cpn_fast.files.review_csv import Decided
from cpn_fast.review.items import ReviewItem, ReviewSet

TEMPLATES = Path(__file__).with_name("templates")
SCRIPTS = ("store.js", "grid.js", "page.js")


@dataclass(frozen=True)
class Looked:
    """What was seen of the masks.

    Attributes:
        items: those that could be read, in the order of the page.
        entries: of each its line in the manifest, with `values` and `version`.
        unread: how many could not be read.
    """

    items: tuple[ReviewItem, ...]
    entries: Mapping[str, Mapping[str, Any]]
    unread: int

    @classmethod
    def of(cls, items: Sequence[ReviewItem], entries: Mapping[str, Mapping[str, Any]]) -> Looked:
        """Out of all masks and the manifest of their pictures."""
        read = tuple(item for item in items if entries.get(item.id, {}).get("status") == "ok")
        return cls(read, entries, len(items) - len(read))

    def version(self, name: str) -> str:
        """Of the mask when it was looked at; "" where it could not be read."""
        return self.entries.get(name, {}).get("version", "")

    def current(self, decided: Mapping[str, Decided]) -> dict[str, Decided]:
        """The decisions over masks as they are now; those over masks that have changed since do not count."""
        return {name: each for name, each in decided.items() if each.version in ("", self.version(name))}


def page_text(
    masks: ReviewSet, looked: Looked, decided: Mapping[str, Decided], pictures: str, served: bool = False
) -> str:
    """The page.

    Args:
        masks: what it shows.
        looked: what was seen of them.
        decided: what was said before, by name.
        pictures: where the small pictures are, relative to the page.
        served: decisions go to a server instead of the browser's own store.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    style, script = _style(), _script()
    return environment.get_template("page.html").render(
        data=page_data(masks, looked, decided, pictures, served), folder=str(masks.folder.root), unread=looked.unread,
        changed=len(decided) - len(looked.current(decided)), served=served, policy=content_policy(served),
        style=Markup(style), script=Markup(script),
    )  # fmt: skip


def page_data(
    masks: ReviewSet, looked: Looked, decided: Mapping[str, Decided], pictures: str, served: bool
) -> dict[str, Any]:
    """What the script knows, as values that JSON can hold."""
    current = looked.current(decided)
    rows = []
    for item in looked.items:
        entry = looked.entries[item.id]
        has_image = int(item.image is not None)
        rows.append([item.id, item.key, item.confidence, entry["values"], has_image, entry["version"]])
    said = {number: current[row[0]].decision for number, row in enumerate(rows) if row[0] in current}
    root = masks.folder.root.resolve()
    return {
        "folder": root.name,
        "store": _digest(str(root).encode("utf-8", "surrogateescape")),
        "base": _digest(repr(sorted(said.items())).encode("utf-8")),
        "classes": [[value, name, _hex(masks.palette[value])] for value, name in enumerate(masks.classes, start=1)],
        "void": [VOID, "void", _hex(masks.palette[VOID])],
        "items": rows,
        "decisions": said,
        "pictures": pictures,
        "served": served,
    }


@cache
def content_policy(served: bool) -> str:
    """What the page may do: run its own script, use its own style, show pictures of its own place; nothing else."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'sha256-{_base64_sha256(_script())}'",
            f"style-src 'sha256-{_base64_sha256(_style())}'",
            f"img-src {'' if served else 'file: '}'self'",
            f"connect-src {chr(39)}{'self' if served else 'none'}{chr(39)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


@cache
def _script() -> str:
    parts = [(TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return "\n".join(["(() => {", '"use strict";', *parts, "})();"])


@cache
def _style() -> str:
    return (TEMPLATES / "page.css").read_text(encoding="utf-8")


def _base64_sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _hex(colour: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*(int(part) for part in colour))
