"""One patient moves the sum by at most the bound, however many images they have.

Axes: P patients, K views, D inputs.
"""

from collections.abc import Mapping

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from fundusgen.privacy.clipping import clipped_sum, per_patient_gradients
from fundusgen.privacy.dpsgd import DPSGDSettings
from fundusgen.privacy.noise import add_gaussian_noise

NETWORK = nn.Sequential(nn.Linear(5, 8), nn.GroupNorm(1, 8), nn.Linear(8, 2))
PARAMETERS = {name: tensor.detach() for name, tensor in NETWORK.named_parameters()}
COUNT = sum(tensor.numel() for tensor in PARAMETERS.values())
MOST_VIEWS = 50

# A patient: number of images, loudness, seed.
PATIENT = st.tuples(st.integers(1, MOST_VIEWS), st.floats(1e-6, 1e6), st.integers(0, 2**31))


class NoNoise:
    """Leaves of a release what rounding to the lattice does."""

    kind = "test"

    def gaussian(self, shape: tuple[int, ...], standard_deviation: float) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64)

    def uniform_uint64(self, count: int) -> None:
        raise NotImplementedError


def _loss(parameters: Mapping[str, Tensor], patient: tuple[Tensor, ...]) -> Tensor:
    inputs_KD, present_K = patient
    outputs_K = functional_call(NETWORK, dict(parameters), (inputs_KD,)).square().sum(1)
    return (outputs_K * present_K).sum() / present_K.sum()


def _batch(patients: list[tuple[int, float, int]]) -> tuple[Tensor, Tensor]:
    inputs, present = [torch.zeros(0, MOST_VIEWS, 5)], [torch.zeros(0, MOST_VIEWS)]
    for views, loudness, seed in patients:
        generator = torch.Generator().manual_seed(seed)
        inputs.append(torch.randn(1, MOST_VIEWS, 5, generator=generator) * loudness)
        present.append((torch.arange(MOST_VIEWS) < views).float()[None])
    return torch.cat(inputs), torch.cat(present)


def _released(patients: list[tuple[int, float, int]], numbers: DPSGDSettings) -> Tensor:
    gradients, _ = per_patient_gradients(_loss, PARAMETERS, _batch(patients))
    sums, _ = clipped_sum(list(gradients.values()), numbers.clip_norm(COUNT))
    joint = torch.cat([part.flatten() for part in sums])
    return add_gaussian_noise(joint, numbers.noise_deviation, NoNoise())


@settings(max_examples=60, deadline=None)
@given(
    others=st.lists(PATIENT, max_size=10),
    patient=PATIENT,
    bound=st.floats(1e-3, 1e3),
    noise_multiplier=st.floats(0.1, 10),
)
def test_one_patient_moves_the_release_by_at_most_the_bound(
    others: list[tuple[int, float, int]],
    patient: tuple[int, float, int],
    bound: float,
    noise_multiplier: float,
) -> None:
    numbers = DPSGDSettings(noise_multiplier, 0.5, bound, 100)
    moved = _released([patient, *others], numbers) - _released(others, numbers)
    # Strictly the bound: rounding has been taken off beforehand.
    assert torch.linalg.vector_norm(moved).item() <= bound


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), loudness=st.floats(1, 1e4), bound=st.floats(1e-3, 10))
def test_fifty_images_weigh_no_more_than_one(seed: int, loudness: float, bound: float) -> None:
    numbers = DPSGDSettings(1.0, 0.5, bound, 100)
    for views in (1, MOST_VIEWS):
        released = _released([(views, loudness, seed)], numbers)
        assert torch.linalg.vector_norm(released).item() <= bound


@settings(max_examples=40, deadline=None)
@given(patient=PATIENT, repeats=st.integers(2, 25))
def test_the_same_image_many_times_is_the_same_patient(
    patient: tuple[int, float, int], repeats: int
) -> None:
    inputs_PKD, _ = _batch([(1, *patient[1:])])
    once = (inputs_PKD[:, :1], torch.ones(1, 1))
    often = (inputs_PKD[:, :1].expand(1, repeats, 5), torch.ones(1, repeats))
    for name, gradient in per_patient_gradients(_loss, PARAMETERS, once)[0].items():
        repeated = per_patient_gradients(_loss, PARAMETERS, often)[0][name]
        torch.testing.assert_close(
            gradient, repeated, rtol=1e-3, atol=1e-5 * gradient.abs().max().item()
        )


@settings(max_examples=40, deadline=None)
@given(patients=st.lists(PATIENT, min_size=1, max_size=8), data=st.data())
def test_a_patients_gradient_does_not_depend_on_who_else_is_sampled(
    patients: list[tuple[int, float, int]], data: st.DataObject
) -> None:
    chosen = data.draw(st.integers(0, len(patients) - 1))
    together, _ = per_patient_gradients(_loss, PARAMETERS, _batch(patients))
    alone, _ = per_patient_gradients(_loss, PARAMETERS, _batch([patients[chosen]]))
    for name, gradient in together.items():
        largest = alone[name].abs().max().item()
        torch.testing.assert_close(
            gradient[chosen], alone[name][0], rtol=1e-3, atol=1e-5 * largest + 1e-30
        )


class Amplifier(nn.Module):
    """Subtracts equal numbers and makes what rounding left of them the whole of the output."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        half = torch.randn(32, 3072, generator=generator) / 55
        other = torch.randn(64, 32, generator=generator) / 6
        self.first = nn.Parameter(torch.cat([half, half]))
        self.second = nn.Parameter(torch.cat([other, -other], dim=1) * 1e7)

    def forward(self, views_KD: Tensor) -> Tensor:
        return (views_KD @ self.first.T @ self.second.T).tanh().sum(1)


def test_one_patient_more_leaves_the_gradients_of_the_others_under_weights_that_amplify() -> None:
    network = Amplifier()
    parameters = dict(network.named_parameters())
    views_PKD = torch.rand(9, 2, 3072, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def unit_gradients(patients: int) -> Tensor:
        gradients, _ = per_patient_gradients(
            lambda p, batch: functional_call(network, dict(p), batch).mean(),
            parameters,
            (views_PKD[:patients],),
            fixed_size=9,
        )
        rows_PD = torch.cat([rows.flatten(1).double() for rows in gradients.values()], dim=1)
        return rows_PD / rows_PD.norm(dim=1, keepdim=True)

    everybody = unit_gradients(9)
    for patients in range(1, 9):
        assert torch.equal(unit_gradients(patients), everybody[:patients])
    # One patient fewer at the front moves all others to another place in the batch.
    for places in range(1, 9):
        views_PKD = views_PKD.roll(1, dims=0)
        assert torch.equal(unit_gradients(9), everybody.roll(places, dims=0))
