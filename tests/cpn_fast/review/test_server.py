"""The server of `cpn review --serve`: who may ask for what, and what is on the disk after an answer."""

from __future__ import annotations

import csv
import http.client
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpn_fast.files.errors import DataError
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.masks import write_mask
from cpn_fast.files.review_csv import Decided, mask_version, match_names, read_review
from cpn_fast.review import command
from cpn_fast.review.items import open_masks
from cpn_fast.review.options import ReviewConfig
from cpn_fast.review.page import Looked
from cpn_fast.review.server import Decisions, ReviewServer
from tests.cpn_fast.review.example import EVIL, write


class Client:
    """Asks a running server; every header can be another."""

    def __init__(self, server: ReviewServer) -> None:
        self.server = server
        self.base = f"/{server.word}/"

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=20)
        sent = {"Host": f"127.0.0.1:{self.server.server_port}"} | {n.replace("_", "-"): v for n, v in headers.items()}
        connection.putrequest(method, path, skip_host=True)
        for name, value in sent.items():
            connection.putheader(name, value)
        if method == "POST":
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def say(self, said: Any, **headers: str) -> tuple[int, bytes]:
        origin = f"http://127.0.0.1:{self.server.server_port}"
        sent = {"Origin": origin, "Content_Type": "application/json"} | headers
        status, _, text = self.ask("POST", f"{self.base}decisions", json.dumps({"decisions": said}).encode(), **sent)
        return status, text


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    return write(tmp_path)


def make_server(masks: Path, port: int = 0) -> ReviewServer:
    """As the command makes it."""
    config = ReviewConfig(masks, serve=True)
    found = open_masks(masks)
    output = masks / "review-files"
    command.run_jobs(command._jobs(config, found, output))
    looked = Looked.of(found.items, Manifest(output / "manifest.jsonl").entries())
    review = masks / "review.csv"
    decided = match_names(review, read_review(review), found.paths) if review.exists() else {}
    names = [item.id for item in found.items]
    decisions = Decisions(review, names, looked.current(decided), looked.version)
    return ReviewServer(port, found, looked, decisions, output, 320)


@pytest.fixture
def client(masks: Path) -> Iterator[Client]:
    with make_server(masks) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield Client(server)
        server.shutdown()
        thread.join()


