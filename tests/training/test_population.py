"""The phantoms that won a vote, as a generator."""

import json
from dataclasses import replace

import numpy as np
import pytest
from small_votes import votes_study

from fundusgen.errors import ModelError
from fundusgen.training.appearance import NUMBERS, Development
from fundusgen.training.evolution import Parents, first_generation
from fundusgen.training.population import (
    POPULATION_FILE,
    VotedPopulation,
    eye_of,
    load_population,
    save_population,
)


def population(*, elected: list[int]) -> VotedPopulation:
    study = votes_study()
    generation = first_generation(study)
    shares_N = np.zeros(len(generation.lineages))
    shares_N[elected] = 1.0
    return VotedPopulation(study.conditions, study.image_size, 0.1, Parents(generation, shares_N))


def test_every_phantom_that_is_drawn_descends_from_a_winner_of_its_condition() -> None:
    drawn_from = population(elected=[0, 1, 2])
    places_N = np.array([0, 1, 0, 1, 0])
    lineages = drawn_from.lineages(places_N, seed=4)
    numbers = {0: {0, 2}, 1: {1}}
    for place, lineage in zip(places_N, lineages, strict=True):
        assert lineage.number in numbers[int(place)]
        assert len(lineage.variations) == 1


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    drawn_from = population(elected=[0, 1, 2, 3])
    few, many = np.array([1, 0, 1]), np.array([1, 0, 1, 1, 0])
    assert drawn_from.lineages(many, seed=9)[:3] == drawn_from.lineages(few, seed=9)


def test_another_seed_draws_other_phantoms() -> None:
    drawn_from = population(elected=[0, 1])
    places_N = np.array([0, 1])
    assert drawn_from.lineages(places_N, 1) != drawn_from.lineages(places_N, 2)


def test_a_population_is_read_as_it_was_written(tmp_path) -> None:
    written = population(elected=[0, 1, 5])
    save_population(tmp_path, written)
    read = load_population(tmp_path)
    assert read.conditions == written.conditions
    assert read.parents.generation.lineages == written.parents.generation.lineages
    assert np.array_equal(read.parents.shares_N, written.parents.shares_N)
    lineages = read.lineages(np.array([0, 1]), seed=0)
    assert np.array_equal(read.images(lineages), written.images(lineages))


def test_left_eyes_are_mirrored_for_models_and_left_as_they_are_for_people() -> None:
    drawn_from = population(elected=[0, 1, 2, 3])
    lineages = drawn_from.lineages(np.array([0, 1] * 6), seed=3)
    as_right, as_is = (drawn_from.images(lineages, mirror_left=way) for way in (True, False))
    eyes = [eye_of(lineage) for lineage in lineages]
    assert set(eyes) == {"L", "R"}
    for eye, right, shown in zip(eyes, as_right, as_is, strict=True):
        assert np.array_equal(right, shown[:, ::-1] if eye == "L" else shown)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "{",
        lambda text: text.replace('"seed"', '"sed"'),
        lambda text: json.dumps({**json.loads(text), "simulator": "0"}),
        lambda text: json.dumps({**json.loads(text), "format": 1}),
    ],
    ids=["cut short", "key", "other simulator", "other format"],
)
def test_a_population_that_cannot_be_drawn_as_it_was_is_refused(tmp_path, spoil) -> None:
    save_population(tmp_path, population(elected=[0, 1]))
    path = tmp_path / POPULATION_FILE
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ModelError, match="population"):
        load_population(tmp_path)


def test_a_development_is_written_and_read_and_what_is_none_is_refused(tmp_path) -> None:
    made = Development(np.full(NUMBERS, 1.1), np.linspace(-0.4, 0.4, NUMBERS))
    written = replace(population(elected=[0, 1]), development=made)
    save_population(tmp_path, written)
    lineages = written.lineages(np.array([0, 1]), seed=3)
    developed = load_population(tmp_path).images(lineages)
    assert np.array_equal(developed, written.images(lineages))
    plain = replace(written, development=None).images(lineages)
    assert not np.array_equal(developed, plain)
    path = tmp_path / POPULATION_FILE
    whole = json.loads(path.read_text())
    for slopes in ([1.0], [float("nan")] * NUMBERS, [1e300] * NUMBERS, [10**400] * NUMBERS, "x"):
        path.write_text(json.dumps({**whole, "development": {
            "slope_A": slopes, "offset_A": [0.0] * NUMBERS}}))  # fmt: skip
        with pytest.raises(ModelError, match="no whole population"):
            load_population(tmp_path)
    # Written before there were developments.
    path.write_text(
        json.dumps({**{k: v for k, v in whole.items() if k != "development"}, "format": 1})
    )
    with pytest.raises(ModelError, match="has format 1"):
        load_population(tmp_path)


def test_a_condition_that_nobody_voted_on_is_named() -> None:
    with pytest.raises(ModelError, match="'glaucoma'"):
        population(elected=[0]).place("glaucoma")
