"""The page served to this machine's browser alone, and its decisions written down as they come.

Another page in the same browser must neither read nor decide anything: the address holds a random word, the Host has to
be this machine's (against DNS rebinding), and a decision needs the Origin of the page itself. No part of an address
becomes a path: pictures are found by the keys of the masks on the page.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.names import quoted
from cpn_fast.files.review_csv import DECISIONS, Decided, Decision, review_text
from cpn_fast.review.items import ReviewItem, ReviewSet
from cpn_fast.review.page import Looked, content_policy, page_text
from cpn_fast.review.pictures import MASK, PHOTO, kept, picture_of

HOST = "127.0.0.1"
LARGE = 1600
"""Long side in pixels of the picture of one mask alone."""

_MOST_BYTES = 8_000_000
_TYPES = {MASK: "image/webp", PHOTO: "image/jpeg"}


class Decisions:
    """What was said of each mask, on the disk when `update` returns.

    Args:
        path: `review.csv`.
        names: of all masks, in the order of the file.
        decided: what was said before.
        version: of a mask by its name.
    """

    def __init__(
        self, path: Path, names: list[str], decided: Mapping[str, Decided], version: Callable[[str], str]
    ) -> None:
        self.path = path
        self._names, self._said, self._version = names, dict(decided), version
        self._known = set(names)
        self._state, self._writing = threading.Lock(), threading.Lock()
        self._changed = self._written = 0

    def current(self) -> dict[str, Decided]:
        """All of them by name."""
        with self._state:
            return dict(self._said)

    def update(self, changes: Mapping[str, Decision | None]) -> None:
        """Take and write changes; those that come while the file is written share the next write.

        Raises:
            DataError: for a name that is no mask's; nothing is taken then.
            OSError: where the file cannot be written.
        """
        if unknown := [name for name in changes if name not in self._known]:
            raise DataError(f"{quoted(unknown[0])} has no mask on this page; load it again")
        with self._state:
            for name, decision in changes.items():
                if decision is None:
                    self._said.pop(name, None)
                else:
                    self._said[name] = Decided(name, decision, self._version(name))
            self._changed += 1
            mine = self._changed
        with self._writing:
            if self._written >= mine:
                return
            with self._state:
                lines = [each for name in self._names if (each := self._said.get(name)) is not None]
                now = self._changed
            atomic_write_text(self.path, review_text(Decided(each.name, each.decision, each.version) for each in lines))
            self._written = now


class ReviewServer(ThreadingHTTPServer):
    """Serves one folder of masks.

    Args:
        port: 0 = one that is free.
        masks: the folder.
        looked: what was seen of its masks.
        decisions: where they go.
        pictures: folder of the small pictures, made as they are asked for.
        side: their long side in pixels.

    Raises:
        DataError: where the port is taken or not allowed.
    """

    daemon_threads = True

    def __init__(
        self, port: int, masks: ReviewSet, looked: Looked, decisions: Decisions, pictures: Path, side: int
    ) -> None:
        self.masks, self.looked, self.decisions = masks, looked, decisions
        self.pictures, self.side = pictures, side
        self.word = secrets.token_urlsafe(24)
        self.by_key = {item.key: item for item in looked.items}
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DataError(f"--port {port}: cannot listen there ({reason}); give another one, or 0 for any") from None
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    @property
    def address(self) -> str:
        """What to open in the browser."""
        return f"http://{HOST}:{self.server_port}/{self.word}/"

    def page(self) -> str:
        """The page with the decisions so far."""
        return page_text(self.masks, self.looked, self.decisions.current(), "small", served=True)

    def picture(self, item: ReviewItem, ending: str, large: bool) -> bytes:
        """One picture. Raises DataError, OSError."""

        def make() -> bytes:
            return picture_of(item, ending, self.masks.palette, LARGE if large else self.side)

        return make() if large else kept(self.pictures / f"{item.key}{ending}", make)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no fault."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ReviewServer

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
        below = self._below()
        if below == "":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page().encode("utf-8"))
            return
        folder, _, name = below.partition("/")
        key, dot, ending = name.partition(".")
        item = self.server.by_key.get(key)
        if folder not in ("small", "large") or item is None or f"{dot}{ending}" not in _TYPES:
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")
            return
        try:
            data = self.server.picture(item, f"{dot}{ending}", folder == "large")
        except (DataError, OSError) as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
            return
        self._answer(HTTPStatus.OK, _TYPES[f"{dot}{ending}"], data, cache="private, max-age=86400")

    def do_POST(self) -> None:
        self.close_connection = True  # a body that is not read must not be taken for the next request
        if not self._is_allowed():
            return
        if self.headers.get("Origin") not in {f"http://{host}" for host in self.server.hosts}:
            self._refuse(HTTPStatus.FORBIDDEN, "decisions are taken from the page itself only")
        elif self._below() != "decisions":
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")
        elif self.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected JSON")
        else:
            self._take()

    def _take(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > _MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {_MOST_BYTES} bytes")
            return
        try:
            self.server.decisions.update(_changes(self.rfile.read(int(length))))
        except DataError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:
            reason = f"cannot write {self.server.decisions.path} ({error.strerror or error})"
            self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, f"{reason}; free disk space or correct the permissions")
        else:
            self._answer(HTTPStatus.OK, "application/json", b"{}")

    def _is_allowed(self) -> bool:
        """Whether the request is meant for this server and knows its word; refuses it otherwise."""
        if self.headers.get("Host") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, f"expected the host {HOST}:{self.server.server_port}")
            return False
        if self.path == "/favicon.ico":  # browsers ask for it by themselves
            self._answer(HTTPStatus.NO_CONTENT, "image/x-icon", b"")
            return False
        word = urlsplit(self.path).path.lstrip("/").partition("/")[0]
        if not secrets.compare_digest(word.encode("utf-8"), self.server.word.encode("utf-8")):
            self._refuse(HTTPStatus.NOT_FOUND, "open the address that the command has printed")
            return False
        return True

    def _below(self) -> str:
        """The path behind the word."""
        return urlsplit(self.path).path.lstrip("/").partition("/")[2]

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True
        self._answer(status, "text/plain; charset=utf-8", reason.encode("utf-8"))

    def _answer(self, status: HTTPStatus, kind: str, data: bytes, cache: str = "no-store") -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Cache-Control": cache,
            "Content-Security-Policy": f"{content_policy(True)}; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            **({"Connection": "close"} if self.close_connection else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def version_string(self) -> str:
        return "cpn"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for the command's own lines."""


def _changes(body: bytes) -> dict[str, Decision | None]:
    """What a page sends. Raises DataError for anything else."""
    try:
        found = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise DataError("expected JSON") from None
    said = found.get("decisions") if isinstance(found, dict) else None
    if not isinstance(said, dict):
        raise DataError("expected an object with `decisions`")
    for name, decision in said.items():
        if decision is not None and decision not in DECISIONS:
            raise DataError(f"{quoted(name)}: unknown decision {quoted(decision)}; expected {', '.join(DECISIONS)}")
    return said
