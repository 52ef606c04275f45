"""Attacks on membership: the yardstick against slow versions, and the scores of each attack."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import gaussian_kde, mannwhitneyu, multivariate_normal
from sklearn.metrics import roc_auc_score, roc_curve

from fundusgen.errors import ModelError
from fundusgen.evaluation.generator_attacks import (
    Density,
    density_ratio_scores,
    distance_scores,
    generator_attacks,
    monte_carlo_scores,
)
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.membership import (
    Attack,
    OverImages,
    attack,
    aucs,
    patient_scores,
    true_positive_rates,
)
from fundusgen.evaluation.model_attacks import (
    bound_scores,
    discriminator_scores,
    model_attack,
)
from fundusgen.evaluation.patient_features import PatientFeatures
from fundusgen.models.factory import build_model
from fundusgen.models.gan import GAN
from fundusgen.models.generator import read_saved_generator, save_generator
from fundusgen.models.vae import VAE
from fundusgen.study import Study

Floats = NDArray[np.float64]

# Few values, so that there are many ties.
scores = st.integers(1, 30).flatmap(
    lambda n: arrays(np.float64, n, elements=st.integers(0, 6).map(float))
)


def judged(
    members: Sequence[float] | Floats, others: Sequence[float] | Floats, seed: int = 0
) -> Attack:
    rng = np.random.default_rng(seed)
    return attack(
        "a",
        np.array(members, float),
        range(len(members)),
        np.array(others, float),
        range(len(others)),
        rng,
    )


def study(kind: str, **model: int) -> Study:
    return Study.model_validate(
        {
            "study_id": "released",
            "conditions": ["amd", "normal"],
            "image_size": 32,
            "model": {"kind": kind, "width": 4, "latent": 4, **model},
            "stages": {"dpsgd": {}},
            "privacy": {"target_epsilon": 8},
            "federation": {"rounds": 1},
        }
    )


def pictures(count: int, seed: int, size_px: int = 32) -> ImageSet:
    images = np.random.default_rng(seed).integers(0, 256, (count, size_px, size_px, 3), np.uint8)
    conditions = tuple(("normal", "amd")[number % 2] for number in range(count))
    return ImageSet(images, conditions, tuple(f"{seed}/{number}" for number in range(count)))


@given(scores, scores)
def test_the_auc_is_that_of_scikit_learn(members_P: Floats, others_Q: Floats) -> None:
    truth = np.repeat([1, 0], [len(members_P), len(others_Q)])
    theirs = roc_auc_score(truth, np.concatenate([members_P, others_Q]))
    found = aucs(members_P, others_Q, np.ones((1, len(members_P))), np.ones((1, len(others_Q))))
    assert found[0] == pytest.approx(theirs)


@given(scores, scores, st.integers(0, 2**32 - 1))
def test_weights_are_repetitions(members_P: Floats, others_Q: Floats, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights_P = rng.multinomial(len(members_P), np.full(len(members_P), 1 / len(members_P)))
    weights_Q = rng.multinomial(len(others_Q), np.full(len(others_Q), 1 / len(others_Q)))
    repeated = np.repeat(members_P, weights_P), np.repeat(others_Q, weights_Q)
    for figure in (aucs, true_positive_rates):
        weighed = figure(
            members_P, others_Q, weights_P[None].astype(float), weights_Q[None].astype(float)
        )
        expected = figure(*repeated, np.ones((1, len(members_P))), np.ones((1, len(others_Q))))
        assert weighed == pytest.approx(expected)


@given(
    arrays(np.float64, 40, elements=st.integers(0, 30).map(float)),
    arrays(np.float64, st.integers(50, 350), elements=st.integers(0, 30).map(float)),
)
def test_the_true_positive_rate_is_on_the_curve_of_scikit_learn(
    members_P: Floats, others_Q: Floats
) -> None:
    truth = np.repeat([1, 0], [len(members_P), len(others_Q)])
    false, true, _ = roc_curve(truth, np.concatenate([members_P, others_Q]))
    found = true_positive_rates(members_P, others_Q, np.ones((1, 40)), np.ones((1, len(others_Q))))
    assert found[0] == pytest.approx(true[false <= 0.01 + 1e-9].max())


def test_one_of_a_hundred_is_one_per_cent() -> None:
    members = [1.5] * 5 + [0.5] * 5
    assert judged(members, [2.0] + [1.0] * 99).true_positive_rate.value == 0.5
    assert judged(members, [2.0] + [1.0] * 98).true_positive_rate.value == 0
    assert judged(members, [2.0] * 2 + [1.0] * 198).true_positive_rate.value == 0.5


def test_few_non_members_are_said_to_be_few() -> None:
    assert "99 non-members cannot show" in judged([1.0] * 10, [0.0] * 99).caveat
    assert judged([1.0] * 10, [0.0] * 100).caveat == ""


def test_a_perfect_attack_and_a_blind_one() -> None:
    perfect = judged([2, 3] * 20, [0, 1] * 60)
    assert perfect.auc.value == perfect.auc_upper == perfect.true_positive_rate.value == 1
    assert perfect.true_positive_upper == 1
    assert perfect.p_value < 1e-12
    assert perfect.succeeds
    blind = judged([1] * 40, [1] * 120)
    assert (blind.auc.value, blind.p_value, blind.true_positive_rate.value) == (0.5, 1, 0)
    assert not blind.succeeds
    # Nobody of 40 was named: up to 1 - 0.05^(1/40) may be, Clopper and Pearson 1934.
    assert blind.true_positive_upper == pytest.approx(1 - 0.05 ** (1 / 40))


def test_the_p_value_is_one_sided() -> None:
    rng = np.random.default_rng(0)
    low, high = list(rng.random(30)), list(0.3 + rng.random(40))
    theirs = mannwhitneyu(high, low, alternative="greater").pvalue
    assert judged(high, low).p_value == pytest.approx(theirs)
    assert judged(low, high).p_value > 0.95


def test_intervals_cover_and_honest_scores_are_seldom_accused() -> None:
    rng = np.random.default_rng(1)
    found = [judged(rng.random(30), rng.random(80), seed) for seed in range(150)]
    covered = np.mean([a.auc.interval[0] <= 0.5 <= a.auc.interval[1] for a in found])
    bounded = np.mean([a.auc_upper >= 0.5 for a in found])
    accused = np.mean([a.p_value < 0.05 for a in found])
    assert covered > 0.88
    assert bounded > 0.88
    assert accused < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


@pytest.mark.parametrize(("over_images", "expected"), [("max", [3, 5]), ("mean", [2, 4.5])])
def test_a_patient_has_one_score(over_images: OverImages, expected: list[float]) -> None:
    found = patient_scores(np.array([1.0, 5, 3, 4]), ["b", "a", "b", "a"], over_images)
    assert found.tolist() == expected


def test_more_photographs_of_a_patient_do_not_make_more_patients() -> None:
    rng = np.random.default_rng(2)
    members, others = rng.random(20) + 0.2, rng.random(60)
    once = judged(members, others)
    often = attack(
        "a",
        np.repeat(members, 9),
        list(np.repeat(np.arange(20), 9)),
        others,
        range(60),
        np.random.default_rng(0),
    )
    assert (often.members, often.non_members) == (20, 60)
    assert (often.auc.value, often.auc.interval) == (once.auc.value, once.auc.interval)
    assert often.p_value == once.p_value


def test_scores_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        judged([np.nan] * 20, [0.0] * 20)
    with pytest.raises(ValueError, match="at least 10"):
        judged([0.0] * 9, [0.0] * 20)


def test_monte_carlo_counts_generated_images_within_the_median_of_nearest_distances() -> None:
    rng = np.random.default_rng(3)
    x_ND, generated_MD = rng.standard_normal((41, 3)), rng.standard_normal((70, 3))
    distances_NM = cdist(x_ND, generated_MD)
    radius = np.median([row.min() for row in distances_NM])
    expected = [sum(d <= radius * (1 + 1e-12) for d in row) / 70 for row in distances_NM]
    np.testing.assert_allclose(monte_carlo_scores(x_ND, generated_MD), expected)


def test_distance_scores_are_negative_distances_less_the_reference() -> None:
    rng = np.random.default_rng(4)
    x_ND, generated_MD, reference_RD = (rng.standard_normal((n, 3)) for n in (20, 30, 40))
    plain = -cdist(x_ND, generated_MD).min(axis=1)
    np.testing.assert_allclose(distance_scores(x_ND, generated_MD), plain)
    calibrated = plain + cdist(x_ND, reference_RD).min(axis=1)
    np.testing.assert_allclose(distance_scores(x_ND, generated_MD, reference_RD), calibrated)


def test_the_density_ratio_is_that_of_scipy_where_both_can_be_made() -> None:
    """In one dimension, with sets of one size and unit variance, widths are the same."""
    rng = np.random.default_rng(5)
    half = rng.standard_normal(50)
    generated_M1, reference_R1 = half[:, None], -half[:, None]
    x_N1 = rng.standard_normal((30, 1))
    spread = np.concatenate([half, -half]).std()
    # SciPy's width is in units of a set's own deviation, with one degree of freedom less.
    width = 0.5 * 50 ** (-1 / 5) * spread / half.std(ddof=1)
    kernels = [gaussian_kde(centres, bw_method=width) for centres in (half, -half)]
    expected = kernels[0].logpdf(x_N1[:, 0]) - kernels[1].logpdf(x_N1[:, 0])
    found = density_ratio_scores(x_N1, generated_M1, reference_R1)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_gaussian_ratio_is_that_of_two_gaussians() -> None:
    rng = np.random.default_rng(6)
    mixing_DD = rng.standard_normal((3, 3))
    generated_MD = rng.standard_normal((500, 3)) @ mixing_DD + 1
    reference_RD = rng.standard_normal((400, 3)) @ mixing_DD
    x_ND = rng.standard_normal((20, 3)) @ mixing_DD
    fitted = [
        multivariate_normal(side.mean(axis=0), np.cov(side, rowvar=False))
        for side in (generated_MD, reference_RD)
    ]
    expected = fitted[0].logpdf(x_ND) - fitted[1].logpdf(x_ND)
    found = density_ratio_scores(x_ND, generated_MD, reference_RD, density="gaussian")
    # The ridge moves it a little.
    np.testing.assert_allclose(found, expected, atol=0.05)


@pytest.mark.parametrize("density", ["kernel", "gaussian"])
def test_a_collapsed_generator_can_be_attacked(density: Density) -> None:
    rng = np.random.default_rng(7)
    one_MD = np.ones((50, 4))
    x_ND, reference_RD = rng.standard_normal((30, 4)), rng.standard_normal((40, 4))
    found = density_ratio_scores(x_ND, one_MD, reference_RD, density=density)
    assert np.isfinite(found).all()


def test_without_a_reference_half_of_the_non_members_are_given_away() -> None:
    rng = np.random.default_rng(8)
    member, non_member = (
        PatientFeatures(rng.standard_normal((2 * n, 5)), list(np.repeat(np.arange(n), 2)))
        for n in (25, 40)
    )
    generated_MD = rng.standard_normal((100, 5))
    found = generator_attacks(generated_MD, member, non_member, rng, replicates=20)
    assert {a.name: a.non_members for a in found} == {
        "monte-carlo": 40,
        "distance": 40,
        "calibrated-distance": 20,
        "density-ratio": 20,
        "gaussian-ratio": 20,
    }
    assert {a.members for a in found} == {25}
    known = generator_attacks(
        generated_MD, member, non_member, rng, reference_RD=generated_MD, replicates=20
    )
    assert {a.non_members for a in known} == {40}
    # Known images that are the generated ones calibrate everything away.
    assert [a.auc.value for a in known[2:]] == [0.5] * 3


def test_calibration_finds_copies_of_the_unusual() -> None:
    """Members in a thin region: the plain distance takes the crowd for members."""
    rng = np.random.default_rng(9)

    def patients(count: int) -> Floats:
        spread_N1 = np.repeat([0.1, 3], [count - count // 4, count // 4])[:, None]
        spread: Floats = rng.standard_normal((count, 3)) * spread_N1
        return spread

    member, non_member = patients(60), patients(200)
    generated = np.concatenate([patients(300), member[45:] + 1.0])
    found = generator_attacks(
        generated,
        PatientFeatures(member, range(60)),
        PatientFeatures(non_member, range(200)),
        rng,
        reference_RD=patients(300),
    )
    auc = {a.name: a.auc.value for a in found}
    assert auc["calibrated-distance"] > auc["distance"]


def test_the_discriminators_score_is_its_mean_vote_for_the_condition() -> None:
    settings = study("gan", discriminator_width=8)
    model = build_model(settings)
    assert isinstance(model, GAN)
    images = pictures(70, 1)
    found = discriminator_scores(settings, model, images)
    for number in (0, 1, 69):
        image = torch.from_numpy(images.images_NSSC[number]).permute(2, 0, 1)[None] / 127.5 - 1
        place = torch.tensor([["amd", "normal"].index(images.conditions_N[number])])
        vote = model.discriminator(image, place).mean()
        assert found[number] == pytest.approx(float(vote.detach()), abs=1e-5)


def test_the_bound_is_the_models_loss_averaged_over_noise() -> None:
    settings = study("vae")
    model = build_model(settings)
    assert isinstance(model, VAE)
    images = pictures(70, 2)
    found = bound_scores(settings, model, images, seed=3)
    noise_KZ = torch.randn(8, 4, generator=torch.Generator().manual_seed(3))
    image = torch.from_numpy(images.images_NSSC[69]).permute(2, 0, 1)[None] / 127.5 - 1
    losses = [float(model(image, torch.tensor([0]), z[None]).detach()) for z in noise_KZ]
    assert found[69] == pytest.approx(-np.mean(losses), rel=1e-4)
    np.testing.assert_array_equal(found, bound_scores(settings, model, images, seed=3))
    # Nobody's score depends on who else is scored.
    alone = bound_scores(settings, model, images.subset([69]), seed=3)
    assert alone[0] == pytest.approx(found[69], rel=1e-5)


@pytest.mark.parametrize(("kind", "name"), [("gan", "discriminator"), ("vae", "bound")])
def test_a_models_own_folder_is_attacked_by_what_its_family_has(
    kind: str, name: str, tmp_path: Path
) -> None:
    settings = study(kind)
    weights = {n: value.numpy() for n, value in build_model(settings).state_dict().items()}
    save_generator(tmp_path, settings, weights, {})
    whole = read_saved_generator(tmp_path).whole_model()
    assert whole is not None
    model = whole.model
    for n, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), weights[n])
    rng = np.random.default_rng(10)
    found = model_attack(settings, model, pictures(20, 3), pictures(30, 4), rng, replicates=50)
    assert (found.name, found.members, found.non_members) == (name, 20, 30)
    # Nothing was trained: there is nothing to find.
    assert found.p_value > 0.01


def test_photographs_that_the_model_does_not_know_are_refused() -> None:
    settings = study("gan")
    model = build_model(settings)
    assert isinstance(model, GAN)
    strange = ImageSet(pictures(1, 5).images_NSSC, ("glaucoma",), ("a",))
    for images in (strange, pictures(2, 6, size_px=64)):
        with pytest.raises(ModelError, match="leave out what it does not generate"):
            discriminator_scores(settings, model, images)
