from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fundusgen.errors import ModelError
from fundusgen.models.factory import build_model
from fundusgen.models.generator import Generator, save_generator
from fundusgen.study import Study

STUDY = Study.model_validate(
    {
        "study_id": "t",
        "conditions": ["normal", "amd"],
        "image_size": 32,
        "model": {"width": 4, "latent": 5},
        "privacy": {"target_epsilon": 8},
        "federation": {"rounds": 1},
    }
)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    weights = {
        # A model that was not trained draws nothing yet.
        name: (value.numpy() + 0.1 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in build_model(STUDY).state_dict().items()
    }
    save_generator(tmp_path / "generator", STUDY, weights, {"rounds": 1})
    return tmp_path / "generator"


def drawn(folder, condition: str, count: int, seed: int) -> np.ndarray:
    batches = Generator.load(folder).draw(condition, count, seed)
    return np.concatenate([batch.images_NSSC for batch in batches])


def test_a_seed_gives_the_same_images_again_and_another_seed_others(folder) -> None:
    one = drawn(folder, "amd", 5, 1)
    assert one.shape == (5, 32, 32, 3)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, drawn(folder, "amd", 5, 1))
    assert (one != drawn(folder, "amd", 5, 2)).any()


def test_a_larger_count_begins_with_the_images_of_a_smaller_one(folder) -> None:
    np.testing.assert_array_equal(drawn(folder, "amd", 130, 1)[:70], drawn(folder, "amd", 70, 1))


def test_right_and_left_eyes_are_drawn_alike_often_and_say_which_they_are(folder) -> None:
    eyes = [eye for batch in Generator.load(folder).draw("amd", 200, 3) for eye in batch.eyes]
    assert len(eyes) == 200
    assert 70 < eyes.count("L") < 130
    assert set(eyes) == {"L", "R"}


def test_images_of_two_conditions_differ(folder) -> None:
    assert (drawn(folder, "amd", 2, 1) != drawn(folder, "normal", 2, 1)).any()


def test_an_unknown_condition_is_an_error_that_names_the_known_ones(folder) -> None:
    with pytest.raises(ModelError, match="normal, amd"):
        next(Generator.load(folder).draw("dr3", 1, 0))


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "no json", "other format"])
def test_a_damaged_generator_is_an_error_that_says_so(folder, damage: str) -> None:
    weights, model = folder / "generator.safetensors", folder / "model.json"
    if damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "no json":
        model.unlink()
    else:
        model.write_text(model.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(ModelError):
        Generator.load(folder)


def test_plans_drawn_by_threads_in_any_order_give_the_images_of_a_plain_loop(folder) -> None:
    generator = Generator.load(folder)
    plans = list(generator.plans("amd", 70, 1))
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(generator.drawn, reversed(plans)))[::-1]
    images = np.concatenate([batch.images_NSSC for batch in batches])
    np.testing.assert_array_equal(images, drawn(folder, "amd", 70, 1))
