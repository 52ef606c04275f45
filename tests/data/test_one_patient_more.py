"""Adding or removing one patient changes nothing of the others: what the guarantee rests on."""

from pathlib import Path

import numpy as np
import pytest
from drawn_fundus import drawn_fundus, encoded
from hypothesis import given, settings
from hypothesis import strategies as st

from fundusgen.data.conditions import CONDITIONS
from fundusgen.data.manifest import ManifestSettings, write_manifest
from fundusgen.data.patients import load_patients
from fundusgen.errors import ManifestError

Row = dict[str, str | int | None]

# Each photograph twice under other names, two that are damaged and two empty.
PHOTOGRAPHS = ["x1.png", "x2.png", "./x1.png", "y1.png", "y2.png", "z1.png"]
UNUSABLE = [
    "damaged1.png",
    "damaged2.png",
    "empty1.png",
    "empty2.png",
    "missing.png",
    "../x.png",
    "",
]


def mostly(usual: st.SearchStrategy, otherwise: st.SearchStrategy) -> st.SearchStrategy:
    """The usual, five times of six: a manifest of bad rows only would test nothing."""
    return st.integers(0, 5).flatmap(lambda drawn: otherwise if drawn == 5 else usual)


manifests = st.lists(
    st.fixed_dictionaries(
        {
            "file": mostly(st.sampled_from(PHOTOGRAPHS), st.sampled_from(UNUSABLE)),
            "patient_id": mostly(st.sampled_from("abc"), st.just("")),
            "eye": mostly(st.sampled_from(["L", "R", ""]), st.just("left")),
            "dr_grade": mostly(st.sampled_from([0, 2, None]), st.just(7)),
        }
    ),
    min_size=2,
    max_size=9,
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for i, name in enumerate("xyz"):
        picture = drawn_fundus(80, 64, (40, 32), 25, light=150 + 30 * i)
        for copy in "12":
            (folder / f"{name}{copy}.png").write_bytes(encoded(picture))
    for copy in "12":
        (folder / f"damaged{copy}.png").write_bytes(encoded(picture)[:300])
        (folder / f"empty{copy}.png").write_bytes(b"")
    return folder


def contributions(
    folder: Path, rows: list[Row], one_image_per_patient: bool
) -> dict[str, tuple[bytes, list[int]]]:
    """Pixels and conditions by patient; nothing where the site as a whole is refused."""
    write_manifest(folder / "manifest.csv", rows)
    site = ManifestSettings(
        folder / "manifest.csv", folder, one_image_per_patient=one_image_per_patient
    )
    try:
        dataset = load_patients(site, 16, CONDITIONS, folder / "cache").dataset
    except ManifestError:
        return {}
    found = {}
    for patient, name in enumerate(dataset.patient_ids):
        images = dataset.images_of(patient)
        found[name] = (dataset.pixels(images).tobytes(), dataset.conditions_N[images].tolist())
    return found


def patient_of(row: Row, one_image_per_patient: bool) -> str:
    own = str(row["file"]).removeprefix("./") if one_image_per_patient else ""
    return str(row["patient_id"]) or own


@settings(deadline=None, max_examples=60)
@given(rows=manifests, one_image_per_patient=st.booleans(), data=st.data())
def test_removing_a_patient_leaves_the_others_exactly_as_they_were(
    photographs: Path, rows: list[Row], one_image_per_patient: bool, data: st.DataObject
) -> None:
    owners = [patient_of(row, one_image_per_patient) for row in rows]
    gone = data.draw(st.sampled_from(sorted(set(owners))))
    with_them = contributions(photographs, rows, one_image_per_patient)
    kept = [row for row, owner in zip(rows, owners, strict=True) if owner != gone]
    without = contributions(photographs, kept, one_image_per_patient)
    with_them.pop(gone, None)
    assert without == with_them


def test_an_image_of_two_patients_counts_for_each_and_for_each_once(photographs: Path) -> None:
    rows: list[Row] = [
        {"file": "x1.png", "patient_id": "a", "eye": "R"},
        {"file": "x2.png", "patient_id": "b", "eye": "L"},
        {"file": "x1.png", "patient_id": "b"},
        {"file": "y1.png", "patient_id": "b"},
    ]
    found = contributions(photographs, rows, one_image_per_patient=False)
    image_bytes = 16 * 16 * 3
    assert {name: len(pixels) // image_bytes for name, (pixels, _) in found.items()} == {
        "a": 1,
        "b": 2,
    }
    as_right, as_left = (
        np.frombuffer(found[name][0][:image_bytes], np.uint8).reshape(16, 16, 3) for name in "ab"
    )
    assert (as_right == as_left[:, ::-1]).all()
