from __future__ import annotations

from html.parser import HTMLParser

from cpn_fast.report import page
from cpn_fast.report.pictures import Row

NAME = "a<b & \"c\" 'd'"


class Found(HTMLParser):
    """Texts, tags and alternative texts of a page, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.alternatives: list[str | None] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.alternatives += [value for name, value in attrs if name == "alt"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_names_stay_what_they_are_in_every_section() -> None:
    row = Row(NAME, (0,), True, {"image": "data:image/png;base64,AAAA"})
    sections = [
        page.tiles({NAME: NAME}),
        page.note(NAME),
        page.charts(NAME, {NAME: "<svg></svg>"}, NAME),
        page.picture_rows([row], [NAME], NAME),
        page.table(NAME, [NAME, NAME], [[NAME, NAME]], NAME),
        page.settings(NAME, {NAME: NAME}),
    ]
    found = Found(page.page(NAME, NAME, sections))
    assert found.texts.count(NAME) == 3 + 2 + 1 + 3 + 4 + 6 + 3
    assert found.alternatives == [f"image of {NAME}"]
    assert "b" in found.tags and "svg" in found.tags and found.tags.count("a") == 0


def test_row_says_whose_classes_it_shows_and_what_is_missing() -> None:
    rows = [Row("one", (1, 0), False, {"image": "data:,"}), Row("two", (), True, {"image": "data:,", "mask": "data:,"})]
    found = Found(page.picture_rows(rows, ["cat", "dog"], "Masks."))
    assert "dog, cat (found by the network: the image has no labels)" in found.texts
    assert "no class" in found.texts and "none" in found.texts
    assert found.alternatives == ["image of one", "image of two", "mask of two"]
    assert [text for text in found.texts if text in ("background", "void", "cat", "dog")] == [
        "cat", "dog", "background", "void",
    ]  # fmt: skip


def test_sections_without_charts_are_left_out() -> None:
    assert page.charts("Scores", {"IoU": ""}, "nothing") == ""


def test_first_cell_of_a_row_is_a_name_and_the_others_figures() -> None:
    text = page.table("Stages", ["stage", "time"], [("train", "3 s")])
    assert "<td>train</td>" in text and '<td class="figure">3 s</td>' in text