def rows(masks: Path) -> list[list[str]]:
    """The file as Python's own reader has it."""
    with (masks / "review.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_only_who_has_the_address_gets_the_page(client: Client) -> None:
    status, headers, text = client.ask("GET", client.base)
    assert status == 200 and b"<!doctype html>" in text
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin" and "access-control-allow-origin" not in headers
    for path in ("/", "/review.html", f"/{client.server.word[:-1]}/", f"/{client.server.word}x/", "//", "/%2e%2e/"):
        assert client.ask("GET", path)[0] == 404, path


@pytest.mark.parametrize("host", ["evil.example:PORT", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:PORT", ""])
def test_another_host_is_refused(client: Client, host: str) -> None:
    """A name of a stranger that was made to lead to 127.0.0.1."""
    host = host.replace("PORT", str(client.server.server_port))
    assert client.ask("GET", client.base, Host=host)[0] == 403
    assert client.say({"plain": "accepted"}, Host=host)[0] == 403
    assert not (client.server.decisions.path).exists()


def test_localhost_is_this_machine_too(client: Client) -> None:
    name = f"localhost:{client.server.server_port}"
    assert client.ask("GET", client.base, Host=name)[0] == 200
    assert client.say({"plain": "accepted"}, Host=name, Origin=f"http://{name}")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:1"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
    ],
)
def test_posts_of_other_pages_are_refused(client: Client, masks: Path, headers: dict[str, str]) -> None:
    assert client.say({"plain": "accepted"}, **headers)[0] in (403, 415)
    assert not (masks / "review.csv").exists()


def test_no_file_but_the_pictures_of_the_masks_is_given(client: Client, masks: Path) -> None:
    (masks / "review-files" / "secret.jpg").write_bytes(b"secret")
    key = client.server.looked.items[0].key
    for path in (
        "small/../../labelmap.txt", "small/%2e%2e/%2e%2e/labelmap.txt", "../labelmap.txt", "small/secret.jpg",
        "small//etc/passwd", f"small/{key}.json", f"small/{key}", f"other/{key}.jpg", "manifest.jsonl", "review.csv",
        f"small/{key}.jpg/../secret.jpg", f"small/..%2f{key}.jpg", "small/manifest.jsonl", f"small/{key}.jpg%00.webp",
    ):  # fmt: skip
        assert client.ask("GET", client.base + path)[0] == 404, path
    assert client.ask("GET", f"{client.base}small/{key}.jpg?0123")[0] == 200
    for method in ("PUT", "DELETE", "OPTIONS"):
        assert client.ask(method, client.base)[0] == 501


def test_pictures_are_made_when_they_are_asked_for(client: Client, masks: Path) -> None:
    item = client.server.looked.items[-1]
    assert list((masks / "review-files").glob("*.webp")) == []
    _, headers, data = client.ask("GET", f"{client.base}small/{item.key}.webp")
    picture = Image.open(io.BytesIO(data))
    assert headers["content-type"] == "image/webp" and picture.size == (60, 40)
    assert (masks / "review-files" / f"{item.key}.webp").read_bytes() == data
    large = Image.open(io.BytesIO(client.ask("GET", f"{client.base}large/{item.key}.jpg")[2]))
    assert large.format == "JPEG" and large.size == (60, 40)
    item.mask.mask_path.write_bytes(b"no png")
    status, _, text = client.ask("GET", f"{client.base}large/{item.key}.webp")
    assert status == 404 and b"not an image" in text


def test_decisions_are_on_the_disk_when_the_answer_comes(client: Client, masks: Path) -> None:
    said: dict[str, str | None] = {name: "accepted" for name in EVIL}
    assert client.say(said)[0] == 200
    paths = {name: masks / "SegmentationClass" / f"{name}.png" for name in EVIL}
    expected = [["name", "decision", "version"]]
    assert rows(masks) == expected + [[name, "accepted", mask_version(paths[name])] for name in EVIL]
    assert {name: each.decision for name, each in read_review(masks / "review.csv").items()} == said
    assert client.say({"plain": None, EVIL[0]: "needs-correction"})[0] == 200
    found = {row[0]: row[1] for row in rows(masks)[1:]}
    assert found[EVIL[0]] == "needs-correction" and "plain" not in found and len(found) == len(EVIL) - 1
    assert [path.name for path in masks.iterdir() if path.name.startswith(".tmp")] == []
    page = client.ask("GET", client.base)[2].decode()
    assert '"0": "needs-correction"' in page


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"decisions": 1}', b'{"decisions": {"plain": "good"}}', b'{"decisions": {"plain": ["a"]}}',
     b'{"decisions": {"../plain": "accepted"}}', b'{"decisions": {"plain": "accepted", "other": "accepted"}}', b"\xff"],
)  # fmt: skip
def test_what_is_no_decision_is_refused_as_a_whole(client: Client, masks: Path, body: bytes) -> None:
    origin = f"http://127.0.0.1:{client.server.server_port}"
    status, _, text = client.ask(
        "POST", f"{client.base}decisions", body, Origin=origin, Content_Type="application/json"
    )
    assert status == 400 and text and not (masks / "review.csv").exists()


def test_a_later_server_goes_on_and_forgets_what_was_said_of_another_mask(client: Client, masks: Path) -> None:
    client.say({"plain": "rejected", EVIL[3]: "accepted"})
    write_mask(masks / "SegmentationClass" / "plain.png", np.ones((40, 60), np.uint8))
    with make_server(masks) as later:
        assert later.word != client.server.word
        assert {name: each.decision for name, each in later.decisions.current().items()} == {EVIL[3]: "accepted"}
        later.decisions.update({EVIL[4]: "rejected"})
    assert [row[:2] for row in rows(masks)[1:]] == [[EVIL[3], "accepted"], [EVIL[4], "rejected"]]


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    names = [f"mask {number}" for number in range(200)]
    decisions = Decisions(tmp_path / "review.csv", names, {}, lambda name: f"sha256:{len(name)}")

    def work(part: int) -> None:
        for name in names[part::8]:
            decisions.update({name: "accepted"})
            assert name in read_review(tmp_path / "review.csv")

    threads = [threading.Thread(target=work, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(read_review(tmp_path / "review.csv")) == names
    assert decisions.current()["mask 7"] == Decided("mask 7", "accepted", "sha256:6")


def test_a_full_disk_is_said_and_tried_again(client: Client, masks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("cpn_fast.review.server.atomic_write_text", full)
        status, text = client.say({"plain": "accepted"})
        assert status == 507 and b"No space left" in text
    assert client.say({"plain": "accepted"})[0] == 200 and rows(masks)[1][:2] == ["plain", "accepted"]


def test_a_port_that_is_taken(client: Client, masks: Path) -> None:
    with pytest.raises(DataError, match=rf"--port {client.server.server_port}: cannot listen there \(Address already"):
        make_server(masks, client.server.server_port)
