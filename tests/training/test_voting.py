"""Whom a patient votes for, and what a poll must be.

N candidates, D features, M images of a patient, K choices of an image.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from small_votes import (
    ASKS_BOTH,
    CANDIDATES,
    MALFORMED,
    NEAREST,
    NoNoise,
    asked_with,
    votes_study,
)
from torch import Tensor

from fundusgen.data.patients import PatientDataset
from fundusgen.errors import ModelError, PrivacyError
from fundusgen.federation.weights import Weights
from fundusgen.models.encoder import ParameterEncoder
from fundusgen.phantom.population import phantom_images
from fundusgen.phantom.reading import PARAMETERS
from fundusgen.privacy.moments import statement
from fundusgen.privacy.votes import NOBODY, ballot, counted
from fundusgen.training.appearance import NUMBERS, Units, appearance_of
from fundusgen.training.poll import APPEARANCE, VOTES, load_poll
from fundusgen.training.voting import (
    PreparedVote,
    cast_votes,
    choices,
    contribution,
    prepare_vote,
)

CPU = torch.device("cpu")
# Images of each patient; the last patients' conditions are such that nobody stands for them.
IMAGES = (1, 2, 5, 1, 17, 40, 1, 2)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    images, _ = phantom_images(sum(IMAGES), 32, 6, ["normal", "amd", "dr4"])
    return images


def patients(pixels: np.ndarray, conditions: int = 2) -> PatientDataset:
    owners = [f"p{patient}" for patient, count in enumerate(IMAGES) for _ in range(count)]
    return PatientDataset(pixels, np.arange(len(pixels)) % conditions, owners)


def without(dataset: PatientDataset, patient: int) -> PatientDataset:
    others = [n for n in range(dataset.image_count) if n not in dataset.images_of(patient)]
    return dataset.subset(np.array(others, dtype=np.int64))


def vote(
    dataset: PatientDataset, arrays: Weights | None = None, *, noise: object = None, **study: object
) -> PreparedVote:
    chosen = votes_study(**study)
    return prepare_vote(
        load_poll(chosen, arrays or asked_with()),
        dataset,
        noise_multiplier=2.0,
        noise=noise or NoNoise(),  # type: ignore[arg-type]
        device=CPU,
    )


def ballots(prepared: PreparedVote) -> dict[str, bytes]:
    return {
        name: ballot(choices(prepared, place), prepared.settings).tobytes()
        for place, name in enumerate(prepared.patients.patient_ids)
    }


def exact_total(prepared: PreparedVote) -> list[Fraction]:
    total = [Fraction(0)] * CANDIDATES
    for place in range(len(prepared.patients)):
        one = counted(ballot(choices(prepared, place), prepared.settings), prepared.settings)
        total = [sum_ + Fraction(float(vote)) for sum_, vote in zip(total, one, strict=True)]
    return total


def test_an_image_votes_for_the_candidates_nearest_to_it_among_its_condition(pixels) -> None:
    prepared = vote(patients(pixels))
    poll, dataset = prepared.poll, prepared.patients
    for patient in range(len(dataset)):
        chosen_MK = choices(prepared, patient)
        assert chosen_MK.shape == (len(dataset.images_of(patient)), NEAREST)
        for image, chosen_K in zip(dataset.images_of(patient), chosen_MK, strict=True):
            shown = torch.from_numpy(dataset.pixels(image[None])).permute(0, 3, 1, 2)
            with torch.inference_mode():
                read_D = poll.encoder(shown.float() / 127.5 - 1)[0].numpy()
            allowed = [n for n in range(CANDIDATES) if n % 2 == dataset.conditions_N[image]]
            by_distance = sorted(
                allowed, key=lambda n: float(np.linalg.norm(poll.features_ND[n] - read_D))
            )
            assert chosen_K.tolist() == by_distance[:NEAREST]


def test_a_candidate_that_is_the_image_itself_is_chosen_first(pixels) -> None:
    dataset = patients(pixels)
    blank = vote(dataset)
    with torch.inference_mode():
        shown = torch.from_numpy(pixels[:CANDIDATES]).permute(0, 3, 1, 2).float() / 127.5 - 1
        features_ND = blank.poll.encoder(shown.contiguous()).numpy()
    prepared = vote(dataset, asked_with(features_ND=features_ND))
    first = [choices(prepared, patient)[:, 0] for patient in range(len(dataset))]
    assert np.concatenate(first)[:CANDIDATES].tolist() == list(range(CANDIDATES))


def test_where_fewer_candidates_stand_than_may_be_chosen_all_of_them_are(pixels) -> None:
    conditions_N = np.array([1] * (CANDIDATES - 2) + [0, 0])
    prepared = vote(patients(pixels), asked_with(conditions_N=conditions_N))
    chosen_MK = choices(prepared, 2)
    for image, chosen_K in zip(prepared.patients.images_of(2), chosen_MK, strict=True):
        if prepared.patients.conditions_N[image] == 0:
            assert sorted(chosen_K) == [NOBODY, CANDIDATES - 2, CANDIDATES - 1]
        else:
            assert NOBODY not in chosen_K


def test_an_image_of_a_condition_that_nobody_stands_for_votes_for_nobody(pixels) -> None:
    prepared = vote(patients(pixels), asked_with(conditions_N=np.zeros(CANDIDATES)))
    for patient in range(len(prepared.patients)):
        images = prepared.patients.images_of(patient)
        blank_M = (choices(prepared, patient) == NOBODY).all(axis=1)
        np.testing.assert_array_equal(blank_M, prepared.patients.conditions_N[images] == 1)
    assert sum(exact_total(prepared)) > 0


def test_a_ballot_depends_on_nobody_else_to_the_last_bit(pixels) -> None:
    dataset = patients(pixels)
    everyone = ballots(vote(dataset))
    for patient, name in enumerate(dataset.patient_ids):
        alone = dataset.subset(dataset.images_of(patient))
        assert ballots(vote(alone)) == {name: everyone[name]}
        others = ballots(vote(without(dataset, patient)))
        assert others == {key: value for key, value in everyone.items() if key != name}


def test_the_order_of_patients_changes_no_bit_of_the_tally(pixels) -> None:
    dataset = patients(pixels)
    order = [image for patient in (5, 0, 7, 3, 1, 6, 2, 4) for image in dataset.images_of(patient)]
    shuffled = dataset.subset(np.array(order))
    assert shuffled.patient_ids != dataset.patient_ids
    first, second = (cast_votes(vote(data))[VOTES] for data in (dataset, shuffled))
    assert first.tobytes() == second.tobytes()


HOSTILE: dict[str, Callable[[], Weights]] = {
    "honest": asked_with,
    "all alike": lambda: asked_with(features_ND=np.zeros((CANDIDATES, len(PARAMETERS)))),
    "huge features": lambda: asked_with(
        features_ND=np.full((CANDIDATES, len(PARAMETERS)), np.finfo(np.float32).max)
    ),
    "features of both signs": lambda: asked_with(
        features_ND=np.finfo(np.float32).max
        * np.sign(np.random.default_rng(1).normal(size=(CANDIDATES, len(PARAMETERS))))
    ),
    "one condition": lambda: asked_with(conditions_N=np.zeros(CANDIDATES)),
    "overflowing encoder": lambda: asked_with(scale=1e12),
    "dead encoder": lambda: asked_with(scale=0.0),
    "tiny encoder": lambda: asked_with(scale=1e-30),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_any_one_patient_moves_the_tally_by_1_at_most_whatever_the_server_asks(
    pixels, kind: str
) -> None:
    dataset = patients(pixels, conditions=2)
    arrays = HOSTILE[kind]()
    everyone = exact_total(vote(dataset, arrays))
    for patient in range(len(dataset)):
        others = exact_total(vote(without(dataset, patient), arrays))
        moved = sum((one - other) ** 2 for one, other in zip(everyone, others, strict=True))
        assert moved <= 1


UNITS: dict[str, tuple[float, float]] = {
    "honest": (0.0, 1.0),
    "next to nothing": (0.0, 1e-38),
    "far away": (3e38, 1e-38),
    "huge": (0.0, 3e38),
    # Values too large to be squared: the same for everybody, whatever their photographs.
    "silent": (3e38, 1e-45),
}


@pytest.mark.parametrize("kind", UNITS)
def test_ballot_and_statement_of_one_patient_move_the_reply_by_1_at_most_in_whatever_units(
    pixels, kind: str
) -> None:
    mean, deviation = UNITS[kind]
    asked = asked_with(units=Units(np.full(NUMBERS, mean), np.full(NUMBERS, deviation)))
    both = {"stages": {"votes": ASKS_BOTH, "dpsgd": None}}
    dataset = patients(pixels)

    def total(data: PatientDataset) -> list[Fraction]:
        prepared = vote(data, asked, **both)
        sums = [Fraction(0)] * (CANDIDATES + 2 * NUMBERS)
        for place in range(len(data)):
            one = counted(contribution(prepared, place), prepared.whole)
            sums = [sum_ + Fraction(float(said)) for sum_, said in zip(sums, one, strict=True)]
        return sums

    everyone = total(dataset)
    for patient in range(len(dataset)):
        others = total(without(dataset, patient))
        moved = sum((one - other) ** 2 for one, other in zip(everyone, others, strict=True))
        assert moved <= 1
        # Of which the statement has its share, unless all are silent in such units.
        of_statement = zip(everyone[CANDIDATES:], others[CANDIDATES:], strict=True)
        said = float(sum((one - other) ** 2 for one, other in of_statement))
        assert said == 0 if kind == "silent" else 1e-4 < said <= 0.3
    reply = cast_votes(vote(dataset, asked, **both))
    released = np.concatenate([reply[VOTES], reply[APPEARANCE]])
    np.testing.assert_allclose(released, [float(sum_) for sum_ in everyone], atol=1e-4)


def hostile_units(dataset: PatientDataset) -> Units:
    """Units in which the last bit of one patient's appearance is all of their statement."""
    first = appearance_of(dataset.pixels(dataset.images_of(5)))[0]
    return Units(first.astype(np.float32).astype(np.float64), np.full(NUMBERS, 1e-38))


