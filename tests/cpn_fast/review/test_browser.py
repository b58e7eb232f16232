"""The page of `cpn review` in a real browser: Chromium, driven by Playwright; skipped where either is missing."""

from __future__ import annotations

import csv
import io
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cpn_fast.convert.folder import MaskItem
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.files.palette import voc_palette
from cpn_fast.files.review_csv import read_review
from cpn_fast.review.command import run_review
from cpn_fast.review.items import ReviewItem, ReviewSet
from cpn_fast.review.options import ReviewConfig
from cpn_fast.review.page import Looked, page_text
from tests.cpn_fast.review.example import EVIL, write
from tests.cpn_fast.review.test_server import make_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MANY = 10_000


def chromium() -> str | None:
    """The browser of this machine; CPN_CHROMIUM names another."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CPN_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra [dev]")
    path = chromium()
    if path is None:
        pytest.skip("needs Chromium or Chrome on the PATH, or its path in CPN_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        # The page under test is our own; the sandbox does not start where the tests run as root.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


class Seen:
    """A page that is open, what it asked for, and what it complained about."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True, **options)
        self.requests: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.complaints: list[str] = []

    def open(self, address: str) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        return page


@pytest.fixture
def seen(browser: Browser) -> Iterator[Seen]:
    opened = Seen(browser)
    yield opened
    opened.context.close()


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    masks = write(tmp_path)
    run_review(ReviewConfig(masks))
    return masks


@pytest.fixture
def page(seen: Seen, masks: Path) -> Page:
    return seen.open((masks / "review.html").as_uri())


def wait_until(page: Page, expression: str) -> None:
    """Until an expression is true; Playwright's own way evaluates a text in the page, which the policy forbids."""
    for _ in range(400):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def current(page: Page) -> str:
    return page.locator(".card.current .name").inner_text()


def names(page: Page) -> list[str]:
    """Of the cards, in reading order; white space as it is shown."""
    return [text for text in page.locator(".card .name").all_inner_texts()]


def shown(name: str) -> str:
    """A name as a line of text has it."""
    return name.replace("\n", " ")


def counted(page: Page) -> list[int]:
    """All, undecided, accepted, needs correction, rejected."""
    return [int(text.replace(",", "")) for text in page.locator("#chips b").all_inner_texts()]


def downloaded(page: Page) -> list[list[str]]:
    with page.expect_download() as waiting:
        page.click("#download")
    assert waiting.value.suggested_filename == "review.csv"
    text = Path(waiting.value.path()).read_text(encoding="utf-8")
    return list(csv.reader(io.StringIO(text, newline="")))


def test_names_do_no_harm_and_nothing_leaves_the_page(page: Page, seen: Seen, masks: Path) -> None:
    assert names(page) == [shown(name) for name in EVIL]
    wait_until(page, "[...document.images].every(image => image.complete)")
    assert page.evaluate("[...document.images].filter(i => i.src).every(i => i.naturalWidth > 0)")
    assert page.locator("#legend li").all_inner_texts() == [
        "cat",
        "<img src=x onerror=window.harmed=1>",
        "dog & co",
        "void",
    ]
    for name in EVIL:
        page.keyboard.press("Enter")
        assert page.locator("#large-name").inner_text() == shown(name)
        page.keyboard.press("Escape")
        page.keyboard.press("ArrowRight")
    assert page.evaluate("window.harmed") is None
    assert seen.complaints == []
    assert all(address.startswith(masks.as_uri()) for address in seen.requests)
    kinds = {address.partition("?")[0].rpartition(".")[2] for address in seen.requests}
    assert kinds == {"html", "jpg", "webp"}


