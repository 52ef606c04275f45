from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundusgen.errors import StudyError
from fundusgen.study import PartitionRule
from simulations.partition import main_condition, partition

RULES = st.builds(
    PartitionRule,
    into=st.integers(1, 8),
    how=st.sampled_from(["iid", "dirichlet", "size"]),
    alpha=st.floats(0.05, 50),
    ratio=st.floats(0.2, 1),
)
PATIENTS = st.dictionaries(
    st.text("abc0123456789", min_size=1, max_size=5),
    st.sampled_from(["normal", "dr1", "amd"]),
    min_size=8,
    max_size=60,
)


@given(PATIENTS, RULES, st.integers(0, 2**32))
def test_every_patient_is_in_exactly_one_hospital_and_no_hospital_is_empty(
    conditions: dict[str, str], rule: PartitionRule, seed: int
) -> None:
    parts = partition(conditions, rule, seed)
    assert len(parts) == rule.into
    assert all(parts)
    assert Counter(patient for part in parts for patient in part) == Counter(list(conditions))


@given(PATIENTS, RULES, st.integers(0, 2**32))
def test_a_seed_gives_the_same_split_whatever_the_order(
    conditions: dict[str, str], rule: PartitionRule, seed: int
) -> None:
    backwards = dict(reversed(conditions.items()))
    assert partition(conditions, rule, seed) == partition(backwards, rule, seed)


def many(labels: dict[str, int]) -> dict[str, str]:
    return {f"{label}-{i}": label for label, count in labels.items() for i in range(count)}


def test_iid_hospitals_differ_in_size_by_at_most_one() -> None:
    sizes = [len(part) for part in partition(many({"normal": 103}), PartitionRule(into=4), 1)]
    assert max(sizes) - min(sizes) <= 1


def test_hospitals_by_size_fall_by_the_ratio() -> None:
    rule = PartitionRule(into=3, how="size", ratio=0.5)
    assert [len(part) for part in partition(many({"normal": 700}), rule, 1)] == [400, 200, 100]


def test_a_small_alpha_gives_more_uneven_mixes_than_a_large_one() -> None:
    conditions = many({"normal": 400, "amd": 400})

    def spread(alpha: float) -> float:
        rule = PartitionRule(into=4, how="dirichlet", alpha=alpha)
        parts = partition(conditions, rule, 7)
        shares = [sum(p.startswith("amd") for p in part) / len(part) for part in parts]
        return max(shares) - min(shares)

    assert spread(0.1) > 0.5 > 0.15 > spread(1000)


def test_too_few_patients_are_an_error() -> None:
    with pytest.raises(StudyError, match="cannot make 4"):
        partition(many({"normal": 3}), PartitionRule(into=4), 1)


def test_a_patient_with_one_ill_eye_counts_as_ill() -> None:
    assert main_condition(["normal", "amd"]) == "amd"
    assert main_condition(["normal", "normal"]) == "normal"
