from __future__ import annotations

import math
import re
import warnings
import xml.etree.ElementTree as ET

import pytest

from cpn_fast.report.charts import Series, bar_chart, line_chart, thinned

NAMESPACES = '<svg xmlns:xlink="http://www.w3.org/1999/xlink" '


def texts(svg: str) -> list[str]:
    """What is written in a chart, in drawing order; parsing it shows that it is well-formed."""
    return [element.text or "" for element in ET.fromstring(svg.replace("<svg ", NAMESPACES, 1)).iter("text")]


def points(svg: str, colour: int) -> list[tuple[float, float]]:
    """Where the marked points of a series stand, y downwards."""
    found = re.findall(rf'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var\(--c{colour}\)', svg)
    return [(float(x), float(y)) for x, y in found]


def test_thinning_takes_means_and_drops_what_is_not_finite() -> None:
    line = thinned(Series("loss", [1, 2, 3, 4, 5], [1.0, 3.0, math.nan, 10.0, 20.0]), limit=2)
    assert list(line.x) == [1.5, 4.5] and list(line.y) == [2.0, 15.0]


def test_line_chart_has_its_axes_its_series_and_all_finite_points() -> None:
    series = [Series("CAM", [0, 5, 10], [0.0, 4.0, 3.0]), Series("RCAM", [0, 5, 10], [1.0, math.nan, 2.0])]
    svg = line_chart([*series, Series("empty", [0], [math.nan])], "beta", "mIoU %", 0.0, (5.0, "best 5.00"))
    written = texts(svg)
    assert {"beta", "mIoU %", "best 5.00", "CAM", "RCAM"} <= set(written) and "empty" not in written
    (x0, y0), (x1, y1), (x2, y2) = points(svg, 0)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=1e-3), "positions are in scale"
    assert (y0 - y2) / (y0 - y1) == pytest.approx(3 / 4, abs=1e-3), "values are in scale, upwards"
    assert len(points(svg, 1)) == 2
    assert "<title>CAM: 4 at 5</title>" in svg and "<title>RCAM: 2 at 10</title>" in svg


def test_a_mark_outside_of_the_lines_is_left_out() -> None:
    svg = line_chart([Series("a", [0.2, 0.4], [1.0, 2.0])], "x", "y", mark=(0.9, "far"))
    assert "far" not in texts(svg)


def test_line_of_many_points_is_thinned_and_has_no_marks() -> None:
    svg = line_chart([Series("loss", list(range(3000)), [1 / (i + 1) for i in range(3000)])], "step", "loss")
    path = re.search(r'd="(M [^"]*)"\s+(?:clip-path="[^"]*" )?style="fill: none; stroke: var\(--c0\)', svg)
    assert path and 10 < path[1].count("L") < 300, "matplotlib leaves out points of a straight stretch"
    assert points(svg, 0) == [] and "<title>" not in svg


def test_line_chart_without_points_is_nothing() -> None:
    assert line_chart([Series("a", [0, 1], [math.nan, math.inf])], "x", "y") == ""


def bar_lengths(svg: str, colour: int) -> list[float]:
    """Lengths of the bars of a group; the last such shape is the legend's."""
    shapes = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: var\(--c{colour}\)', svg)
    across = [[float(x) for x in re.findall(r"[ML] ([\d.]+)", shape)] for shape in shapes]
    return [max(xs) - min(xs) for xs in across[:-1]]


def test_bars_are_in_scale_and_absent_classes_say_so() -> None:
    svg = bar_chart(["cat", "dog"], {"CAM": [50.0, 100.0], "RCAM": [None, 25.0]}, " %")
    cat, dog = bar_lengths(svg, 0)
    absent, low = bar_lengths(svg, 1)
    assert absent == 0 and cat == pytest.approx(dog / 2, abs=1e-3) and low == pytest.approx(dog / 4, abs=1e-3)
    written = texts(svg)
    assert [text for text in written if text in ("cat", "dog", "CAM", "RCAM")] == ["cat", "dog", "CAM", "RCAM"]
    assert sorted(text for text in written if "%" in text or text == "absent") == [
        "100.0 %", "25.0 %", "50.0 %", "absent",
    ]  # fmt: skip


def test_bars_without_names_are_nothing() -> None:
    assert bar_chart([], {"CAM": []}) == "" and bar_chart(["cat"], {}) == ""


def test_names_are_written_as_they_are() -> None:
    names = ['a<b & "c"', "$x_1$", "猫"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(bar_chart(names, {"CAM": [1.0, 2.0, 3.0]}))[:3] == names
    assert "a<b" in texts(line_chart([Series("a<b", [0], [1.0])], "x", "y"))


def test_a_chart_is_the_same_each_time_and_has_the_colours_of_the_page() -> None:
    first, second = (bar_chart(["cat"], {"CAM": [50.0]}) for _ in range(2))
    assert first == second
    assert "var(--c0)" in first and "var(--ink)" in first and not re.search(r"#[0-9a-f]{6}\b(?!\w)", first)


def test_charts_of_one_page_share_no_names_of_different_things() -> None:
    charts = [line_chart([Series("a", [0, 1], [0.0, y])], "x", "y" * int(y)) for y in (1.0, 9.0)]
    named = [dict(re.findall(r'<(?:path|clipPath) id="(\w+)"\s*(?:d=)?>?\s*("[^"]*"|<rect [^>]*>)', c)) for c in charts]
    shared = named[0].keys() & named[1].keys()
    assert shared and all(named[0][name] == named[1][name] for name in shared)
    for chart in charts:
        used = set(re.findall(r"#(\w+)[\")]", chart))
        assert used <= set(re.findall(r'id="(\w+)"', chart))