def test_the_policy_stops_what_a_page_could_do_to_others(page: Page, seen: Seen) -> None:
    """Even a script that came in somehow could call nobody, and none can come in."""
    asked: list[str] = []

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        do_POST = do_GET

    with HTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        harmed = page.evaluate(
            """async address => {
                await fetch(address + "fetch", { mode: "no-cors" }).catch(() => null);
                try { navigator.sendBeacon(address + "beacon", "x"); } catch {}
                const script = document.createElement("script");
                script.textContent = "window.harmed = 2";
                document.body.append(script);
                for (const [tag, key] of [["img", "src"], ["script", "src"], ["audio", "src"]]) {
                    const element = document.createElement(tag);
                    element[key] = address + tag;
                    document.body.append(element);
                }
                const style = document.createElement("link");
                style.rel = "stylesheet";
                style.href = address + "style";
                document.head.append(style);
                const holder = document.createElement("div");
                holder.innerHTML = '<b onclick="window.harmed = 3">x</b>';
                document.body.append(holder);
                holder.firstChild.click();
                await new Promise(done => setTimeout(done, 500));
                return window.harmed ?? null;
            }""",
            f"http://127.0.0.1:{stranger.server_port}/",
        )
        stranger.shutdown()
    assert harmed is None and asked == []
    assert sum("Content Security Policy" in text for text in seen.complaints) >= 6


def test_accept_reject_correct_and_undo_by_keyboard(page: Page, masks: Path) -> None:
    for key in "arc":
        page.keyboard.press(key)
    assert current(page) == shown(EVIL[3]) and counted(page) == [8, 5, 1, 1, 1]
    page.keyboard.press("u")
    assert current(page) == shown(EVIL[2]) and counted(page) == [8, 6, 1, 0, 1]
    page.keyboard.press("a")
    page.keyboard.press("Home")
    page.keyboard.press("r")  # another decision in the place of the first
    assert counted(page) == [8, 5, 1, 0, 2]
    page.keyboard.press("Control+z")
    assert counted(page) == [8, 5, 2, 0, 1]
    page.keyboard.press("x")
    assert counted(page) == [8, 6, 1, 0, 1]
    page.keyboard.press("End")
    page.keyboard.press("c")
    rows = downloaded(page)
    assert rows[0] == ["name", "decision", "version"]
    assert [row[:2] for row in rows[1:]] == [
        [EVIL[1], "rejected"], [EVIL[2], "accepted"], [EVIL[7], "needs-correction"]
    ]  # fmt: skip


def test_arrows_move_by_cards_and_rows_and_the_current_card_is_told(page: Page) -> None:
    columns = page.evaluate(
        "Math.round(document.querySelector('#cards').clientWidth / (document.querySelector('.card').clientWidth + 14))"
    )
    assert columns > 2
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert current(page) == shown(EVIL[1 + columns])
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert current(page) == shown(EVIL[0])
    page.keyboard.press("a")
    assert page.locator("#spoken").inner_text() == f"{EVIL[0]}: accepted"
    first = page.locator(".card").first
    assert first.get_attribute("aria-label") == f"{EVIL[0]}, confidence 0.11, cat, void, accepted"
    assert (first.get_attribute("aria-setsize"), first.get_attribute("aria-posinset")) == ("8", "1")
    assert page.evaluate("document.activeElement.classList.contains('current')")


def test_buttons_do_what_the_keys_do(page: Page) -> None:
    page.locator(".card").nth(4).get_by_role("button").nth(2).click()
    assert current(page) == shown(EVIL[4]) and counted(page) == [8, 7, 0, 0, 1]
    page.locator(".card").nth(4).get_by_role("button").nth(2).press("Enter")
    page.click("#undo")
    assert counted(page) == [8, 8, 0, 0, 0] and page.locator("#undo").is_disabled()
    page.locator(".card").nth(5).dblclick(position={"x": 30, "y": 60})
    page.locator("#large").get_by_role("button", name="Accept").click()
    assert page.locator("#large-name").inner_text() == shown(EVIL[6]) and counted(page)[2] == 1


