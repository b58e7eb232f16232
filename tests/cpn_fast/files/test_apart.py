"""An output folder among the data is refused: by the rule itself, cases by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpn_fast.files.apart import check_apart
from cpn_fast.files.errors import DataError


@pytest.mark.parametrize(
    "output",
    ["data", "data/masks", "data/a/b", "data/../data", "link/masks"],
)
def test_in_the_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    (tmp_path / "data/a").mkdir(parents=True)
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="lies in the data"):
        check_apart(Path(output), [Path("data")])


def test_masks_that_would_fall_into_the_data_are_refused(tmp_path: Path) -> None:
    truth = tmp_path / "VOC2012/SegmentationClass"
    for place in (tmp_path / "VOC2012", truth, truth / "mine"):
        with pytest.raises(DataError, match="lies in the data"):
            check_apart(place, [truth])
    with pytest.raises(DataError, match="lies in the data"):  # the images lie where the masks would
        check_apart(tmp_path / "VOC2012", [truth / "images"])


@pytest.mark.parametrize("output", [".", "masks", "data-masks", "dat", "data/../masks"])
def test_beside_or_around_the_data_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    check_apart(Path(output), [Path("data")])


def test_of_single_files_their_own_folder_counts_alone(tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    image.write_bytes(b"")
    check_apart(tmp_path / "a-masks", [image])  # beside photographs in the current folder, as usual
    with pytest.raises(DataError, match="lies in the data"):
        check_apart(tmp_path, [image])
