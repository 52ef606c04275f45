from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_fundus import drawn_fundus, encoded
from hypothesis import given, settings
from hypothesis import strategies as st

from fundusgen.data.conditions import CONDITIONS
from fundusgen.data.manifest import ManifestSettings, write_manifest
from fundusgen.data.patients import PatientDataset, load_patients
from fundusgen.data.splits import split_patients
from fundusgen.errors import ManifestError, StudyError


def numbered(patients: list[str]) -> PatientDataset:
    """Images whose left column tells their number and whose right column is dark."""
    images = np.zeros((len(patients), 4, 4, 3), np.uint8)
    images[:, :, 0] = np.arange(1, len(patients) + 1)[:, None, None]
    return PatientDataset(images, np.arange(len(patients)) % 3, patients)


def numbers_of(views: torch.Tensor) -> np.ndarray:
    values = torch.round((views + 1) * 127.5).amax(dim=(2, 3, 4))
    return values.numpy().astype(int) - 1


def test_the_unit_is_the_patient() -> None:
    dataset = numbered(["b", "a", "b", "c", "b"])
    assert len(dataset) == 3
    assert dataset.image_count == 5
    assert dataset.patient_ids == ("b", "a", "c")
    assert dataset.images_of(0).tolist() == [0, 2, 4]


@settings(deadline=None)
@given(
    patients=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=20),
    views=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_each_patient_gives_exactly_its_views_spread_evenly(
    patients: list[str], views: int, seed: int
) -> None:
    dataset = numbered(patients)
    rng = np.random.default_rng(seed)
    images, conditions = dataset.views(np.arange(len(dataset)), views, rng)
    assert images.shape == (len(dataset), views, 3, 4, 4)
    numbers = numbers_of(images)
    assert (conditions.numpy() == numbers % 3).all()
    for patient in range(len(dataset)):
        own = dataset.images_of(patient)
        counts = Counter(numbers[patient].tolist())
        assert set(counts) <= set(own.tolist())
        shares = [counts[image] for image in own]
        assert max(shares) - min(shares) <= 1


def test_views_are_floats_from_minus_one_to_one() -> None:
    images = np.zeros((1, 2, 2, 3), np.uint8)
    images[0, 0] = 255
    views, conditions = PatientDataset(images, np.array([4]), ["a"]).views(
        np.array([0]), 2, np.random.default_rng()
    )
    assert views.dtype == torch.float32
    assert views.is_contiguous()
    assert conditions.dtype == torch.int64
    assert (views[..., 0, :] == 1).all()
    assert (views[..., 1, :] == -1).all()


def test_an_empty_sample_gives_empty_tensors() -> None:
    images, conditions = numbered(["a", "b"]).views(
        np.array([], np.int64), 4, np.random.default_rng()
    )
    assert images.shape == (0, 4, 3, 4, 4)
    assert images.dtype == torch.float32
    assert conditions.shape == (0, 4)


def test_the_marked_images_are_always_mirrored_and_no_others() -> None:
    plain = numbered(["a", "a", "b", "c"])
    marks = np.array([True, False, False, True])
    dataset = PatientDataset(
        plain.pixels(np.arange(4)), plain.conditions_N, plain.patients_N, marks
    )
    pixels = dataset.pixels(np.arange(4))
    for image, mirrored in enumerate(marks):
        before = plain.pixels(np.array(image))
        assert (pixels[image] == (before[:, ::-1] if mirrored else before)).all()
    views, _ = dataset.views(np.array([0, 1, 2] * 20), 4, np.random.default_rng(0))
    on_the_right = (views[..., 0, 0, -1] > views[..., 0, 0, 0]).numpy()
    assert (on_the_right == marks[numbers_of(views)]).all()
    turned = dataset.subset(np.array([3, 2])).subset(np.array([1, 0]))
    assert (turned.pixels(np.array([[0], [1]])) == pixels[[[2], [3]]]).all()


def test_views_differ_only_in_the_choice_of_images() -> None:
    dataset = numbered(["a", "b"])
    first, second = (
        dataset.views(np.array([0, 1]), 2, np.random.default_rng(seed))[0] for seed in (0, 1)
    )
    assert (first == second).all()


def test_stored_pixels_are_never_written_to() -> None:
    dataset = numbered(["a", "a", "b"])
    before = dataset.pixels(np.arange(3))
    dataset.views(np.array([0, 1]), 6, np.random.default_rng(0))[0].zero_()
    dataset.pixels(np.arange(3))[:] = 7
    assert (dataset.pixels(np.arange(3)) == before).all()


def test_views_that_make_no_sense_are_refused() -> None:
    dataset = numbered(["a", "b"])
    with pytest.raises(ValueError, match="at least one view"):
        dataset.views(np.array([0]), 0, np.random.default_rng())
    for patient in (-1, 2):
        with pytest.raises(IndexError):
            dataset.views(np.array([patient]), 1, np.random.default_rng())
    with pytest.raises(ValueError, match="one of each"):
        PatientDataset(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64), ["a"])
    with pytest.raises(ValueError, match="1 marks"):
        PatientDataset(
            np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64), ["a", "b"], np.array([True])
        )