def test_filters_of_class_confidence_name_and_decision(page: Page) -> None:
    def after(action: Callable[[], object]) -> list[str]:
        action()
        return names(page)

    every = [shown(name) for name in EVIL]
    assert page.locator("#class option").all_inner_texts() == [
        "any", "cat (2)", "<img src=x onerror=window.harmed=1> (2)", "dog & co (2)", "no object"
    ]  # fmt: skip
    assert after(lambda: page.select_option("#class", "1")) == [every[0], every[6]]
    assert after(lambda: page.select_option("#class", "none")) == []  # void lies in all of them
    assert page.locator("#empty").is_visible()
    assert after(lambda: page.click("#clear")) == every
    assert after(lambda: page.fill("#from", "0.5")) == every[4:]
    assert after(lambda: page.fill("#to", "0.7")) == every[4:6]
    page.click("#help")
    page.keyboard.press("Escape")
    page.fill("#from", "0")
    page.fill("#to", "1")
    page.focus(".card.current")
    page.keyboard.press("/")
    page.keyboard.type("SCRIPT>")
    assert names(page) == [every[0], every[4]] and counted(page) == [8, 8, 0, 0, 0]
    page.keyboard.press("Escape")
    page.fill("#search", "")
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    page.check("input[name=said][value=undecided]", force=True)
    assert len(names(page)) == 7
    before = names(page)
    page.focus(".card.current")
    page.keyboard.press("Home")
    page.keyboard.press("r")  # it leaves the list, and the next one takes its place
    assert names(page) == before[1:] and current(page) == before[1]
    page.keyboard.press("u")
    assert names(page) == before and current(page) == before[0]


def test_order_and_opacity(page: Page) -> None:
    def strength() -> float:
        return float(page.evaluate("getComputedStyle(document.querySelector('.card .mask')).opacity"))

    page.select_option("#order", "most")
    assert names(page) == [shown(name) for name in reversed(EVIL)]
    page.select_option("#order", "name")
    assert sorted(names(page)) == sorted(shown(name) for name in EVIL) and names(page)[-1] != shown(EVIL[0])
    assert strength() == pytest.approx(0.6)
    page.locator("#opacity").fill("25")
    assert strength() == pytest.approx(0.25) and page.locator("#opaque").inner_text() == "25%"
    page.focus(".card.current")
    page.keyboard.press("]")
    assert strength() == pytest.approx(0.35)
    page.keyboard.press("m")
    assert strength() == 0
    page.keyboard.press("m")
    assert strength() == pytest.approx(0.35)
    page.keyboard.press("[")
    assert strength() == pytest.approx(0.25)


def test_a_static_page_remembers_until_the_mask_changes(page: Page, seen: Seen, masks: Path) -> None:
    page.keyboard.press("a")
    page.keyboard.press("r")
    page.close()
    again = seen.open((masks / "review.html").as_uri())
    assert counted(again) == [8, 6, 1, 0, 1] and current(again) == shown(EVIL[2])
    again.close()
    shutil.copy(masks / "SegmentationClass" / "plain.png", masks / "SegmentationClass" / f"{EVIL[0]}.png")
    run_review(ReviewConfig(masks))
    assert counted(seen.open((masks / "review.html").as_uri())) == [8, 7, 0, 0, 1]


def test_what_review_csv_says_counts_more_than_what_was_kept_before(page: Page, seen: Seen, masks: Path) -> None:
    page.keyboard.press("a")
    page.keyboard.press("a")
    (masks / "review.csv").write_text(f'name,decision\n"{EVIL[0]}",rejected\n', encoding="utf-8")
    run_review(ReviewConfig(masks))
    assert counted(seen.open((masks / "review.html").as_uri())) == [8, 6, 1, 0, 1]


def test_every_control_has_a_name_and_focus_is_seen(page: Page) -> None:
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, select')].filter(element =>
            !(element.labels?.length || element.textContent.trim() || element.getAttribute('aria-label'))).length"""
    )
    assert unnamed == 0
    page.keyboard.press("Tab")
    page.focus("#download")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "help"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser: Browser, masks: Path, scheme: Any) -> None:
    """WCAG's contrast of 4.5 for text, on the colours that the browser computes."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    opened = Seen(browser, color_scheme=scheme)
    page = opened.open((masks / "review.html").as_uri())
    page.keyboard.press("r")
    for selector in ("h1", "#counted", "#download", ".card .name", ".card .swatches .soft", ".badge"):
        colour, paper = page.evaluate(
            """selector => {
                let element = document.querySelector(selector);
                const colour = getComputedStyle(element).color;
                const paper = () => getComputedStyle(element).backgroundColor;
                while (paper() === "rgba(0, 0, 0, 0)") element = element.parentElement;
                return [colour, paper()];
            }""",
            selector,
        )
        one, other = sorted((luminance(colour), luminance(paper)))
        assert (other + 0.05) / (one + 0.05) >= 4.5, (selector, colour, paper)
        assert (luminance(paper) > 0.5) == (scheme == "light"), selector
    opened.context.close()