def test_what_a_patient_contributes_depends_on_nobody_else_to_the_last_bit(pixels) -> None:
    dataset = patients(pixels)
    asked = asked_with(units=hostile_units(dataset))
    both = {"stages": {"votes": ASKS_BOTH, "dpsgd": None}}

    def said(data: PatientDataset) -> dict[str, bytes]:
        prepared = vote(data, asked, **both)
        return {
            name: contribution(prepared, place).tobytes()
            for place, name in enumerate(data.patient_ids)
        }

    everyone = said(dataset)
    for patient, name in enumerate(dataset.patient_ids):
        alone = dataset.subset(dataset.images_of(patient))
        assert said(alone) == {name: everyone[name]}
        others = {key: value for key, value in everyone.items() if key != name}
        assert said(without(dataset, patient)) == others


def test_the_order_of_patients_changes_no_bit_of_votes_and_statements(pixels) -> None:
    dataset = patients(pixels)
    order = [image for patient in (5, 0, 7, 3, 1, 6, 2, 4) for image in dataset.images_of(patient)]
    asked = asked_with(units=hostile_units(dataset))
    both = {"stages": {"votes": ASKS_BOTH, "dpsgd": None}}
    first, second = (
        cast_votes(vote(data, asked, **both)) for data in (dataset, dataset.subset(np.array(order)))
    )
    for name in (VOTES, APPEARANCE):
        assert first[name].tobytes() == second[name].tobytes()


