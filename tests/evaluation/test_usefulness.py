"""What generated images are worth: worlds in which the answer is known."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fundusgen.errors import DataError
from fundusgen.evaluation.classifiers import Diagnose, Examples
from fundusgen.evaluation.diagnosis_tasks import GRADE, RARE, REFERABLE, Regime
from fundusgen.evaluation.images import ImageSet
from fundusgen.evaluation.linear_probe import LinearProbe
from fundusgen.evaluation.resampling import Estimate
from fundusgen.evaluation.small_network import SmallNetwork
from fundusgen.evaluation.usefulness import Figure, Training, Usefulness, usefulness
from fundusgen.evaluation.usefulness_settings import UsefulnessSettings

QUICK = UsefulnessSettings(seeds=(0, 1), shares=(0.1, 0.5, 1.0), replicates=100)
# What a photograph of each condition shows, in grey levels above the others.
TRUE_SIGNS = {"dr1": 15, "dr2": 40, "dr3": 60, "dr4": 80, "glaucoma": -40, "amd": -60}


class Grey:
    """Mean of the image and of two parts of it: all that there is to see here."""

    name, version, digest, dimensions = "grey", "1", "", 3

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = (images_NSSC, images_NSSC[:, :4], images_NSSC[:, 4:])
        means = [part.mean((1, 2, 3), dtype=np.float32) for part in parts]
        return np.stack(means, axis=1)


def world(
    counts: dict[str, int],
    seed: int,
    *,
    prefix: str,
    signs: dict[str, int] = TRUE_SIGNS,
    images: int = 1,
    noise: float = 25.0,
) -> ImageSet:
    """Small grey images, one or more for each of so many patients of each condition."""
    rng = np.random.default_rng(seed)
    names = [name for name, count in counts.items() for _ in range(count * images)]
    levels_N = np.array([signs.get(name, 0) for name in names]) + noise * rng.standard_normal(
        len(names)
    )
    pixels_NSSC = 120 + levels_N[:, None, None, None] + rng.normal(0, 5, (len(names), 8, 8, 3))
    patients = [f"{prefix}/{place // images}" for place in range(len(names))]
    return ImageSet(pixels_NSSC.clip(0, 255).astype(np.uint8), tuple(names), tuple(patients))


GRADED = {"normal": 80, "dr1": 25, "dr2": 30, "dr3": 20, "dr4": 12}
ALL = {**GRADED, "glaucoma": 40, "amd": 24}


def measured(
    test: ImageSet,
    synthetic: ImageSet,
    train: ImageSet | None,
    settings: UsefulnessSettings = QUICK,
) -> Usefulness:
    return usefulness(test, synthetic, train, [LinearProbe(Grey())], networks=(), settings=settings)


def only(
    found: Usefulness, task: str, regime: Regime, share: float, score: str = "balanced_accuracy"
) -> Figure:
    (figure,) = [
        one
        for one in found.figures
        if (one.task, one.regime, one.share, one.score) == (task, regime, share, score)
    ]
    return figure


@pytest.fixture(scope="module")
def truthful() -> Usefulness:
    """Generated images that show what photographs show."""
    return measured(
        world(ALL, 0, prefix="a", images=2),
        world(dict.fromkeys(ALL, 100), 1, prefix="g"),
        world(ALL, 2, prefix="b", images=2),
    )


def test_every_task_has_every_regime(truthful: Usefulness) -> None:
    assert [task.name for task in truthful.tasks] == [REFERABLE, GRADE, "amd", "glaucoma", RARE]
    assert not truthful.left_out
    found = Counter((one.task, one.regime) for one in truthful.figures if one.share in (0, 1))
    wanted: list[tuple[str, Regime]] = [
        (task, regime)
        for task in (REFERABLE, GRADE, "amd", "glaucoma")
        for regime in ("real", "synthetic", "real_and_synthetic")
    ]
    # Two scores of each.
    assert found == dict.fromkeys([*wanted, (RARE, "real"), (RARE, "topped_up")], 2)
    shares = {(one.regime, one.share) for one in truthful.figures if one.task == REFERABLE}
    assert shares == {("synthetic", 0.0)} | {
        (regime, share) for regime in ("real", "real_and_synthetic") for share in QUICK.shares
    }


def test_tasks_say_on_whom_they_are_tested(truthful: Usefulness) -> None:
    tasks = {task.name: task for task in truthful.tasks}
    assert tasks[REFERABLE].patients == (105, 62)
    assert tasks[REFERABLE].images == (210, 124)
    assert tasks[GRADE].patients == (80, 25, 30, 20, 12)
    assert tasks["glaucoma"].classes == (("normal",), ("glaucoma",))


def test_figures_say_how_much_was_learned_from(truthful: Usefulness) -> None:
    alone = only(truthful, REFERABLE, "real", 1.0).training
    assert (alone.real_patients, alone.real_images, alone.synthetic_images) == (167, 334, 0)
    both = only(truthful, REFERABLE, "real_and_synthetic", 0.5).training
    assert (both.real_patients, both.real_images, both.synthetic_images) == (84, 168, 500)
    none = only(truthful, "amd", "synthetic", 0.0).training
    assert (none.real_patients, none.real_images, none.synthetic_images) == (0, 0, 200)


def test_photographs_alone_are_compared_with_nothing(truthful: Usefulness) -> None:
    for one in truthful.figures:
        assert (one.change is None) == (one.verdict is None) == (one.regime == "real")


def test_changes_are_from_the_photographs_alone_of_the_same_share(truthful: Usefulness) -> None:
    for share in QUICK.shares:
        both = only(truthful, REFERABLE, "real_and_synthetic", share)
        alone = only(truthful, REFERABLE, "real", share)
        assert both.change is not None
        expected = both.estimate.value - alone.estimate.value
        assert both.change.value == pytest.approx(expected)
    synthetic = only(truthful, GRADE, "synthetic", 0.0)
    assert synthetic.change is not None
    expected = synthetic.estimate.value - only(truthful, GRADE, "real", 1.0).estimate.value
    assert synthetic.change.value == pytest.approx(expected)


def test_intervals_stay_within_the_range_of_the_score(truthful: Usefulness) -> None:
    for one in truthful.figures:
        low, high = one.interval
        assert -1 <= low <= one.estimate.value <= high <= 1
    wide = Estimate(0.99, np.random.default_rng(0).normal(0.99, 0.02, 500))
    training = Training(1, 1, 0)
    easy = Figure("amd", "linear_grey", "real", 1.0, "auc", wide, training)
    assert wide.interval[1] > 1 == easy.interval[1]
    assert easy.interval[0] == wide.interval[0]


def test_truthful_images_help_where_photographs_are_few() -> None:
    """Of a pattern that sixty photographs do not find: most of what varies is other."""
    rng = np.random.default_rng(0)

    def images(count: int, prefix: str) -> ImageSet:
        ill_N = np.arange(count) % 2 == 1
        pixels_NSSC = 120 + rng.normal(0, 30, (count, 8, 8, 3))
        pixels_NSSC[ill_N] += np.where(np.indices((8, 8)).sum(axis=0) % 2, 6, -6)[..., None]
        names = tuple("dr2" if ill else "normal" for ill in ill_N)
        patients = tuple(f"{prefix}/{place}" for place in range(count))
        return ImageSet(pixels_NSSC.clip(0, 255).astype(np.uint8), names, patients)

    class Pixels(Grey):
        name, dimensions = "pixels", 192

        def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
            return images_NSSC.reshape(len(images_NSSC), -1).astype(np.float32)

    test, synthetic, train = images(300, "a"), images(1000, "g"), images(60, "b")
    found = usefulness(test, synthetic, train, [LinearProbe(Pixels())], networks=(), settings=QUICK)
    for regime in ("synthetic", "real_and_synthetic"):
        share = 0.0 if regime == "synthetic" else 1.0
        assert only(found, REFERABLE, regime, share, "auc").verdict == "helps"


def test_misleading_images_are_said_to_harm() -> None:
    """Here the generator shows every disease as its opposite."""
    upside_down = {name: -sign for name, sign in TRUE_SIGNS.items()}
    found = measured(
        world(ALL, 0, prefix="a", images=2),
        world(dict.fromkeys(ALL, 100), 1, prefix="g", signs=upside_down),
        world(ALL, 2, prefix="b", images=2),
    )
    synthetic = only(found, REFERABLE, "synthetic", 0.0, "auc")
    assert synthetic.estimate.value < 0.5
    assert synthetic.verdict == "harms"
    for share in QUICK.shares:
        assert only(found, REFERABLE, "real_and_synthetic", share).verdict == "harms"
    assert only(found, GRADE, "real_and_synthetic", 1.0, "quadratic_kappa").verdict == "harms"


def test_copies_of_the_photographs_change_nothing() -> None:
    test, train = world(ALL, 0, prefix="a"), world(ALL, 2, prefix="b")
    synthetic = replace(train, patients_N=tuple(f"g/{n}" for n in range(len(train))))
    found = measured(test, synthetic, train, replace(QUICK, least_patients_of_a_grade=5))
    for task in (REFERABLE, GRADE, "glaucoma"):
        change = only(found, task, "synthetic", 0.0).change
        assert change is not None
        assert abs(change.value) < 0.02
        both = only(found, task, "real_and_synthetic", 1.0)
        assert both.change is not None
        assert abs(both.change.value) < 0.05


@dataclass
class Recording:
    """A classifier that remembers what it was to learn from, and finds all classes alike."""

    name: str = "recording"
    seen: list[tuple[Examples, int]] = field(default_factory=list)

    def inputs(self, images_NSSC: NDArray[np.uint8]) -> NDArray[Any]:
        return np.arange(len(images_NSSC))

    def learned(self, examples: Examples, seed: int) -> Diagnose:
        self.seen.append((examples, seed))
        return lambda inputs_N: np.full((len(inputs_N), examples.classes), 1 / examples.classes)


def recorded(
    settings: UsefulnessSettings = QUICK, counts: dict[str, int] = GRADED
) -> list[tuple[Examples, int]]:
    recording = Recording()
    synthetic = world(dict.fromkeys(GRADED, 60), 1, prefix="g")
    test, train = world(counts, 0, prefix="a"), world(counts, 2, prefix="b", images=2)
    usefulness(test, synthetic, train, [recording], networks=(), settings=settings)
    return recording.seen


def test_generated_images_weigh_as_much_as_photographs_of_their_class() -> None:
    for weight in (1.0, 0.25):
        seen = recorded(replace(QUICK, synthetic_weight=weight))
        mixed = [one for one, _ in seen if one.real_N.any() and not one.real_N.all()]
        assert mixed
        for one in mixed:
            if (one.labels_N[~one.real_N] == 1).all():
                # Topped up.
                assert (one.weights_N == 1).all()
                continue
            for label in range(one.classes):
                of_class = one.labels_N == label
                real = one.weights_N[of_class & one.real_N].sum()
                assert one.weights_N[of_class & ~one.real_N].sum() == pytest.approx(weight * real)


def test_shares_are_of_patients_and_nested() -> None:
    # As many of either: nothing to top up, and referable retinopathy is the one task.
    photographs = [
        (set(one.patients_N), seed, one)
        for one, seed in recorded(counts={"normal": 80, "dr2": 80})
        if one.real_N.all()
    ]
    for seed in QUICK.seeds:
        nested = sorted((who for who, of, _ in photographs if of == seed), key=len)
        assert [len(who) for who in nested] == [16, 80, 160]
        assert nested[0] < nested[1] < nested[2]
    for _, _, one in photographs:
        # Both photographs of a patient, and about as many ill as well.
        assert set(Counter(one.patients_N).values()) == {2}
        assert abs(one.labels_N.mean() - 0.5) < 0.07
    smallest = [who for who, _, _ in photographs if len(who) == 16]
    assert smallest[0] != smallest[1]


def test_test_photographs_are_never_learned_from() -> None:
    for one, _ in recorded():
        assert all(who[0] == "generated" or who[1].startswith("b/") for who in one.patients_N)


def test_a_patient_on_both_sides_is_refused_without_being_named() -> None:
    test, train = world(GRADED, 0, prefix="a"), world(GRADED, 2, prefix="b")
    leaking = replace(train, patients_N=("a/0", *train.patients_N[1:]))
    with pytest.raises(DataError, match="1 patients are both") as caught:
        measured(test, world(GRADED, 1, prefix="g"), leaking)
    assert "a/0" not in str(caught.value)


def test_without_training_photographs_generated_images_stand_alone() -> None:
    found = measured(world(ALL, 0, prefix="a"), world(dict.fromkeys(ALL, 50), 1, prefix="g"), None)
    assert {one.regime for one in found.figures} == {"synthetic"}
    assert {one.task for one in found.figures} == {REFERABLE, GRADE, "amd", "glaucoma"}
    assert all(one.change is None for one in found.figures)
    assert not found.left_out


def test_what_is_not_measured_is_said_with_the_reason() -> None:
    found = measured(
        world({**GRADED, "glaucoma": 40, "amd": 19}, 0, prefix="a"),
        world({"normal": 50, "dr1": 50, "dr2": 50, "dr3": 50, "amd": 50}, 1, prefix="g"),
        world({**GRADED, "dr4": 3, "glaucoma": 40, "amd": 40}, 2, prefix="b"),
    )
    assert {task.name for task in found.tasks} == {REFERABLE, GRADE, "glaucoma", RARE}
    left_out = {(one.task, one.regime): one.reason for one in found.left_out}
    assert "19 amd test patients" in left_out["amd", None]
    assert "3 dr4 training patients" in left_out[GRADE, "real"]
    assert "0 dr4 generated images" in left_out[GRADE, "synthetic"]
    assert "0 glaucoma generated images" in left_out["glaucoma", "real_and_synthetic"]
    assert ("glaucoma", "real") not in left_out
    measured_ = {(one.task, one.regime) for one in found.figures}
    assert not measured_ & set(left_out)


def test_a_share_without_some_class_is_left_out() -> None:
    few = {**GRADED, "normal": 300, "dr1": 0, "dr2": 20, "dr3": 0, "dr4": 0}
    settings = replace(QUICK, shares=(0.005, 1.0))
    test = world({"normal": 40, "dr2": 30}, 0, prefix="a")
    found = measured(
        test, world({"normal": 50, "dr2": 50}, 1, prefix="g"), world(few, 2, prefix="b"), settings
    )
    assert {one.share for one in found.figures} == {0.0, 1.0}
    reasons = [one.reason for one in found.left_out if one.regime == "real"]
    assert any("lack a class" in reason for reason in reasons)


def test_the_rarest_condition_is_topped_up_to_the_median() -> None:
    recording = Recording()
    counts = {"normal": 90, "dr2": 60, "glaucoma": 40, "amd": 22, "cataract": 5}
    test = world({**counts, "amd": 30}, 0, prefix="a")
    synthetic = world({"normal": 200, "amd": 200}, 1, prefix="g")
    train = world(counts, 2, prefix="b")
    found = usefulness(test, synthetic, train, [recording], networks=(), settings=QUICK)
    # The rarest has too few test patients; the median of the five is 40.
    (task,) = [task for task in found.tasks if task.name == RARE]
    assert task.classes[1] == ("amd",)
    assert only(found, RARE, "topped_up", 1.0).training.synthetic_images == 40 - 22
    topped = [one for one, _ in recording.seen if (~one.real_N).sum() == 18]
    assert len(topped) == len(QUICK.seeds)
    for one in topped:
        assert (one.labels_N[~one.real_N] == 1).all()
        assert (one.weights_N == 1).all()
        assert (one.labels_N == 1).sum() == 40


def test_networks_learn_the_first_task_at_the_ends_of_the_curve() -> None:
    quick, slow = Recording("quick"), Recording("slow")
    asked: list[tuple[int, int]] = []
    found = usefulness(
        world(GRADED, 0, prefix="a"),
        world(dict.fromkeys(GRADED, 40), 1, prefix="g"),
        world(GRADED, 2, prefix="b"),
        [quick],
        networks=[slow],
        settings=QUICK,
        on_progress=lambda done, trainings: asked.append((done, trainings)),
    )
    of_slow = {
        (one.task, one.regime, one.share) for one in found.figures if one.classifier == "slow"
    }
    assert of_slow == {
        (REFERABLE, "real", 1.0),
        (REFERABLE, "synthetic", 0.0),
        (REFERABLE, "real_and_synthetic", 1.0),
        (REFERABLE, "real", 0.1),
        (REFERABLE, "real_and_synthetic", 0.1),
    }
    assert len(slow.seen) == 5 * len(QUICK.seeds)
    trainings = len(slow.seen) + len(quick.seen)
    assert asked == [(done + 1, trainings) for done in range(trainings)]


def test_the_small_network_goes_through_all_of_it() -> None:
    network = SmallNetwork(steps=2, batch=4, size_px=16)
    settings = UsefulnessSettings(seeds=(0,), shares=(0.5, 1.0), replicates=50)
    found = usefulness(
        world({"normal": 30, "dr2": 30}, 0, prefix="a"),
        world({"normal": 30, "dr2": 30}, 1, prefix="g"),
        world({"normal": 30, "dr2": 30}, 2, prefix="b"),
        [],
        networks=[network],
        settings=settings,
    )
    assert len(found.figures) == 5 * 2


def test_the_same_seeds_give_the_same_figures(truthful: Usefulness) -> None:
    again = measured(
        world(ALL, 0, prefix="a", images=2),
        world(dict.fromkeys(ALL, 100), 1, prefix="g"),
        world(ALL, 2, prefix="b", images=2),
    )
    for one, other in zip(truthful.figures, again.figures, strict=True):
        np.testing.assert_array_equal(one.estimate.replicates_B, other.estimate.replicates_B)


def attempts() -> list[tuple[Callable[[], object], type[Exception], str]]:
    test, train = world(GRADED, 0, prefix="a"), world(GRADED, 2, prefix="b")
    synthetic = world(GRADED, 1, prefix="g")
    large = replace(
        synthetic, images_NSSC=synthetic.images_NSSC.repeat(2, axis=1).repeat(2, axis=2)
    )

    def with_classifiers(classifiers: Sequence[Recording]) -> object:
        return usefulness(test, synthetic, train, classifiers, networks=(), settings=QUICK)

    return [
        (lambda: measured(test, large, train), ValueError, "one side"),
        (lambda: with_classifiers([]), ValueError, "different names"),
        (lambda: with_classifiers([Recording(), Recording()]), ValueError, "different names"),
        (lambda: measured(test.subset(range(30)), synthetic, train), DataError, "no diagnosis"),
        (lambda: UsefulnessSettings(seeds=()), ValueError, "seeds"),
        (lambda: UsefulnessSettings(shares=(0.0,)), ValueError, "shares"),
        (lambda: UsefulnessSettings(synthetic_weight=0), ValueError, "weight"),
        (lambda: UsefulnessSettings(least_patients=1), ValueError, "patients"),
    ]


@pytest.mark.parametrize(("attempt", "error", "match"), attempts())
def test_what_cannot_be_measured_is_refused(
    attempt: Callable[[], object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        attempt()
