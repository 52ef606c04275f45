"""The vote space: learned from phantoms alone, kept, and near for what looks alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_study import small_study

from fundusgen.federation.weights import Weights, digest
from fundusgen.models.encoder import ParameterEncoder
from fundusgen.phantom.reading import PARAMETERS
from fundusgen.study import Study
from fundusgen.training import vote_space as module
from fundusgen.training.phantoms import study_phantoms
from fundusgen.training.vote_space import encoded, vote_space

PHANTOMS, STEPS = 192, 90


@pytest.fixture(autouse=True)
def _small_and_on_one_thread(monkeypatch):
    monkeypatch.setattr(module, "_PHANTOMS", PHANTOMS)
    monkeypatch.setattr(module, "_STEPS", STEPS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def study(**changes: object) -> Study:
    stages = {"votes": {"candidates": 8}, "dpsgd": None}
    return small_study(**{"prior": {}, "stages": stages, "federation": {}, **changes})


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("cache")
    return folder


@pytest.fixture
def weights(cache) -> Weights:
    return vote_space(study(), cache)


def encoder_of(weights: Weights) -> ParameterEncoder:
    encoder = ParameterEncoder(32, len(PARAMETERS))
    encoder.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return encoder.eval()


def test_it_is_found_again_and_not_trained_twice(weights, cache, monkeypatch) -> None:
    monkeypatch.setattr(module, "_trained", lambda *_: pytest.fail("it was trained again"))
    assert digest(vote_space(study(seed=9, conditions=["dr2"]), cache)) == digest(weights)


def test_training_it_again_gives_the_same_weights(weights, tmp_path) -> None:
    reported: list[tuple[int, int]] = []
    with torch.random.fork_rng():
        torch.manual_seed(99)
        before = torch.random.get_rng_state()
        again = vote_space(study(), tmp_path, on_progress=lambda *at: reported.append(at))
        assert torch.equal(before, torch.random.get_rng_state())
    assert digest(again) == digest(weights)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    assert reported[-1] == (PHANTOMS + STEPS, PHANTOMS + STEPS)


@pytest.mark.parametrize("damage", [b"", b"torn", None])
def test_a_damaged_file_is_trained_anew_and_replaced(weights, cache, tmp_path, monkeypatch, damage):
    (kept,) = cache.iterdir()
    spoiled = tmp_path / kept.name
    if damage is not None:
        spoiled.write_bytes(damage)
    monkeypatch.setattr(module, "_trained", lambda *_: weights)
    assert digest(vote_space(study(), tmp_path)) == digest(weights)
    assert spoiled.read_bytes() == kept.read_bytes()


def test_other_sizes_and_other_code_are_other_spaces(monkeypatch) -> None:
    names = {module._digest(size) for size in (32, 64)}
    monkeypatch.setattr(module, "SIMULATOR_VERSION", -1)
    names |= {module._digest(size) for size in (32, 64)}
    assert len(names) == 4


def test_an_image_is_read_alike_whatever_else_is_read_with_it(weights) -> None:
    images, _ = study_phantoms(study(), 70, 4)
    encoder = encoder_of(weights)
    together = encoded(encoder, images)
    assert together.dtype == np.float32
    assert together.shape == (70, len(PARAMETERS))
    alone = np.concatenate([encoded(encoder, images[n : n + 1]) for n in range(70)])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_colour_is_read_off_phantoms_that_it_has_not_seen(weights) -> None:
    images, _ = study_phantoms(study(), 64, 77)
    read = encoded(encoder_of(weights), images)
    redness = images[..., 0].mean((1, 2)) - images[..., 1].mean((1, 2))
    red, green = (read[:, PARAMETERS.index(name)] for name in ("log_red", "log_green"))
    assert np.corrcoef(red - green, redness)[0, 1] > 0.3
    assert np.isfinite(read).all()


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_pictures_of_every_size_are_read(size: int) -> None:
    encoder = ParameterEncoder(size, len(PARAMETERS)).eval()
    images = np.zeros((2, size, size, 3), np.uint8)
    assert encoded(encoder, images).shape == (2, len(PARAMETERS))
