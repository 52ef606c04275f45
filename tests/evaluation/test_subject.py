"""What is evaluated: a network, phantoms that were voted for, or a folder; all as right eyes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fundusgen.errors import ModelError, RunError
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.subject import (
    FolderSubject,
    NetworkSubject,
    Subject,
    VotedSubject,
    draw,
    mixed_counts,
    subject_of,
)
from fundusgen.models.factory import build_model
from fundusgen.models.generator import WEIGHTS_FILE, save_generator
from fundusgen.phantom.site import write_site_folder
from fundusgen.run_folder import RunFolder
from fundusgen.study import Study
from fundusgen.training.evolution import Parents, first_generation
from fundusgen.training.population import (
    POPULATION_FILE,
    VotedPopulation,
    eye_of,
    save_population,
)

SIZE_PX = 32
STUDY = Study.model_validate(
    {
        "study_id": "retina",
        "conditions": ["normal", "dr2"],
        "image_size": SIZE_PX,
        "model": {"width": 4, "latent": 5},
        "privacy": {"target_epsilon": 8},
        "federation": {},
        "prior": {},
        "stages": {"votes": {"rounds": 2, "candidates": 10, "nearest": 3}, "dpsgd": None},
    }
)
# Whoever asks for more than a batch must get the batches put together.
MANY = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a network of chance weights, and a population that was voted for."""
    folder: Path = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    weights = {
        name: (value.numpy() + 0.1 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in build_model(STUDY).state_dict().items()
    }
    generator = RunFolder(folder).generator
    save_generator(generator, STUDY, weights, {"rounds": 7})
    save_population(generator, population())
    return folder


def population() -> VotedPopulation:
    generation = first_generation(STUDY)
    shares_N = np.ones(len(generation.lineages))
    return VotedPopulation(STUDY.conditions, SIZE_PX, 0.1, Parents(generation, shares_N))


@pytest.fixture(scope="module")
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("drawn") / "images"
    mix = {"normal": 1.0, "dr2": 1.0}
    write_site_folder(folder, patients=20, seed=1, size_px=SIZE_PX, conditions_mix=mix)
    return folder


@pytest.fixture(params=["network", "voted", "folder"])
def subject(
    request: pytest.FixtureRequest, run: Path, drawn_folder: Path, tmp_path: Path
) -> Subject:
    return made(request.param, run, drawn_folder, tmp_path)


def made(kind: str, run: Path, drawn_folder: Path, cache: Path, **more: Any) -> Subject:
    path = drawn_folder if kind == "folder" else run
    return subject_of(path, phantoms=kind == "voted", size_px=SIZE_PX, cache=cache, **more)


def test_every_subject_draws_what_it_says(subject: Subject) -> None:
    assert subject.size_px == SIZE_PX
    assert set(subject.conditions) >= {"normal", "dr2"}
    for condition in ("normal", "dr2"):
        images_NSSC = subject.images(condition, 6, seed=0)
        assert images_NSSC.shape == (6, SIZE_PX, SIZE_PX, 3)
        assert images_NSSC.dtype == np.uint8
        assert len(np.unique(images_NSSC.reshape(6, -1), axis=0)) == 6


def test_the_same_seed_gives_the_same_images(subject: Subject) -> None:
    one, two, other = (subject.images("dr2", 6, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_identities_say_what_was_evaluated(run: Path, drawn_folder: Path, tmp_path: Path) -> None:
    found = {
        kind: made(kind, run, drawn_folder, tmp_path).identity
        for kind in ("network", "voted", "folder")
    }
    kinds = [identity.kind for identity in found.values()]
    assert kinds == ["vae", "voted phantoms", "images"]
    for kind, file in (("network", WEIGHTS_FILE), ("voted", POPULATION_FILE)):
        content = (RunFolder(run).generator / file).read_bytes()
        assert found[kind].digest == hashlib.sha256(content).hexdigest()
        assert found[kind].study_id == "retina"
        assert found[kind].study_hash == STUDY.study_hash
        assert found[kind].facts == {"rounds": 7}
    assert found["folder"].study_id == found["folder"].study_hash == ""
    assert len(found["folder"].digest) == 64


def test_a_generator_may_be_named_without_its_run(run: Path, tmp_path: Path) -> None:
    generator = RunFolder(run).generator
    for phantoms, kind in ((False, NetworkSubject), (True, VotedSubject)):
        found = subject_of(generator, phantoms=phantoms, size_px=64, cache=tmp_path)
        assert isinstance(found, kind)
        # A generator has a side of its own.
        assert found.size_px == SIZE_PX


def test_left_eyes_of_a_network_are_mirrored(run: Path) -> None:
    subject = NetworkSubject(RunFolder(run).generator)
    images_NSSC = subject.images("normal", MANY, 3)
    batches = list(subject.generator.draw("normal", MANY, 3))
    assert len(batches) > 1
    shown_NSSC = np.concatenate([batch.images_NSSC for batch in batches])
    eyes = [eye for batch in batches for eye in batch.eyes]
    assert set(eyes) == {"L", "R"}
    check_mirrored(images_NSSC, shown_NSSC, eyes)


def test_left_eyes_of_voted_phantoms_are_mirrored(run: Path) -> None:
    images_NSSC = VotedSubject(RunFolder(run).generator).images("dr2", MANY, 3)
    lineages = population().lineages(np.full(MANY, 1), 3)
    eyes = [eye_of(lineage) for lineage in lineages]
    assert set(eyes) == {"L", "R"}
    check_mirrored(images_NSSC, population().images(lineages, mirror_left=False), eyes)


def check_mirrored(
    images_NSSC: NDArray[np.uint8], shown_NSSC: NDArray[np.uint8], eyes: list[str]
) -> None:
    assert len(images_NSSC) == len(shown_NSSC) == len(eyes)
    for image_SSC, shown_SSC, eye in zip(images_NSSC, shown_NSSC, eyes, strict=True):
        np.testing.assert_array_equal(image_SSC, shown_SSC[:, ::-1] if eye == "L" else shown_SSC)


def test_left_eyes_of_a_folder_are_mirrored(drawn_folder: Path, tmp_path: Path) -> None:
    subject = made("folder", tmp_path, drawn_folder, tmp_path)
    lit_NSS = np.concatenate([subject.images(name, 99, 0) for name in subject.conditions])
    # The disc, the brightest part, is on the right of a right eye.
    brightness_S = lit_NSS.mean(axis=(0, 1, 3))
    assert brightness_S[SIZE_PX // 2 :].mean() > brightness_S[: SIZE_PX // 2].mean() + 3


def test_a_folder_gives_each_image_once_and_no_more_than_it_has() -> None:
    pixels_NSSC = np.arange(12, dtype=np.uint8)[:, None, None, None] + np.zeros(
        (12, 8, 8, 3), np.uint8
    )
    names = ("amd",) * 5 + ("normal",) * 7
    folder = FolderSubject(ImageSet(pixels_NSSC, names, tuple(map(str, range(12)))), "d" * 64)
    chosen = folder.images("normal", 4, 0)[:, 0, 0, 0]
    assert len(set(chosen.tolist())) == 4
    assert set(chosen.tolist()) <= set(range(5, 12))
    assert sorted(folder.images("amd", 99, 0)[:, 0, 0, 0].tolist()) == list(range(5))


def test_a_draw_says_of_which_condition_each_image_is(run: Path) -> None:
    subject = NetworkSubject(RunFolder(run).generator)
    steps: list[tuple[int, int]] = []
    counts = {"normal": 3, "dr2": 5}
    found = draw(subject, counts, 4, lambda done, total: steps.append((done, total)))
    assert found.conditions_N == ("normal",) * 3 + ("dr2",) * 5
    np.testing.assert_array_equal(found.images_NSSC[3:], subject.images("dr2", 5, 4))
    # Each image is its own patient.
    assert found.patient_count == 8
    assert steps == [(3, 8), (8, 8)]


def test_what_cannot_be_evaluated_is_refused(run: Path, drawn_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to evaluate"):
        subject_of(tmp_path, phantoms=False, size_px=SIZE_PX, cache=tmp_path)
    with pytest.raises(RunError, match="--phantoms was given with a folder of images"):
        subject_of(drawn_folder, phantoms=True, size_px=SIZE_PX, cache=tmp_path)
    generator = tmp_path / "generator"
    generator.mkdir()
    for file in RunFolder(run).generator.iterdir():
        if file.name != POPULATION_FILE:
            (generator / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="no whole population of phantoms"):
        subject_of(generator, phantoms=True, size_px=SIZE_PX, cache=tmp_path)
    (generator / "model.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ModelError):
        subject_of(generator, phantoms=False, size_px=SIZE_PX, cache=tmp_path)


_SHARES = st.dictionaries(
    st.sampled_from(["normal", "dr1", "dr2", "amd", "glaucoma"]), st.floats(0.01, 1e3), min_size=1
)


@given(_SHARES, st.integers(0, 10_000), st.integers(0, 500), st.floats(0.1, 10))
def test_the_mix_is_that_of_the_shares_and_least_of_each(
    shares: dict[str, float], total: int, least: int, scale: float
) -> None:
    found = mixed_counts(shares, total, least)
    assert list(found) == list(shares)
    whole = sum(shares.values())
    for name, count in found.items():
        assert isinstance(count, int)
        assert count >= least
        exact = total * shares[name] / whole
        assert abs(count - exact) <= 0.5 + 1e-6 or count == least
    by_shares = mixed_counts(shares, total, 0)
    # Each is rounded by itself.
    assert abs(sum(by_shares.values()) - total) <= len(shares) / 2
    assert all(found[name] == max(count, least) for name, count in by_shares.items())
    scaled = mixed_counts({name: scale * share for name, share in shares.items()}, total, 0)
    assert all(abs(scaled[name] - by_shares[name]) <= 1 for name in shares)
