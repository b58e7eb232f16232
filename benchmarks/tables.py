"""Markdown tables of recorded figures, so that none is typed by hand:

python -m benchmarks.tables [waterfall|operators] [benchmarks/results/FILE.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def line(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def with_table(page: str, rows: Sequence[str], name: str) -> str:
    """A page's text with the table between its two marks, `<!-- NAME: begin -->` and `<!-- NAME: end -->`.

    Raises:
        ValueError: if it does not hold both, once and in order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the page lacks the lines {begin} and {end}")
    return "\n".join([before + begin, "", *rows, "", end + after])


def show(description: str, name: str, rows: Sequence[str], arguments: Sequence[str] | None) -> None:
    """The command of a table that a page holds: print it, or write it there.

    Args:
        description: for --help.
        name: of its marks in the page.
        rows: the table.
        arguments: words of the command line; None = those of this program.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--page", type=Path, help="write the table into this page instead of printing it")
    page = parser.parse_args(arguments).page
    if page is None:
        print("\n".join(rows))
    else:
        page.write_text(with_table(page.read_text(encoding="utf-8"), rows, name), encoding="utf-8")


def waterfall(benchmarks: dict[str, Any]) -> list[str]:
    """One line per row: images per second, speed-up over the top, peak memory, difference of the first losses."""
    record = benchmarks.get("test_waterfall")
    if record is None:
        return ["The waterfall is not in this record: pytest benchmarks/test_waterfall.py --record"]
    lines = [
        f"{record['input']}:",
        "",
        line("row", "images/s", "over the top", "peak memory", "loss of the first three steps", "differs by"),
        line(*["---"] * 6),
    ]
    for row in record["rows"]:
        losses = " ".join(f"{loss:.4f}" for loss in row["first_losses"])
        lines.append(
            line(
                row["text"],
                f"{row['images_per_second']:.2f}",
                f"{row['speed_up']:.2f}x",
                f"{row['peak_mib'] / 1024:.1f} GiB",
                losses,
                f"{row['loss_difference']:.1g}",
            )
        )
    return lines


def operators(benchmarks: dict[str, Any]) -> list[str]:
    """One line per benchmark with a candidate and a peer, then whatever else was kept."""
    lines = [line("benchmark", "candidate", "peer", "ratio", "peak memory beyond its input"), line(*["---"] * 5)]
    others = []
    for name, values in sorted(benchmarks.items()):
        if "candidate_ms" in values:
            kind = "extra_peak_mib" if "candidate_extra_peak_mib" in values else "peak_mib"
            peaks = [values.get(f"{side}_{kind}") for side in ("candidate", "peer")]
            memory = f"{peaks[0]:.0f} against {peaks[1]:.0f} MiB" if None not in peaks else ""
            memory += " (whole process)" if memory and kind == "peak_mib" else ""
            milliseconds = [f"{values[f'{side}_ms']:.4g} ms" for side in ("candidate", "peer")]
            lines.append(line(f"`{name}`", *milliseconds, f"{values['ratio']:.2f}", memory))
        usual = ("ratio", "candidate_ms", "peer_ms", "_items_per_second", "_peak_mib", "rows", "input")
        rest = {key: value for key, value in values.items() if not key.endswith(usual)}
        others += [f"- `{name}`: " + ", ".join(f"{key} {value}" for key, value in rest.items())] if rest else []
    return [*lines, "", *others] if others else lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Markdown tables of recorded figures.")
    parser.add_argument("table", choices=["waterfall", "operators"])
    parser.add_argument("record", type=Path, nargs="?", help="default: the newest CPU record")
    given = parser.parse_args()
    path = given.record or max(RESULTS.glob("cpu-torch*.json"), key=lambda file: file.stat().st_mtime)
    content = json.loads(path.read_text(encoding="utf-8"))
    machine = f"{content['machine']}, {content['threads']} torch threads, torch {content['torch']}"
    print(f"{machine}.\n")
    print("\n".join({"waterfall": waterfall, "operators": operators}[given.table](content["benchmarks"])))


if __name__ == "__main__":
    main()
