import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fundusgen.errors import ModelError
from fundusgen.models.factory import build_model
from fundusgen.models.generator import (
    MODEL_FILE,
    TRAINING_FILE,
    WEIGHTS_FILE,
    Generator,
    read_saved_generator,
    save_generator,
)
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


GAN_STUDY = Study.model_validate(
    {**STUDY.model_dump(), "model": {"kind": "gan", "width": 4, "latent": 5}}
)


def weights_of(study: Study, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        # A model that was not trained draws nothing yet.
        name: (value.numpy() + 0.1 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in build_model(study).state_dict().items()
    }


@pytest.fixture
def folder(tmp_path):
    save_generator(tmp_path / "generator", STUDY, weights_of(STUDY), {"rounds": 1})
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
        assert '"format": 2' in model.read_text()
        model.write_text(model.read_text().replace('"format": 2', '"format": 99'))
    with pytest.raises(ModelError):
        Generator.load(folder)


def test_plans_drawn_by_threads_in_any_order_give_the_images_of_a_plain_loop(folder) -> None:
    generator = Generator.load(folder)
    plans = list(generator.plans("amd", 70, 1))
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(generator.drawn, reversed(plans)))[::-1]
    images = np.concatenate([batch.images_NSSC for batch in batches])
    np.testing.assert_array_equal(images, drawn(folder, "amd", 70, 1))


@pytest.mark.parametrize(
    ("study", "draws", "trains"),
    [(STUDY, "decoder.", "encoder."), (GAN_STUDY, "generator.", "discriminator.")],
)
def test_what_only_training_needs_lies_apart_from_what_draws(
    study: Study, draws: str, trains: str, tmp_path: Path
) -> None:
    weights = weights_of(study)
    save_generator(tmp_path, study, weights, {})
    drawing, training = load_file(tmp_path / WEIGHTS_FILE), load_file(tmp_path / TRAINING_FILE)
    assert {name.partition(".")[0] + "." for name in drawing} == {draws}
    assert {name.partition(".")[0] + "." for name in training} == {trains}
    assert drawing.keys() | training.keys() == weights.keys()
    for name, array in (drawing | training).items():
        np.testing.assert_array_equal(array, weights[name])


@pytest.mark.parametrize("study", [STUDY, GAN_STUDY])
def test_a_generator_draws_the_same_without_what_only_training_needs(
    study: Study, tmp_path: Path
) -> None:
    weights = weights_of(study)
    save_generator(tmp_path, study, weights, {})
    (tmp_path / TRAINING_FILE).unlink()
    with_all = next(Generator(study, weights).draw("amd", 3, 1)).images_NSSC
    np.testing.assert_array_equal(drawn(tmp_path, "amd", 3, 1), with_all)
    assert len(np.unique(with_all)) > 10
    assert read_saved_generator(tmp_path).whole_model() is None


@pytest.mark.parametrize("study", [STUDY, GAN_STUDY])
def test_the_whole_model_is_read_from_both_files(study: Study, tmp_path: Path) -> None:
    weights = weights_of(study)
    save_generator(tmp_path, study, weights, {})
    whole = read_saved_generator(tmp_path).whole_model()
    assert whole is not None
    model = whole.model
    assert not model.training
    assert model.state_dict().keys() == weights.keys()
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), weights[name])


def test_a_generator_of_the_first_format_draws_and_is_whole(folder) -> None:
    images, now = drawn(folder, "amd", 3, 1), read_saved_generator(folder)
    weights = load_file(folder / WEIGHTS_FILE) | load_file(folder / TRAINING_FILE)
    known = now.whole_model()
    (folder / TRAINING_FILE).unlink()
    save_file(weights, folder / WEIGHTS_FILE)
    description = json.loads((folder / MODEL_FILE).read_text())
    (folder / MODEL_FILE).write_text(json.dumps({**description, "format": 1}))
    np.testing.assert_array_equal(drawn(folder, "amd", 3, 1), images)
    then = read_saved_generator(folder)
    # What is evaluated, and what leaves, is the same in both formats.
    assert (then.digest, then.draws, then.description) == (now.digest, now.draws, now.description)
    whole = then.whole_model()
    assert known is not None
    assert whole is not None
    assert whole.rest_digest == known.rest_digest
    for name, value in whole.model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), weights[name])


def test_what_does_not_belong_to_the_model_is_refused() -> None:
    weights = weights_of(STUDY)
    with pytest.raises(ModelError, match="do not fit"):
        Generator(STUDY, {**weights, "stranger": np.zeros(1, np.float32)})
    without = dict(weights)
    del without[next(name for name in weights if name.startswith("decoder."))]
    with pytest.raises(ModelError, match="do not fit"):
        Generator(STUDY, without)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("of another generator", "of another generator"),
        ("cut", "cannot be read"),
        ("a folder", "cannot be read"),
        ("unmarked", "of another generator"),
        ("has what draws", "of another generator"),
        ("incomplete", "do not fit"),
    ],
)
def test_a_rest_of_the_model_that_does_not_belong_is_refused_and_still_draws(
    folder, damage: str, said: str, tmp_path: Path
) -> None:
    rest = folder / TRAINING_FILE
    if damage == "of another generator":
        save_generator(tmp_path / "other", STUDY, weights_of(STUDY, seed=1), {})
        rest.write_bytes((tmp_path / "other" / TRAINING_FILE).read_bytes())
    elif damage == "cut":
        rest.write_bytes(rest.read_bytes()[:100])
    elif damage == "a folder":
        rest.unlink()
        rest.mkdir()
    elif damage == "unmarked":
        save_file(load_file(rest), rest)
    elif damage == "has what draws":
        digest = read_saved_generator(folder).digest
        both = load_file(rest) | load_file(folder / WEIGHTS_FILE)
        save_file(both, rest, {"belongs_to": digest})
    else:
        save_generator(folder, STUDY, dict(list(weights_of(STUDY).items())[:-1]), {})
    saved = read_saved_generator(folder)
    with pytest.raises(ModelError, match=said):
        saved.whole_model()
    assert drawn(folder, "amd", 1, 0).shape == (1, 32, 32, 3)


def test_a_generator_with_a_part_of_the_rest_is_not_taken_for_one_without(folder) -> None:
    weights, rest = load_file(folder / WEIGHTS_FILE), load_file(folder / TRAINING_FILE)
    name = next(iter(rest))
    save_file({**weights, name: rest[name]}, folder / WEIGHTS_FILE)
    (folder / TRAINING_FILE).unlink()
    with pytest.raises(ModelError, match="do not fit"):
        read_saved_generator(folder).whole_model()


def test_there_is_no_generator_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no whole generator"):
        read_saved_generator(tmp_path)
