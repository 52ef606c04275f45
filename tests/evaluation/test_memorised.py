"""The test of the tests: generators made to memorise are caught, honest ones are not.

Twenty phantom patients are learned by heart, without any privacy: by a VAE that also draws from
where it put them, which `settle` is never to be called for with patients; and by a discriminator.
The same networks are then asked about twenty other patients of the same kind, whom they have
never seen.

An honest generator is accused by one attack of twenty at 5 %; the phantoms here are fixed.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fundusgen.evaluation.copying import copying
from fundusgen.evaluation.generator_attacks import generator_attacks
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.membership import Attack
from fundusgen.evaluation.model_attacks import model_attack
from fundusgen.evaluation.patient_features import PatientFeatures
from fundusgen.models.factory import Model, build_model
from fundusgen.models.gan import GAN
from fundusgen.models.vae import VAE
from fundusgen.phantom.patients import draw_patient
from fundusgen.phantom.population import phantom_images
from fundusgen.phantom.render import render
from fundusgen.study import Study

Images = NDArray[np.uint8]

SIZE_PX = 32
MEMBERS, OUTSIDERS, DRAWN = 20, 120, 300
# Steps after which the networks are looked at.
VAE_STEPS, DISCRIMINATOR_STEPS = (15, 60, 240), (15, 50, 150)


@dataclass(frozen=True)
class Patients:
    """Phantom patients, one photograph each: learned, of the same kind, and all the others."""

    members: Images
    unseen: Images
    outsiders: Images
    fresh: Images


@pytest.fixture(scope="module")
def patients() -> Patients:
    images, _ = phantom_images(2 * MEMBERS + OUTSIDERS + DRAWN, SIZE_PX, 7, ("normal",))
    bounds = np.cumsum([MEMBERS, MEMBERS, OUTSIDERS])
    return Patients(*np.split(images, bounds))


@pytest.fixture(scope="module")
def vaes(patients: Patients) -> dict[int, VAE]:
    """The VAE after few, more and many steps of learning by heart."""
    model = build_model(study("vae"))
    assert isinstance(model, VAE)
    images, conditions = tensors(patients.members)
    draws = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    found = {}
    for step in range(1, VAE_STEPS[-1] + 1):
        noise = torch.randn(len(images), model.latent, generator=draws)
        optimizer.zero_grad()
        torch.autograd.backward(model(images, conditions, noise).mean())
        optimizer.step()
        if step in VAE_STEPS:
            found[step] = copy.deepcopy(model)
            found[step].settle(images, conditions)
    return found


@pytest.fixture(scope="module")
def gans(patients: Patients) -> dict[int, GAN]:
    """A discriminator of patients and of as good phantoms: there is nothing but them to learn."""
    model = build_model(study("gan"))
    assert isinstance(model, GAN)
    images, conditions = tensors(patients.members)
    drawn, _ = tensors(patients.fresh)
    draws = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.discriminator.parameters(), lr=2e-3)
    found = {}
    for step in range(1, DISCRIMINATOR_STEPS[-1] + 1):
        batch = drawn[torch.randint(len(drawn), (len(images),), generator=draws)]
        optimizer.zero_grad()
        paid = model(images, conditions).mean() + model(batch, conditions, drawn=True).mean()
        torch.autograd.backward(paid)
        optimizer.step()
        if step in DISCRIMINATOR_STEPS:
            found[step] = copy.deepcopy(model)
    return found


def study(kind: str) -> Study:
    model = {"kind": kind, "width": 4, "latent": 4}
    own = {"pixel_std": 0.1, "beta": 1} if kind == "vae" else {"discriminator_width": 8}
    return Study.model_validate(
        {
            "study_id": "memorised",
            "conditions": ["normal"],
            "image_size": SIZE_PX,
            "model": {**model, **own},
            "stages": {"dpsgd": {}},
            "privacy": {"target_epsilon": 8},
            "federation": {"rounds": 1},
        }
    )


def tensors(images_NSSC: Images) -> tuple[Tensor, Tensor]:
    scaled = torch.from_numpy(images_NSSC).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
    return scaled, torch.zeros(len(images_NSSC), dtype=torch.int64)


def drawn_by(model: VAE) -> Images:
    noise = torch.randn(DRAWN, model.latent, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        images = model.draw(noise, torch.zeros(DRAWN, dtype=torch.int64))
    levels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).numpy()


def features(images_NSSC: Images) -> NDArray[np.float32]:
    """Every fourth pixel, smoothed: nothing that a copy has is lost, and nothing is learned."""
    pixels = torch.from_numpy(images_NSSC).permute(0, 3, 1, 2).to(torch.float32)
    smooth: NDArray[np.float32] = (avg_pool2d(pixels, 4).flatten(1) / 64).numpy()
    return smooth


def photographs(images_NSSC: Images, patients: Sequence[int] = ()) -> PatientFeatures:
    return PatientFeatures(features(images_NSSC), patients or range(len(images_NSSC)))


def attacked(generated: Images, members: Images, others: Images) -> dict[str, Attack]:
    found = generator_attacks(
        features(generated), photographs(members), photographs(others), np.random.default_rng(0)
    )
    return {attack.name: attack for attack in found}


def asked(model: Model, members: Images, others: Images) -> Attack:
    def of(images: Images, kind: str) -> ImageSet:
        names = tuple(f"{kind}{number}" for number in range(len(images)))
        return ImageSet(images, ("normal",) * len(images), names)

    settings = study("gan" if isinstance(model, GAN) else "vae")
    rng = np.random.default_rng(0)
    return model_attack(settings, model, of(members, "in"), of(others, "out"), rng)


def holds_a_guess(attack: Attack) -> bool:
    low, high = attack.auc.interval
    return low < 0.5 < high and attack.p_value > 0.05


def test_copying_of_a_memorising_vae_is_caught(patients: Patients, vaes: dict[int, VAE]) -> None:
    generated = features(drawn_by(vaes[VAE_STEPS[-1]]))
    members, outsiders = photographs(patients.members), photographs(patients.outsiders)
    found = copying(generated, members, outsiders, np.random.default_rng(0))
    assert found.test.p_value < 1e-4
    # It is not that the images are bland: strangers are no nearer than they should be.
    assert found.test.z < found.mirrored.z - 3
    assert found.share.p_value < 0.01
    assert found.share.share.interval[0] > 0.6
    assert found.closest_share.p_value < 0.01
    assert found.closest[0].ratio < 0.5


def test_copying_is_not_seen_by_those_whom_the_vae_never_saw(
    patients: Patients, vaes: dict[int, VAE]
) -> None:
    generated = features(drawn_by(vaes[VAE_STEPS[-1]]))
    unseen, outsiders = photographs(patients.unseen), photographs(patients.outsiders)
    found = copying(generated, unseen, outsiders, np.random.default_rng(0))
    assert found.test.p_value > 0.05
    assert found.share.p_value > 0.05
    assert found.closest_share.p_value > 0.05
    low, high = found.share.share.interval
    assert low < 0.5 < high


def test_copying_is_not_seen_in_fresh_phantoms(patients: Patients) -> None:
    members, outsiders = photographs(patients.members), photographs(patients.outsiders)
    rng = np.random.default_rng(0)
    found = copying(features(patients.fresh), members, outsiders, rng)
    assert found.test.p_value > 0.05
    assert found.share.p_value > 0.05
    assert found.closest_share.p_value > 0.05


def test_members_of_a_memorising_vae_are_told_from_others(
    patients: Patients, vaes: dict[int, VAE]
) -> None:
    generated = drawn_by(vaes[VAE_STEPS[-1]])
    attacks = attacked(generated, patients.members, patients.outsiders)
    for name, found in attacks.items():
        assert found.auc.value > 0.7, name
        assert found.succeeds, name
        assert found.p_value < 0.01, name
    # The discerning one names many, and hardly anybody wrongly.
    assert attacks["distance"].true_positive_rate.value > 0.3


def test_patients_whom_the_vae_never_saw_are_not(patients: Patients, vaes: dict[int, VAE]) -> None:
    generated = drawn_by(vaes[VAE_STEPS[-1]])
    for found in attacked(generated, patients.unseen, patients.outsiders).values():
        assert holds_a_guess(found), found.name


def test_fresh_phantoms_give_nobody_away(patients: Patients) -> None:
    for found in attacked(patients.fresh, patients.members, patients.outsiders).values():
        assert holds_a_guess(found), found.name


def test_the_longer_a_vae_learned_by_heart_the_more_it_gives_away(
    patients: Patients, vaes: dict[int, VAE]
) -> None:
    by_bound, by_distance = [], []
    for model in vaes.values():
        by_bound.append(asked(model, patients.members, patients.outsiders).auc.value)
        generated = drawn_by(model)
        attacks = attacked(generated, patients.members, patients.outsiders)
        by_distance.append(attacks["distance"].auc.value)
    for aucs in (by_bound, by_distance):
        assert all(later > earlier for earlier, later in pairwise(aucs)), aucs
        assert aucs[-1] > 0.9


def test_the_released_encoder_gives_away_whom_it_saw_and_nobody_else(
    patients: Patients, vaes: dict[int, VAE]
) -> None:
    model = vaes[VAE_STEPS[-1]]
    assert asked(model, patients.members, patients.outsiders).succeeds
    assert holds_a_guess(asked(model, patients.unseen, patients.outsiders))


def test_the_released_discriminator_gives_away_whom_it_saw_and_nobody_else(
    patients: Patients, gans: dict[int, GAN]
) -> None:
    found = [asked(m, patients.members, patients.outsiders) for m in gans.values()]
    aucs = [attack.auc.value for attack in found]
    assert all(later > earlier for earlier, later in pairwise(aucs)), aucs
    assert found[-1].succeeds
    assert found[-1].auc.value > 0.8
    assert holds_a_guess(asked(gans[DISCRIMINATOR_STEPS[-1]], patients.unseen, patients.outsiders))


def test_the_more_copies_are_planted_the_more_is_found() -> None:
    """One eye of a patient is copied five times; it is the patient who is found."""
    eyes = np.stack(
        [
            render(phantom, SIZE_PX)
            for number in range(100)
            for phantom in draw_patient(3, number, {"normal": 1}, "amber").eyes.values()
        ]
    )
    owners = np.repeat(np.arange(100), 2)
    features_ND = features(eyes)
    members = PatientFeatures(features_ND[:60], list(owners[:60]))
    others = PatientFeatures(features_ND[60:], list(owners[60:]))
    rng = np.random.default_rng(5)
    fresh, _ = phantom_images(DRAWN, SIZE_PX, 8, ("normal",), camera_styles=("amber",))
    aucs, zs = [], []
    for copied in (0, 10, 20, 30):
        generated = features(fresh)
        generated[: 5 * copied] = np.repeat(features_ND[: 2 * copied : 2], 5, axis=0)
        generated += 0.01 * rng.standard_normal(generated.shape, np.float32)
        attacks = {a.name: a for a in generator_attacks(generated, members, others, rng)}
        distance = attacks["distance"]
        assert (distance.members, distance.non_members) == (30, 70)
        aucs.append(distance.auc.value)
        zs.append(copying(generated, members, others, rng, cells=1).test.z)
    assert all(more > less for less, more in pairwise(aucs)), aucs
    assert all(more < less for less, more in pairwise(zs)), zs
    assert aucs[0] < 0.65
    assert aucs[-1] > 0.95
