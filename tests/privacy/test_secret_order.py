"""The order in which a sample is taken: every one equally likely, and what that is worth.

N patients, B places of a batch, D entries of a gradient.
"""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fundusgen.errors import PrivacyError
from fundusgen.privacy.dpsgd import DPSGDSettings, PatientSGD, in_secret_order
from fundusgen.privacy.noise import FastNoise, NoiseSource, SecureNoise
from fundusgen.privacy.sampling import PoissonPatients

IMPROBABLE = 1e-9


@given(st.lists(st.integers(0, 10_000), unique=True, max_size=200))
def test_a_shuffled_sample_holds_the_same_patients(sample: list[int]) -> None:
    indices = np.array(sorted(sample), np.int64)
    shuffled = in_secret_order(indices, SecureNoise())
    assert shuffled.dtype == np.int64
    assert sorted(shuffled.tolist()) == indices.tolist()


@pytest.mark.parametrize("noise", [SecureNoise(), FastNoise()])
def test_every_order_is_equally_likely(noise: NoiseSource) -> None:
    indices = np.array([3, 5, 8, 13], np.int64)
    found = Counter(tuple(in_secret_order(indices, noise).tolist()) for _ in range(4800))
    assert len(found) == 24
    assert stats.chisquare(list(found.values())).pvalue > IMPROBABLE


def test_a_source_with_too_few_words_is_refused() -> None:
    class Short(FastNoise):
        def uniform_uint64(self, count: int) -> NDArray[np.uint64]:
            return super().uniform_uint64(count - 1)

    with pytest.raises(PrivacyError, match="one word a patient"):
        in_secret_order(np.arange(4), Short())


def test_steps_take_their_patients_in_changing_orders() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    noise, orders = FastNoise(), []

    def load(indices: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        orders.append(indices.tolist())
        return (torch.ones(len(indices), 2),)

    sgd = PatientSGD(
        {"w": parameter},
        torch.optim.SGD([parameter], lr=0.1),
        DPSGDSettings(1.0, 1.0, 1.0, patients=10, physical_batch=4),
        noise,
        PoissonPatients(10, 1.0, noise),
    )
    for _ in range(20):
        sgd.step(lambda parameters, batch: (parameters["w"] * batch[0]).sum(), load)
    steps = [list(itertools.chain(*orders[start : start + 3])) for start in range(0, 60, 3)]
    assert all(sorted(step) == list(range(10)) for step in steps)
    assert len({tuple(step) for step in steps}) > 15


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4))
def test_one_patient_more_moves_a_sum_that_depends_on_places_by_three_norms_at_most(
    seed: int, others: int, places: int
) -> None:
    """The coupling that `in_secret_order` states, over all orders there are.

    Gradients that depend on place as badly as any can: of another direction at each.
    """
    rng = np.random.default_rng(seed)
    table_NBD = rng.standard_normal((others + 1, places, 3))
    table_NBD /= np.linalg.norm(table_NBD, axis=2, keepdims=True)
    new = others

    def summed(order: tuple[int, ...]) -> NDArray[np.float64]:
        return sum(  # type: ignore[return-value]
            (table_NBD[patient, slot % places] for slot, patient in enumerate(order)), np.zeros(3)
        )

    reached = Counter()
    for order in itertools.permutations(range(others)):
        for slot in range(others + 1):
            larger = [*order, new]
            larger[slot], larger[others] = new, (order[slot] if slot < others else new)
            reached[tuple(larger)] += 1
            assert np.linalg.norm(summed(tuple(larger)) - summed(order)) <= 3 + 1e-12
    # So drawn, every order of one patient more is as likely as any other.
    assert reached == Counter(itertools.permutations(range(others + 1)))