def test_a_subset_keeps_its_images_and_their_patients() -> None:
    dataset = numbered(["a", "b", "a", "c"]).subset(np.array([3, 0]))
    assert dataset.patient_ids == ("c", "a")
    assert dataset.conditions_N.tolist() == [0, 0]
    images, _ = dataset.views(np.array([0, 1]), 1, np.random.default_rng(0))
    assert numbers_of(images).tolist() == [[3], [0]]
    assert dataset.subset(np.array([1])).pixels(np.array([0])).max() == 1


@given(
    patients=st.lists(st.integers(0, 30).map(str), max_size=60),
    fractions=st.lists(st.floats(0, 1 / 3), min_size=1, max_size=3),
    seed=st.integers(0, 5),
)
def test_all_images_of_a_patient_stay_in_one_split(
    patients: list[str], fractions: list[float], seed: int
) -> None:
    parts = split_patients(patients, fractions, seed)
    assert len(parts) == len(fractions)
    owners = [{patients[image] for image in part} for part in parts]
    for i, one in enumerate(owners):
        for other in owners[i + 1 :]:
            assert not one & other
    for part, owner, fraction in zip(parts, owners, fractions, strict=True):
        assert set(part.tolist()) == {i for i, p in enumerate(patients) if p in owner}
        if fraction == 0:
            assert not owner


@given(
    patients=st.lists(st.integers(0, 30).map(str), max_size=60),
    gone=st.integers(0, 30).map(str),
    seed=st.integers(0, 5),
)
def test_no_patient_moves_another_between_splits(patients: list[str], gone: str, seed: int) -> None:
    others = [patient for patient in patients if patient != gone]
    for before, after in zip(
        split_patients(patients, [0.6, 0.3], seed),
        split_patients(others, [0.6, 0.3], seed),
        strict=True,
    ):
        assert {patients[i] for i in before} - {gone} == {others[i] for i in after}


def test_splits_have_their_shares_on_average() -> None:
    patients = [str(i) for i in range(4000)]
    train, test = split_patients(patients, [0.7, 0.2], 1)
    assert abs(len(train) - 2800) < 150
    assert abs(len(test) - 800) < 130
    assert len(np.concatenate(split_patients(patients, [0.1] * 10, 1))) == 4000


def test_splits_depend_on_ids_and_seed_only() -> None:
    patients = [str(i % 40) for i in range(100)]
    (train, test) = split_patients(patients, [0.8, 0.2], 3)
    assert sorted([*train, *test]) == list(range(100))
    (again, _) = split_patients(patients[::-1], [0.8, 0.2], 3)
    assert {patients[i] for i in train} == {patients[::-1][i] for i in again}
    assert split_patients(patients, [0.8, 0.2], 4)[0].tolist() != train.tolist()
    with pytest.raises(ValueError, match="at most 1"):
        split_patients(patients, [0.8, 0.3], 3)


def phantom_site(folder: Path, labels: list[tuple[str, str, int | None]]) -> ManifestSettings:
    rows = []
    for i, (patient, diagnosis, grade) in enumerate(labels):
        (folder / f"{i}.png").write_bytes(encoded(drawn_fundus(light=100 + 5 * i)))
        row = {"file": f"{i}.png", "patient_id": patient, "diagnosis": diagnosis}
        rows.append({**row, "dr_grade": grade})
    write_manifest(folder / "manifest.csv", rows)
    return ManifestSettings(folder / "manifest.csv", folder)


def test_a_site_is_loaded_with_the_conditions_of_the_study(tmp_path: Path) -> None:
    site = phantom_site(
        tmp_path,
        [("a", "dr", 2), ("a", "normal", 0), ("b", "amd", None), ("c", "", None), ("d", "dr", 2)],
    )
    (tmp_path / "4.png").write_bytes(b"broken")
    loaded = load_patients(site, 32, ["normal", "dr2"], tmp_path / "cache")
    assert loaded.dataset.patient_ids == ("a",)
    assert loaded.dataset.conditions_N.tolist() == [1, 0]
    assert loaded.left_out_for_condition == 2
    assert [problem.line for problem in loaded.problems] == [6]
    assert (tmp_path / "cache" / "problems.json").is_file()
    everything = load_patients(site, 32, CONDITIONS, tmp_path / "cache")
    assert everything.left_out_for_condition == 0
    assert [CONDITIONS[i] for i in everything.dataset.conditions_N] == [
        "dr2",
        "normal",
        "amd",
        "unknown",
    ]


def test_a_study_without_use_for_the_site_is_an_error(tmp_path: Path) -> None:
    site = phantom_site(tmp_path, [("a", "dr", 2)])
    with pytest.raises(ManifestError, match="none of 1"):
        load_patients(site, 32, ["amd"], tmp_path / "cache")
    with pytest.raises(StudyError, match="'dr5'"):
        load_patients(site, 32, ["dr5"], tmp_path / "cache")
    with pytest.raises(StudyError, match="twice"):
        load_patients(site, 32, ["dr1", "dr1"], tmp_path / "cache")


def test_real_sites_load_with_few_problems(real_data: Path, tmp_path: Path) -> None:
    for site, patients in (("drive_netherlands", 40), ("chase_uk", 14)):
        settings_ = ManifestSettings(real_data / site / "manifest.csv", real_data / site)
        loaded = load_patients(settings_, 64, ["unknown"], tmp_path / site)
        assert len(loaded.dataset) == patients
        assert loaded.problems == ()
