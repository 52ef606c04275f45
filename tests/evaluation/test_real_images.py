"""Photographs to evaluate with: whose they are, what was left out, and what makes them others."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fundusgen.errors import DataError, ManifestError
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.real_images import (
    LEAST_PATIENTS,
    RealImages,
    check_disjoint,
    check_enough,
    load_real,
)
from fundusgen.phantom.site import write_site_folder

SIZE_PX = 32
MIX = {"normal": 1.0, "dr2": 1.0}
Rows = list[dict[str, str]]


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Eight patients, most of them with both eyes."""
    folder = tmp_path / "hospital"
    write_site_folder(folder, patients=8, seed=3, size_px=SIZE_PX, conditions_mix=MIX)
    return folder


def rows_of(folder: Path) -> Rows:
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(folder: Path, rows: Rows) -> None:
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def loaded(*folders: Path) -> RealImages:
    return load_real(folders, SIZE_PX, folders[0].parent / "cache")


def test_photographs_are_read_with_patients_and_conditions(hospital: Path) -> None:
    rows, found = rows_of(hospital), loaded(hospital)
    assert len(found.images) == len(rows)
    assert found.images.patient_count == 8
    assert found.raw_ids == {row["patient_id"] for row in rows}
    assert set(found.images.conditions) == set(MIX)
    assert found.images.images_NSSC.shape[1:] == (SIZE_PX, SIZE_PX, 3)
    assert found.unusable == 0


def test_equal_ids_of_two_folders_are_two_patients(hospital: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    write_site_folder(second, patients=8, seed=4, size_px=SIZE_PX, conditions_mix=MIX)
    found = loaded(hospital, second)
    assert {row["patient_id"] for row in rows_of(second)} == loaded(hospital).raw_ids
    assert found.images.patient_count == 16
    assert len(found.raw_ids) == 8
    # Both eyes of one stay theirs.
    per_patient = [found.images.patients_N.count(who) for who in set(found.images.patients_N)]
    assert max(per_patient) == 2
    assert found.digest not in (loaded(hospital).digest, loaded(second).digest)
    assert found.digest != loaded(second, hospital).digest


def swap_two_patients(folder: Path, rows: Rows) -> None:
    first, last = rows[0]["patient_id"], rows[-1]["patient_id"]
    rows[0]["patient_id"], rows[-1]["patient_id"] = last, first


def mirror_an_eye(folder: Path, rows: Rows) -> None:
    rows[0]["eye"] = {"L": "R", "R": "L"}[rows[0]["eye"]]


def change_a_grade(folder: Path, rows: Rows) -> None:
    rows[0].update(diagnosis="", dr_grade="3")


def leave_a_row_out(folder: Path, rows: Rows) -> None:
    del rows[0]


def repaint(folder: Path, rows: Rows) -> None:
    path = folder / rows[0]["file"]
    pixels_SSC = np.array(Image.open(path).convert("RGB"))
    middle = slice(SIZE_PX // 2 - 4, SIZE_PX // 2 + 4)
    pixels_SSC[middle, middle] = 255 - pixels_SSC[middle, middle]
    Image.fromarray(pixels_SSC).save(path)


@pytest.mark.parametrize(
    "change", [swap_two_patients, mirror_an_eye, change_a_grade, leave_a_row_out, repaint]
)
def test_the_digest_changes_with_any_change(
    change: Callable[[Path, Rows], None], hospital: Path
) -> None:
    before, rows = loaded(hospital).digest, rows_of(hospital)
    assert loaded(hospital).digest == before
    change(hospital, rows)
    write_rows(hospital, rows)
    assert loaded(hospital).digest != before


def test_rows_that_cannot_be_used_are_left_out_and_counted(hospital: Path) -> None:
    rows = rows_of(hospital)
    (hospital / rows[0]["file"]).write_bytes(b"no picture")
    rows[1]["file"] = "images/absent.png"
    write_rows(hospital, rows)
    found = loaded(hospital)
    assert found.unusable == 2
    assert len(found.images) == len(rows) - 2
    assert found.of_conditions(["dr2"]).unusable == 2


def test_a_site_folder_is_read_as_its_settings_say(hospital: Path, tmp_path: Path) -> None:
    rows = rows_of(hospital)
    for row in rows:
        row["person"] = row.pop("patient_id")
    write_rows(hospital, rows)
    (hospital / "manifest.csv").rename(hospital / "people.csv")
    site = tmp_path / "site"
    site.mkdir()
    data = {"manifest": str(hospital / "people.csv"), "root": str(hospital),
            "columns": {"patient_id": "person"}, "declared_patients": 10}  # fmt: skip
    (site / "site.yaml").write_text(yaml.safe_dump({"name": "north", "data": data}))
    found = loaded(site)
    assert found.images.patient_count == 8
    assert found.raw_ids == {row["person"] for row in rows}


def test_a_manifest_may_be_named_itself(hospital: Path) -> None:
    assert loaded(hospital / "manifest.csv").digest == loaded(hospital).digest


def test_images_without_patients_need_a_statement(hospital: Path, tmp_path: Path) -> None:
    rows = [{"file": row["file"], "diagnosis": "normal"} for row in rows_of(hospital)]
    write_rows(hospital, rows)
    with pytest.raises(ManifestError, match="hospital"):
        loaded(hospital)
    found = load_real([hospital], SIZE_PX, tmp_path / "cache", one_image_per_patient=True)
    assert found.images.patient_count == len(rows)


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no manifest.csv in .*/empty"):
        loaded(tmp_path / "empty")
    with pytest.raises(DataError, match=r"There is no .*/absent"):
        loaded(tmp_path / "absent")


def people(count: int, prefix: str, seed: int, condition: str = "normal") -> RealImages:
    images_NSSC = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    names = tuple(f"{prefix}{number}" for number in range(count))
    images = ImageSet(images_NSSC, (condition,) * count, names)
    return RealImages(images, "", 0, frozenset(names))


def test_a_test_set_needs_thirty_patients() -> None:
    check_enough(people(LEAST_PATIENTS, "a", 0).images, ["normal"])
    with pytest.raises(DataError, match="29 real images of 29 patients") as raised:
        check_enough(people(LEAST_PATIENTS - 1, "a", 0).images, ["normal"])
    assert "at least 30 patients" in str(raised.value)
    with pytest.raises(DataError, match="None of the real images") as raised:
        check_enough(people(40, "a", 0).images.of_conditions(["amd"]), ["amd", "dr2"])
    assert "amd, dr2" in str(raised.value)


def test_equal_pixels_are_one_photograph_whatever_is_stated() -> None:
    test, train = people(4, "a", 0), people(4, "b", 1)
    check_disjoint(test, train, ids_are_separate=False)
    stolen = train.images.images_NSSC.copy()
    stolen[2] = test.images.images_NSSC[1]
    copied = RealImages(
        ImageSet(stolen, train.images.conditions_N, train.images.patients_N), "", 0, train.raw_ids
    )
    with pytest.raises(DataError, match="1 photographs are in the test folder"):
        check_disjoint(test, copied, ids_are_separate=True)


def test_equal_ids_are_one_person_unless_it_is_stated() -> None:
    test, train = people(5, "a", 0), people(9, "a", 1)
    with pytest.raises(DataError, match=r"5 patient ids .*\(a0, a1, a2, \.\.\.\)"):
        check_disjoint(test, train, ids_are_separate=False)
    check_disjoint(test, train, ids_are_separate=True)