def test_a_served_page_writes_what_was_decided(seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = write(tmp_path)
    with make_server(masks) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        page = seen.open(server.address)
        for key in "aarcu":
            page.keyboard.press(key)
        wait_until(page, "document.querySelector('#state').textContent === 'saved in review.csv'")
        with (masks / "review.csv").open(encoding="utf-8", newline="") as file:
            found = [row[:2] for row in csv.reader(file)][1:]
        assert found == [[EVIL[0], "accepted"], [EVIL[1], "accepted"], [EVIL[2], "rejected"]]
        page.keyboard.press("Enter")
        wait_until(page, "[...document.querySelectorAll('#large img')].every(i => i.complete && i.naturalWidth)")
        page.reload()
        assert counted(page) == [8, 5, 2, 0, 1] and current(page) == shown(EVIL[3])
        assert page.evaluate("window.harmed") is None and seen.complaints == []
        assert all(address.startswith(server.address) for address in seen.requests)

        def full(path: Path, text: str) -> None:
            raise OSError(28, "No space left on device", str(path))

        with monkeypatch.context() as patched:
            patched.setattr("cpn_fast.review.server.atomic_write_text", full)
            page.keyboard.press("a")
            wait_until(page, "document.querySelector('#state.bad')?.textContent.startsWith('not saved (cannot write')")
        wait_until(page, "document.querySelector('#state').textContent === 'saved in review.csv'")
        assert read_review(masks / "review.csv")[EVIL[3]].decision == "accepted"
        server.shutdown()
        thread.join()


def many(root: Path, count: int) -> Path:
    """A page of many masks, as the command writes it of a folder that has been looked at."""
    source = write(root, ("one",))
    run_review(ReviewConfig(source))
    pictures = source / "review-files"
    (small,) = pictures.glob("*.jpg")
    mask_path = source / "SegmentationClass" / "one.png"
    items = tuple(
        ReviewItem(MaskItem(f"n{n:05}", mask_path, ".jpg", f"n{n:05}", 3), n / count, small) for n in range(count)
    )
    for item in items:
        os.link(small, pictures / f"{item.key}.jpg")
        os.link(small.with_suffix(".webp"), pictures / f"{item.key}.webp")
    masks = ReviewSet(MaskFolder.at(source), items, ("cat", "dog", "cow"), voc_palette())
    entries = {item.id: {"status": "ok", "values": [1 + n % 3], "version": "sha256:0"} for n, item in enumerate(items)}
    path = source / "many.html"
    path.write_text(page_text(masks, Looked.of(items, entries), {}, pictures.name), encoding="utf-8")
    return path


def test_ten_thousand_masks_open_at_once_and_only_those_in_view_are_loaded(seen: Seen, tmp_path: Path) -> None:
    path = many(tmp_path, MANY)
    begin = time.monotonic()
    page = seen.open(path.as_uri())
    page.locator(".card.current").wait_for()
    assert time.monotonic() - begin < 10, "seconds to open"
    page.wait_for_timeout(300)
    in_view = page.locator(".card").count()
    assert counted(page)[0] == MANY and in_view < 60
    assert len({a for a in seen.requests if ".jpg" in a}) <= in_view
    page.keyboard.press("End")
    assert current(page) == f"n{MANY - 1:05}" and page.locator(".card").count() < 60
    page.locator("#view").evaluate("view => { view.scrollTop = view.scrollHeight / 2; }")
    page.wait_for_timeout(300)
    assert any(name.startswith(("n049", "n050")) for name in names(page))
    assert len({a for a in seen.requests if ".jpg" in a}) < 200
    milliseconds = page.evaluate(
        """() => {
            const begin = performance.now();
            const press = key => dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
            press("Home");
            for (let n = 0; n < 200; n++) press("arc"[n % 3]);
            return (performance.now() - begin) / 200;
        }"""
    )
    assert milliseconds < 100 and counted(page)[1] == MANY - 200
    assert len(downloaded(page)) == 201
