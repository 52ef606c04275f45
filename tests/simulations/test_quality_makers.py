"""Every row of the quality benchmark can be made, on two hospitals small enough for a test."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fundusgen.data.conditions import CONDITIONS
from fundusgen.data.patients import PatientDataset
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.population import collection_phantom
from fundusgen.phantom.render import render_as_right
from fundusgen.study import Study
from fundusgen.training import vote_space
from simulations.benchmarks import (
    budget_share,
    quality_gan_makers,
    quality_makers,
    quality_stages,
)
from simulations.benchmarks.quality_context import Context
from simulations.benchmarks.quality_rows import ROWS

SIZE_PX = 32
LABELS = PHANTOM_CONDITIONS * 2


def hospital(seed: int) -> PatientDataset:
    """A patient of each condition."""
    images_NSSC = np.stack(
        [
            render_as_right(collection_phantom(number, seed, PHANTOM_CONDITIONS), SIZE_PX)
            for number in range(len(PHANTOM_CONDITIONS))
        ]
    )
    places_N = np.array([CONDITIONS.index(name) for name in PHANTOM_CONDITIONS], dtype=np.int64)
    return PatientDataset(images_NSSC, places_N, [f"{seed}-{name}" for name in PHANTOM_CONDITIONS])


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    train = {"one": hospital(1), "other": hospital(2)}
    return Context(train, SIZE_PX, LABELS, tmp_path_factory.mktemp("work"))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies with all their stages, and as little of each as there can be."""
    monkeypatch.setattr(vote_space, "_PHANTOMS", 64)
    monkeypatch.setattr(vote_space, "_STEPS", 4)
    monkeypatch.setattr(quality_gan_makers, "_ROUNDS", 2)
    study_of = quality_stages.study_of

    def small(*arguments: Any, **named: Any) -> Study:
        study = study_of(*arguments, **named)
        content = study.model_dump(mode="json")
        content["model"] |= {"width": 4, "latent": 4}
        if study.model.kind == "gan":
            content["model"] |= {"discriminator_width": 4, "generator_steps": 1,
                                 "generator_batch": 4}  # fmt: skip
        if study.prior:
            content["prior"] |= {"phantoms": 16, "steps": 2, "batch": 4}
        if votes := content["stages"]["votes"]:
            votes |= {"rounds": 1, "candidates": 44, "refit_phantoms": 16}
            votes["refit_steps"] = min(2, votes["refit_steps"])
        content["evaluation"] |= {"samples_per_condition": 1}
        if study.dpsgd_steps:
            content["federation"]["rounds"] = 2
        return Study.model_validate(content)

    for module in (quality_stages, quality_makers, quality_gan_makers):
        monkeypatch.setattr(module, "study_of", small)


def made(context: Context, row: str, epsilon: float, seed: int = 0) -> NDArray[np.uint8]:
    kind = ROWS[row]
    return kind.make(context, epsilon if kind.private else None, seed)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_a_picture_for_each_label(context: Context, row: str) -> None:
    images_NSSC = made(context, row, 8.0)
    assert images_NSSC.shape == (len(LABELS), SIZE_PX, SIZE_PX, 3)
    assert images_NSSC.dtype == np.uint8
    # Some networks of two steps draw nearly one colour; nothing may draw nothing.
    assert images_NSSC.std() > 0


def test_another_seed_is_another_study(context: Context) -> None:
    assert (made(context, "votes", 8.0) != made(context, "votes", 8.0, seed=5)).any()


def test_rows_that_differ_in_the_model_alone_share_their_votes(context: Context) -> None:
    made(context, "votes", 8.0, seed=5)
    known = {path.name for path in (context.work_dir / "ballots").iterdir()}
    made(context, "votes_refit", 8.0, seed=5)
    made(context, "gan_votes", 8.0, seed=5)
    assert {path.name for path in (context.work_dir / "ballots").iterdir()} == known


def test_pooled_hospitals_are_all_patients_once(context: Context) -> None:
    pooled = context.pooled()
    (everyone,) = pooled.train.values()
    assert len(everyone) == sum(len(site) for site in context.train.values())
    assert made(pooled, "votes", 8.0, seed=7).shape[0] == len(LABELS)


@pytest.mark.parametrize("model", budget_share.MODELS)
def test_a_share_of_the_budget_is_what_the_votes_may_cost(context: Context, model: str) -> None:
    study = budget_share.MODELS[model](context, 8.0, 0, 0.6).study
    assert study.model.kind == model
    assert study.privacy.votes_share == 0.6
    assert study.dpsgd
    assert study.votes
