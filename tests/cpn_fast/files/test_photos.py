"""Image files and folders as they are named on a command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cpn_fast.files.errors import DataError
from cpn_fast.files.photos import count_other_files, default_output, find_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.jpg", "in/b.png", ".hidden.jpg", ".thumbs/c.jpg", "._a.jpg"):
        path = tmp_path / "trip" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path)
    (tmp_path / "trip" / "notes.txt").write_text("no image")
    return tmp_path / "trip"


def test_hidden_files_do_not_count_and_are_counted(photos: Path) -> None:
    assert [photo.id for photo in find_photos([photos])] == ["a", "in/b"]
    assert count_other_files([photos]) == 4  # two hidden, one in a hidden folder, the notes
    named = [photos / ".hidden.jpg", photos / "a.jpg"]
    assert [photo.id for photo in find_photos(named)] == ["a"] and count_other_files(named) == 1
    with pytest.raises(DataError, match="hidden files do not count"):
        find_photos([photos / ".hidden.jpg"])


def test_masks_go_beside_by_name(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_output([photos / "a.jpg", photos]) == Path("a-masks")
    assert default_output([photos]) == Path("trip-masks")
    monkeypatch.chdir(photos)
    assert default_output([Path(".")]) == Path("trip-masks")
