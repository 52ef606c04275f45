"""What attackers could learn of training patients: copies, and who was in the training set.

Runs where the training photographs are. Attacks take for granted that it was decided at random who
was trained on; where training and test photographs come from different cameras, anything tells
them apart. So every attack is also made with raw phantoms in the place of the generated images:
they know nobody, and what they achieve is the difference of the two sets, not a leak. A control
on either side of 0.5 makes the attack worthless: a difference may look like a leak, and may hide
one. One near 0.5 shows only that phantoms do not see a difference; a generator that has learned
one camera may.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fundusgen.errors import ModelError
from fundusgen.evaluation.copying import ClosePair, Copying, copying
from fundusgen.evaluation.features import FeatureExtractor
from fundusgen.evaluation.generator_attacks import generator_attacks
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.membership import Attack
from fundusgen.evaluation.patient_features import PatientFeatures
from fundusgen.evaluation.resampling import REPLICATES

# The tests by patients need some on either side.
LEAST_TRAINED = 20


@dataclass(frozen=True)
class Controlled:
    """An attack, and the same with phantoms that know nobody.

    Attributes:
        attack: With the generated images.
        control: With raw phantoms.
    """

    attack: Attack
    control: Attack


@dataclass(frozen=True)
class Leakage:
    """Leakage as one extractor sees it, without what must stay at the site.

    Attributes:
        extractor: Name of the extractor.
        copying: Copying tests of the generated images; the pairs are left out.
        copying_control: The same of raw phantoms.
        attacks: Membership inference by generated images.
    """

    extractor: str
    copying: Copying
    copying_control: Copying
    attacks: tuple[Controlled, ...]


def leakage(
    extractor: FeatureExtractor,
    generated: ImageSet,
    phantoms: ImageSet,
    train: ImageSet,
    held_out: ImageSet,
    seed: int,
    *,
    replicates: int = REPLICATES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Leakage, tuple[ClosePair, ...]]:
    """Try to find training patients in generated images.

    Args:
        extractor: Gives the features.
        generated: Images to judge.
        phantoms: Raw phantoms; one half stands in for the generator in the control, the other is
            what attackers calibrate with.
        train: Photographs that the generator was trained on.
        held_out: Photographs of others.
        seed: Of all that is random.
        replicates: Of the bootstrap.
        on_progress: Called with steps done and steps in all.

    Returns:
        What may be told, and the closest pairs, which show photographs and stay at the site.

    Raises:
        ModelError: The extractor gives all photographs the same features: every attack by it would
            fail, whatever leaks.
        ValueError: There are too few patients.
    """
    on_progress(0, 4)
    generated_ND = extractor(generated.images_NSSC)
    phantom_ND = extractor(phantoms.images_NSSC)
    known = PatientFeatures(extractor(train.images_NSSC), train.patients_N)
    others = PatientFeatures(extractor(held_out.images_NSSC), held_out.patients_N)
    _check_varied(extractor.name, known, others)
    order = np.random.default_rng(seed).permutation(len(phantom_ND))
    stand_in_ND, reference_RD = np.array_split(phantom_ND[order], 2)
    on_progress(1, 4)
    copied = copying(generated_ND, known, others, _rng(seed), replicates=replicates)
    control = copying(stand_in_ND, known, others, _rng(seed), replicates=replicates)
    on_progress(2, 4)
    attacks = generator_attacks(
        generated_ND, known, others, _rng(seed), reference_RD=reference_RD, replicates=replicates
    )
    on_progress(3, 4)
    controls = generator_attacks(
        stand_in_ND, known, others, _rng(seed), reference_RD=reference_RD, replicates=replicates
    )
    on_progress(4, 4)
    told = Leakage(
        extractor.name,
        replace(copied, closest=()),
        replace(control, closest=()),
        tuple(Controlled(one, two) for one, two in zip(attacks, controls, strict=True)),
    )
    return told, copied.closest


def _check_varied(name: str, known: PatientFeatures, others: PatientFeatures) -> None:
    features_ND = np.concatenate([known.features_ND, others.features_ND])
    if (features_ND == features_ND[0]).all():
        raise ModelError(
            f"the features of `{name}` are the same for all photographs",
            expected="a network that tells photographs apart",
            remedy="Check its weights and what it is given, or leave it out",
        )


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