def test_a_statement_is_made_of_all_images_of_a_patient_and_of_no_other_s(pixels) -> None:
    units = Units(np.zeros(NUMBERS), np.ones(NUMBERS))
    prepared = vote(
        patients(pixels), asked_with(units=units), stages={"votes": ASKS_BOTH, "dpsgd": None}
    )
    for patient in range(len(prepared.patients)):
        images = prepared.patients.pixels(prepared.patients.images_of(patient))
        said = contribution(prepared, patient)[CANDIDATES:]
        expected = np.sqrt(0.3) * statement(appearance_of(images))
        np.testing.assert_allclose(said, expected, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_units_that_are_not_above_zero_are_refused(value: float) -> None:
    asked = asked_with(units=Units(np.zeros(NUMBERS), np.full(NUMBERS, value)))
    study = votes_study(stages={"votes": ASKS_BOTH, "dpsgd": None})
    with pytest.raises(ModelError, match="above zero"):
        load_poll(study, asked)


def test_a_poll_without_the_units_that_the_study_asks_in_is_refused() -> None:
    study = votes_study(stages={"votes": ASKS_BOTH, "dpsgd": None})
    with pytest.raises(ModelError, match=r"appearance\.deviation"):
        load_poll(study, asked_with())


def test_an_image_whose_features_overflow_votes_for_nobody_and_its_patient_s_others_do(
    pixels, monkeypatch
) -> None:
    """A server that chooses the encoder could else ask for one patient by their image."""
    read = ParameterEncoder.forward

    def overflows_on_black(self: ParameterEncoder, images: Tensor) -> Tensor:
        features = read(self, images)
        features[(images == -1).all(dim=(1, 2, 3)), 5] = float("nan")
        return features

    monkeypatch.setattr(ParameterEncoder, "forward", overflows_on_black)
    black = pixels.copy()
    dataset = patients(black)
    black[dataset.images_of(2)[1]] = 0
    black[dataset.images_of(3)] = 0
    prepared = vote(dataset)
    blank_M = (choices(prepared, 2) == NOBODY).all(axis=1)
    assert blank_M.tolist() == [False, True, False, False, False]
    assert (choices(prepared, 3) == NOBODY).all()
    assert np.isfinite(cast_votes(prepared)[VOTES]).all()


def test_the_time_that_distances_take_does_not_tell_a_condition(pixels, monkeypatch) -> None:
    """As many candidates are compared with every image, however few stand for its condition."""
    compared: list[int] = []
    argsort = np.argsort
    monkeypatch.setattr(
        np, "argsort", lambda a, **how: compared.append(len(a)) or argsort(a, **how)
    )
    prepared = vote(patients(pixels), asked_with(conditions_N=np.array([0] * 9 + [1])))
    for patient in range(len(prepared.patients)):
        choices(prepared, patient)
    assert compared == [CANDIDATES] * len(pixels)


def test_a_tally_is_the_sum_of_the_ballots_and_the_noise(pixels) -> None:
    class Ramp(NoNoise):
        def gaussian(self, shape: Sequence[int], standard_deviation: float) -> Tensor:
            assert standard_deviation == 2.0
            return torch.arange(shape[0], dtype=torch.float64)

    prepared = vote(patients(pixels), noise=Ramp())
    reply = cast_votes(prepared)
    assert set(reply) == {VOTES}
    expected = np.array([float(one) for one in exact_total(prepared)]) + np.arange(CANDIDATES)
    np.testing.assert_array_equal(reply[VOTES], expected.astype(np.float32))


def test_a_vote_of_no_patients_is_noise(pixels) -> None:
    nobody = patients(pixels).subset(np.empty(0, np.int64))
    np.testing.assert_array_equal(cast_votes(vote(nobody))[VOTES], np.zeros(CANDIDATES))


def test_a_vote_without_sound_noise_is_not_prepared(pixels) -> None:
    poll = load_poll(votes_study(), asked_with())
    with pytest.raises(PrivacyError):
        prepare_vote(
            poll, patients(pixels), noise_multiplier=0.0, noise=NoNoise(), device=CPU
        )  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_poll_that_does_not_fit_the_study_is_not_read(kind: str) -> None:
    with pytest.raises(ModelError, match="The poll that came in"):
        load_poll(votes_study(), MALFORMED[kind](asked_with()))


def test_a_poll_is_read_as_it_was_packed() -> None:
    features_ND = np.random.default_rng(1).normal(size=(CANDIDATES, len(PARAMETERS)))
    conditions_N = np.array([1, 0] * 5)
    arrays = asked_with(features_ND=features_ND, conditions_N=conditions_N)
    poll = load_poll(votes_study(), arrays)
    np.testing.assert_array_equal(poll.features_ND, features_ND.astype(np.float32))
    np.testing.assert_array_equal(poll.conditions_N, conditions_N)
    assert poll.conditions_N.dtype == np.int64
    assert poll.nearest == NEAREST
    assert not poll.encoder.training
    assert not any(parameter.requires_grad for parameter in poll.encoder.parameters())
    for name, value in poll.encoder.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), arrays[f"encoder.{name}"])
