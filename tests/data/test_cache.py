import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_fundus import drawn_fundus, encoded

from fundusgen.data import cache, framing
from fundusgen.data.cache import clear_cache, framed_images
from fundusgen.data.cachefile import write_cache
from fundusgen.data.framing import frame_image
from fundusgen.data.manifest import ImageRow
from fundusgen.errors import ManifestError, SiteError


def row(folder: Path, name: str, content: bytes, line: int = 2) -> ImageRow:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return ImageRow(line, name, folder / name, name, "", None, None, "", "", None)


def rows_of(folder: Path, count: int = 3) -> list[ImageRow]:
    contents = [encoded(drawn_fundus(light=120 + 20 * i)) for i in range(count)]
    return [row(folder, f"{i}.png", content, 2 + i) for i, content in enumerate(contents)]


def cache_file(folder: Path) -> Path:
    (path,) = folder.glob("framed-*.bin")
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts images that were decoded rather than taken from the cache."""
    count: list[int] = []
    prepare = cache.prepare_image

    def counting(content: bytes, size_px: int) -> np.ndarray:
        count.append(size_px)
        return prepare(content, size_px)

    monkeypatch.setattr(cache, "prepare_image", counting)
    return count


def test_images_are_framed_in_the_order_of_their_rows(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "site")
    framed = framed_images(rows, 32, tmp_path / "cache")
    assert framed.rows == tuple(rows)
    assert framed.problems == ()
    for i, image in enumerate(framed.images_NHWC):
        assert (image == frame_image(drawn_fundus(light=120 + 20 * i), 32)).all()


def test_pixels_are_mapped_read_only_and_only_their_owner_may_read_them(tmp_path: Path) -> None:
    framed = framed_images(rows_of(tmp_path / "site"), 32, tmp_path / "cache")
    assert isinstance(framed.images_NHWC, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        framed.images_NHWC[0] = 0
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    for path in (tmp_path / "cache").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_call_decodes_nothing(tmp_path: Path, decoded: list[int]) -> None:
    rows = rows_of(tmp_path / "site")
    first = framed_images(rows, 32, tmp_path / "cache")
    second = framed_images(rows, 32, tmp_path / "cache")
    assert len(decoded) == 3
    assert (first.images_NHWC == second.images_NHWC).all()


def test_labels_may_change_without_decoding_again(tmp_path: Path, decoded: list[int]) -> None:
    rows = rows_of(tmp_path / "site")
    framed_images(rows, 32, tmp_path / "cache")
    relabelled = [replace(one, dr_grade=2, line=one.line + 1) for one in rows]
    assert framed_images(relabelled, 32, tmp_path / "cache").rows == tuple(relabelled)
    assert len(decoded) == 3


def test_an_edited_image_never_gives_its_old_pixels(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "site")
    before = np.array(framed_images(rows, 32, tmp_path / "cache").images_NHWC)
    old = rows[1].path.stat()
    content = encoded(drawn_fundus(light=250))
    # Same length and same modification time: only the content tells.
    rows[1].path.write_bytes(content[: old.st_size].ljust(old.st_size, b"\0"))
    rows[1].path.write_bytes(content)
    os.utime(rows[1].path, ns=(old.st_atime_ns, old.st_mtime_ns))
    after = framed_images(rows, 32, tmp_path / "cache").images_NHWC
    assert (after[1] == frame_image(drawn_fundus(light=250), 32)).all()
    assert (after[0] == before[0]).all()


def test_other_settings_give_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    rows = rows_of(tmp_path / "site")
    framed_images(rows, 32, tmp_path / "cache")
    framed_images(rows, 64, tmp_path / "cache")
    framed_images(rows[::-1], 32, tmp_path / "cache")
    monkeypatch.setattr(cache, "FRAMING_VERSION", framing.FRAMING_VERSION + 1)
    framed_images(rows, 32, tmp_path / "cache")
    assert len(decoded) == 12
    assert len(list((tmp_path / "cache").glob("framed-*.bin"))) == 4


@pytest.mark.parametrize("place", [0, 9, 30, 5000, -1, -200])
def test_a_damaged_file_is_noticed_and_made_again(
    tmp_path: Path, decoded: list[int], place: int
) -> None:
    rows = rows_of(tmp_path / "site")
    expected = np.array(framed_images(rows, 32, tmp_path / "cache").images_NHWC)
    path = cache_file(tmp_path / "cache")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert (framed_images(rows, 32, tmp_path / "cache").images_NHWC == expected).all()
    assert len(decoded) == 6


@pytest.mark.parametrize("length", [0, 20, 4096, 6000, -1])
def test_a_file_that_broke_off_is_noticed_and_made_again(
    tmp_path: Path, decoded: list[int], length: int
) -> None:
    rows = rows_of(tmp_path / "site")
    expected = np.array(framed_images(rows, 32, tmp_path / "cache").images_NHWC)
    path = cache_file(tmp_path / "cache")
    path.write_bytes(path.read_bytes()[:length])
    assert (framed_images(rows, 32, tmp_path / "cache").images_NHWC == expected).all()
    assert len(decoded) == 6


def test_a_crash_half_way_leaves_nothing_that_is_read_back(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "site")

    def crash(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        framed_images(rows, 32, tmp_path / "cache", on_progress=crash)
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert left <= {"digests.json"}
    assert len(framed_images(rows, 32, tmp_path / "cache").rows) == 3


def test_two_at_once_both_get_whole_images(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "site", 4)
    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(lambda _: framed_images(rows, 32, tmp_path / "cache").images_NHWC, range(4))
        )
    for images in results[1:]:
        assert (images == results[0]).all()


def test_several_processes_give_the_same_pixels(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "site", 33)
    rows[5].path.write_bytes(b"broken")
    one = framed_images(rows, 16, tmp_path / "one")
    two = framed_images(rows, 16, tmp_path / "two", workers=2)
    assert (one.images_NHWC == two.images_NHWC).all()
    assert one.problems == two.problems


def test_bad_images_are_left_out_and_listed_at_the_site(tmp_path: Path) -> None:
    good = rows_of(tmp_path / "site", 2)
    black = encoded(np.zeros((100, 100, 3), np.uint8))
    bad = [
        row(tmp_path / "site", "black.png", black, 10),
        row(tmp_path / "site", "cut.png", encoded(drawn_fundus())[:900], 11),
        row(tmp_path / "site", "empty.png", b"", 12),
        replace(
            row(tmp_path / "site", "again.png", good[0].path.read_bytes(), 13),
            patient_id=good[0].patient_id,
        ),
        row(tmp_path / "site", "gone.png", b"", 14),
    ]
    bad[-1].path.unlink()
    rows = [good[0], *bad, good[1]]
    progress: list[tuple[int, int]] = []
    for _ in range(2):
        framed = framed_images(
            rows, 32, tmp_path / "cache", on_progress=lambda *done: progress.append(done)
        )
        assert framed.rows == (good[0], good[1])
        assert [problem.line for problem in framed.problems] == [10, 11, 12, 13, 14]
        assert "same bytes as line 2" in framed.problems[3].found
        for problem in framed.problems:
            assert problem.found
            assert problem.expected
            assert problem.remedy
    assert progress == [(i + 1, 6) for i in range(6)]
    listed = json.loads(cache_file(tmp_path / "cache").with_suffix(".problems.json").read_text())
    assert listed["left_out"] == 5
    assert listed["problems"][0]["line"] == 10
    for again in range(2):
        with pytest.raises(ManifestError, match="5 rows"):
            framed_images(rows, 32, tmp_path / f"cache{again}", strict=True)


def test_the_same_bytes_under_two_patients_stay_with_both_and_are_told(tmp_path: Path) -> None:
    one, other = rows_of(tmp_path / "site", 2)
    copied = row(tmp_path / "site", "copy.png", one.path.read_bytes(), 4)
    for _ in range(2):
        framed = framed_images([one, other, copied], 32, tmp_path / "cache")
        assert framed.rows == (one, other, copied)
        assert (framed.images_NHWC[0] == framed.images_NHWC[2]).all()
        (warning,) = framed.problems
        assert (warning.line, warning.left_out) == (4, False)
        for words in ("same bytes as line 2", "under another patient id", "epsilons add up"):
            assert words in str(warning)
    listed = json.loads(cache_file(tmp_path / "cache").with_suffix(".problems.json").read_text())
    assert listed["left_out"] == 0
    assert len(listed["problems"]) == 1
    with pytest.raises(ManifestError, match="1 row of"):
        framed_images([one, other, copied], 32, tmp_path / "cache", strict=True)


def test_images_that_cannot_be_used_are_no_repeats_of_each_other(tmp_path: Path) -> None:
    (good,) = rows_of(tmp_path / "site", 1)
    bad = [
        row(tmp_path / "site", f"{i}bad.png", content, 3 + i)
        for i, content in enumerate([b"", b"", b"broken", b"broken"])
    ]
    bad = [replace(one, patient_id="same" if one.line < 5 else one.file) for one in bad]
    framed = framed_images([good, *bad], 32, tmp_path / "cache")
    assert [problem.line for problem in framed.problems] == [3, 4, 5, 6]
    assert all("bytes as line" not in problem.found for problem in framed.problems)


def test_an_image_that_goes_while_the_cache_is_made_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(tmp_path / "site", 2)
    prepare = cache.prepare_image

    def removing(content: bytes, size_px: int) -> np.ndarray:
        rows[1].path.unlink()
        return prepare(content, size_px)

    monkeypatch.setattr(cache, "prepare_image", removing)
    with pytest.raises(SiteError, match="changed while"):
        framed_images(rows, 32, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("framed-*"))


def test_a_site_without_any_usable_image_is_an_error(tmp_path: Path) -> None:
    rows = [row(tmp_path / "site", "a.png", b"broken"), row(tmp_path / "site", "b.png", b"", 3)]
    for _ in range(2):
        with pytest.raises(ManifestError, match="line 2"):
            framed_images(rows, 32, tmp_path / "cache")
    with pytest.raises(ManifestError, match="no usable row"):
        framed_images([], 32, tmp_path / "cache")


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(SiteError, match="cannot be used"):
        framed_images(rows_of(tmp_path / "site"), 32, tmp_path / "cache")


def test_unused_files_go_after_a_month_and_all_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    rows = rows_of(tmp_path / "site")
    framed_images(rows, 32, folder)
    old = cache_file(folder)
    abandoned = folder / ".framed-64px.bin.0a1b2c.tmp"
    abandoned.write_bytes(b"")
    for path in (old, abandoned):
        os.utime(path, (0, 0))
    framed_images(rows, 64, folder)
    assert not old.exists()
    assert not abandoned.exists()
    images = framed_images(rows, 64, folder).images_NHWC
    assert clear_cache(folder) > 0
    assert list(folder.iterdir()) == []
    assert images[0].max() > 0


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    def images() -> list[np.ndarray]:
        raise OSError(28, "No space left on device")
        yield

    with pytest.raises(OSError, match="No space"):
        write_cache(tmp_path / "framed.bin", images(), 32, {"key": ""})
    assert list(tmp_path.iterdir()) == []
