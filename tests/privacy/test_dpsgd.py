"""DP-SGD: held against a loop over patients, its noise, its edges and what it refuses.

Axes: N patients of the site, P of a batch, K views, C channels, H and W pixels.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

from fundusgen.errors import PrivacyError
from fundusgen.privacy.clipping import clipped_sum, patient_norms, per_patient_gradients
from fundusgen.privacy.dpsgd import DPSGDSettings, LoadBatch, PatientSGD
from fundusgen.privacy.noise import SecureNoise
from fundusgen.privacy.sampling import PoissonPatients

PATIENTS, VIEWS = 12, 3
IMPROBABLE = 1e-9


class Network(nn.Module):
    """Small, with each kind of layer that the project's models have."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 3)
        )
        self.head = nn.Linear(2 * 4 * 4, 3)

    def forward(self, images_KCHW: Tensor) -> Tensor:
        return self.head(self.body(images_KCHW).flatten(1))


class Silent:
    """Noise of zero: only here, never in the library."""

    kind = "test"

    def __init__(self) -> None:
        self.drawn = 0

    def gaussian(self, shape: tuple[int, ...], standard_deviation: float) -> Tensor:
        self.drawn += 1
        return torch.zeros(shape, dtype=torch.float64)

    def uniform_uint64(self, count: int) -> NDArray[np.uint64]:
        # Equal words leave a sample in its order.
        return np.zeros(count, np.uint64)


class Scripted:
    """A sampler that gives the samples it was told to give."""

    def __init__(self, samples: Iterable[list[int]], sample_rate: float = 0.5) -> None:
        self.samples = iter(samples)
        self.sample_rate = sample_rate

    def draw(self) -> NDArray[np.int64]:
        return np.array(next(self.samples), dtype=np.int64)


@pytest.fixture
def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Network()


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images_NKCHW = torch.randn(PATIENTS, VIEWS, 2, 6, 6, generator=generator)
    # Patients of very different loudness: some are clipped, some are not.
    images_NKCHW *= torch.logspace(-2, 1, PATIENTS)[:, None, None, None, None]
    targets_NK3 = torch.randn(PATIENTS, VIEWS, 3, generator=generator)
    return images_NKCHW, targets_NK3 * torch.logspace(-1, 0.5, PATIENTS)[:, None, None]


def _loss(network: nn.Module) -> Callable[[Mapping[str, Tensor], tuple[Tensor, ...]], Tensor]:
    def loss(parameters: Mapping[str, Tensor], patient: tuple[Tensor, ...]) -> Tensor:
        images_KCHW, targets_K3 = patient
        return mse_loss(functional_call(network, dict(parameters), (images_KCHW,)), targets_K3)

    return loss


def _loader(data: tuple[Tensor, ...]) -> LoadBatch:
    return lambda indices: tuple(tensor[torch.from_numpy(indices)] for tensor in data)


def _settings(**changes: float) -> DPSGDSettings:
    numbers = {"noise_multiplier": 1.0, "sample_rate": 0.5, "max_grad_norm": 0.9}
    return DPSGDSettings(**{**numbers, "patients": 10, **changes})  # type: ignore[arg-type]


def _sgd(network: nn.Module, samples: list[list[int]], **changes: float) -> PatientSGD:
    parameters = dict(network.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.3, momentum=0.9)
    return PatientSGD(parameters, optimizer, _settings(**changes), Silent(), Scripted(samples))


OPTIMIZERS = {
    "sgd": lambda tensors: torch.optim.SGD(tensors, lr=0.3, momentum=0.9, weight_decay=0.01),
    "adam": lambda tensors: torch.optim.Adam(tensors, lr=0.03, eps=1e-2),
}
SAMPLES = [[0, 3, 4, 7, 11], [], [2], list(range(PATIENTS)), [1, 9, 10]]


def _slow_and_obvious(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor],
    clip_norm: float,
    expected_batch_size: float,
) -> None:
    for sample in SAMPLES:
        sums = [torch.zeros_like(parameter) for parameter in network.parameters()]
        for patient in sample:
            network.zero_grad()
            images_KCHW, targets_K3 = data[0][patient], data[1][patient]
            mse_loss(network(images_KCHW), targets_K3).backward()
            gradient = [parameter.grad for parameter in network.parameters()]
            norm = torch.sqrt(sum(part.square().sum() for part in gradient))
            for total, part in zip(sums, gradient, strict=True):
                total += part * min(1.0, clip_norm / norm.item())
        for parameter, total in zip(network.parameters(), sums, strict=True):
            parameter.grad = total / expected_batch_size
        optimizer.step()


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("physical_batch", [1, 2, 5, 64])
def test_steps_equal_a_loop_over_patients(
    network: Network,
    data: tuple[Tensor, Tensor],
    make_optimizer: Callable[..., torch.optim.Optimizer],
    physical_batch: int,
) -> None:
    settings = _settings(physical_batch=physical_batch)
    slow = Network()
    slow.load_state_dict(network.state_dict())
    clip_norm = settings.clip_norm(sum(p.numel() for p in slow.parameters()))
    _slow_and_obvious(slow, make_optimizer(slow.parameters()), data, clip_norm, 0.5 * 10)

    parameters = dict(network.named_parameters())
    sampler, noise = Scripted(SAMPLES), Silent()
    sgd = PatientSGD(parameters, make_optimizer(parameters.values()), settings, noise, sampler)
    reports = [sgd.step(_loss(network), _loader(data)) for _ in SAMPLES]

    for fast, obvious in zip(network.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(fast, obvious, rtol=1e-5, atol=2e-6)
    assert [report.patients for report in reports] == [5, 0, 1, 12, 3]
    assert 0 < (reports[3].clipped_fraction or 0) < 1, reports
    assert noise.drawn == len(SAMPLES)


def test_only_the_private_parameters_move(network: Network, data: tuple[Tensor, Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    head = {f"head.{name}": tensor for name, tensor in network.head.named_parameters()}
    optimizer = torch.optim.SGD(head.values(), lr=0.3)
    sgd = PatientSGD(head, optimizer, _settings(), Silent(), Scripted([[0, 1]]))
    sgd.step(_loss(network), _loader(data))
    moved = {
        name for name, tensor in network.state_dict().items() if (tensor != before[name]).any()
    }
    assert moved == {"head.weight", "head.bias"}
    assert all(parameter.grad is None for parameter in network.body.parameters())


def test_nothing_is_left_of_a_step(network: Network, data: tuple[Tensor, Tensor]) -> None:
    sgd = _sgd(network, [[0, 1, 2]], physical_batch=2)
    sgd.step(_loss(network), _loader(data))
    for parameter in network.parameters():
        left = (parameter.grad, parameter.grad_sample, parameter.summed_grad)
        assert left == (None, None, None)


def test_frozen_tensors_that_want_gradients_get_none(
    network: Network, data: tuple[Tensor, Tensor]
) -> None:
    head = {f"head.{name}": tensor for name, tensor in network.head.named_parameters()}
    gradients, losses_P = per_patient_gradients(_loss(network), head, data)
    assert not losses_P.requires_grad
    assert not any(gradient.requires_grad for gradient in gradients.values())


def test_no_patients_give_empty_gradients_without_a_call(network: Network) -> None:
    parameters = dict(network.named_parameters())
    gradients, losses_P = per_patient_gradients(_never, parameters, (torch.zeros(0, 3),))
    assert {name: tuple(gradient.shape) for name, gradient in gradients.items()} == {
        name: (0, *parameter.shape) for name, parameter in parameters.items()
    }
    assert losses_P.shape == (0,)


def test_a_scalar_parameter_is_clipped_like_any_other() -> None:
    scale = torch.tensor(2.0, requires_grad=True)
    sgd = PatientSGD(
        {"scale": scale}, torch.optim.SGD([scale], lr=1.0), _settings(), Silent(), Scripted([[0]])
    )
    sgd.step(lambda p, batch: p["scale"] * batch[0], lambda _: (torch.tensor([50.0]),))
    assert scale.item() == pytest.approx(2.0 - 0.9 / 5, rel=1e-3)


@pytest.mark.parametrize("sample", [[], [4], list(range(PATIENTS))])
@pytest.mark.parametrize("physical_batch", [1, 5, 64])
def test_noise_on_the_sum_is_once_the_multiplier_times_the_bound(
    data: tuple[Tensor, Tensor], sample: list[int], physical_batch: int
) -> None:
    weights = torch.zeros(200_000, requires_grad=True)
    settings = _settings(noise_multiplier=1.7, physical_batch=physical_batch)
    optimizer = torch.optim.SGD([weights], lr=settings.expected_batch_size)
    sgd = PatientSGD({"w": weights}, optimizer, settings, SecureNoise(), Scripted([sample]))
    # A loss whose gradient is zero: what moves the weights is noise alone.
    sgd.step(lambda p, batch: (p["w"] * 0).sum() + batch[0].sum() * 0, _loader(data))
    squares = (weights.detach().double() / (1.7 * 0.9)).square().sum().item()
    low, high = stats.chi2.ppf([IMPROBABLE, 1 - IMPROBABLE], weights.numel())
    assert low < squares < high


def test_noise_differs_between_steps_and_does_not_covary() -> None:
    weights = torch.zeros(100_000, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=1.0)
    sgd = PatientSGD({"w": weights}, optimizer, _settings(), SecureNoise(), Scripted([[], []]))
    sgd.step(_never, _never)
    first = weights.detach().clone()
    sgd.step(_never, _never)
    second = weights.detach() - first
    for products in (first * second, first[1:] * first[:-1]):
        assert abs(products.mean() / products.std()) * math.sqrt(len(products)) < 6.2


def test_noise_covers_every_parameter_and_no_two_alike(network: Network) -> None:
    before = torch.cat([p.detach().flatten() for p in network.parameters()])
    parameters = dict(network.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=1.0)
    sgd = PatientSGD(parameters, optimizer, _settings(), SecureNoise(), Scripted([[]]))
    sgd.step(_never, _never)
    moved = before - torch.cat([p.detach().flatten() for p in network.parameters()])
    assert (moved != 0).all()
    assert len(moved.unique()) > 0.99 * len(moved)


def test_the_expected_batch_size_does_not_follow_the_sample(data: tuple[Tensor, Tensor]) -> None:
    moves = []
    for sample in ([0], [0, 1, 2, 3]):
        weight = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=1.0)
        sgd = PatientSGD({"w": weight}, optimizer, _settings(), Silent(), Scripted([sample]))
        sgd.step(lambda p, batch: p["w"].sum() * 0.1 + batch[0].sum() * 0, _loader(data))
        moves.append(-weight.item())
    assert moves == pytest.approx([0.1 / 5, 0.4 / 5], rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_patient_whose_gradient_overflows_adds_nothing_and_is_not_told_of(
    network: Network, data: tuple[Tensor, Tensor], value: float
) -> None:
    # An error here would tell a server, without noise, that this patient is in the data.
    data[0][7, 0, 0, 0, 0] = value
    moved = []
    for sample in ([0, 1, 2, 7], [0, 1, 2]):
        copied = copy.deepcopy(network)
        report = _sgd(copied, [sample], physical_batch=2).step(_loss(copied), _loader(data))
        assert (report.patients, report.not_finite) == (len(sample), len(sample) - 3)
        moved.append([parameter.detach().clone() for parameter in copied.parameters()])
    for with_patient, without in zip(*moved, strict=True):
        torch.testing.assert_close(with_patient, without, rtol=1e-5, atol=1e-7)


def test_a_sample_without_any_finite_gradient_takes_its_noise_step(
    network: Network, data: tuple[Tensor, Tensor]
) -> None:
    data[0][:] = math.nan
    before = [parameter.detach().clone() for parameter in network.parameters()]
    _sgd(network, [[0, 1, 2]]).step(_loss(network), _loader(data))
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_a_loader_that_fails_ends_the_run(network: Network, data: tuple[Tensor, Tensor]) -> None:
    sgd = _sgd(network, [[0], [0]])
    with pytest.raises(OSError, match="gone"):
        sgd.step(_loss(network), _gone)
    with pytest.raises(PrivacyError, match="earlier step failed"):
        sgd.step(_loss(network), _loader(data))


@pytest.mark.parametrize(
    "batch",
    [
        (),
        (torch.zeros(3, VIEWS, 2, 6, 6), torch.zeros(3, VIEWS, 3)),
        (torch.zeros(2, VIEWS, 2, 6, 6), torch.zeros(4, VIEWS, 3)),
        (torch.tensor(0.0),),
    ],
)
def test_a_batch_with_more_or_fewer_entries_than_patients_is_refused(
    network: Network, batch: tuple[Tensor, ...]
) -> None:
    with pytest.raises(PrivacyError, match="batch"):
        _sgd(network, [[0, 1]]).step(_loss(network), lambda _: batch)


def test_a_loss_that_draws_random_numbers_is_refused(
    network: Network, data: tuple[Tensor, Tensor]
) -> None:
    def loss(parameters: Mapping[str, Tensor], patient: tuple[Tensor, ...]) -> Tensor:
        return _loss(network)(parameters, (torch.randn_like(patient[0]), patient[1]))

    with pytest.raises(RuntimeError, match="random"):
        _sgd(network, [[0, 1]]).step(loss, _loader(data))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("noise_multiplier", "sample_rate", "max_grad_norm")
          for value in (0.0, -1.0, math.nan, math.inf, True, "1")),
        ("sample_rate", 1.01),
        *((name, value) for name in ("patients", "physical_batch")
          for value in (0, -3, 2.5, True, math.nan)),
    ],
)  # fmt: skip
def test_settings_that_protect_nobody_are_refused(name: str, value: float) -> None:
    with pytest.raises(PrivacyError, match=name) as caught:
        _settings(**{name: value})
    assert caught.value.expected
    assert caught.value.remedy


def test_noise_that_drowns_the_lattice_is_refused() -> None:
    with pytest.raises(PrivacyError, match="leave nothing"):
        _settings(noise_multiplier=1e4).clip_norm(10**6)
    assert _settings().clip_norm(300_000) == pytest.approx(0.9, rel=2e-3)
    assert _settings().clip_norm(300_000) < 0.9


def test_noise_to_signal_is_the_design_pages_number() -> None:
    settings = _settings(noise_multiplier=2.0, sample_rate=0.1, patients=1_000)
    assert settings.noise_to_signal(10_000) == pytest.approx(2.0 * 100 / 100)


def test_an_optimizer_over_other_tensors_is_refused(network: Network) -> None:
    head = dict(network.head.named_parameters())
    for tensors in (network.parameters(), [network.head.weight]):
        with pytest.raises(PrivacyError, match="private parameters"):
            PatientSGD(head, torch.optim.SGD(tensors, lr=1.0), _settings(), Silent(), Scripted([]))
    with pytest.raises(PrivacyError, match="private parameters"):
        PatientSGD(
            {**head, "tied": network.head.weight},
            torch.optim.SGD(head.values(), lr=1.0),
            _settings(),
            Silent(),
            Scripted([]),
        )


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)]
)
def test_a_parameter_that_cannot_be_trained_exactly_is_refused(tensor: Tensor) -> None:
    optimizer = torch.optim.SGD([tensor], lr=1.0)
    with pytest.raises(PrivacyError, match="cannot be trained"):
        PatientSGD({"w": tensor}, optimizer, _settings(), Silent(), Scripted([]))


def test_a_sampler_with_another_rate_is_refused(network: Network) -> None:
    parameters = dict(network.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=1.0)
    sampler = PoissonPatients(PATIENTS, 0.25, SecureNoise())
    with pytest.raises(PrivacyError, match=r"0\.25"):
        PatientSGD(parameters, optimizer, _settings(), SecureNoise(), sampler)


def test_reduced_matmul_precision_does_not_reach_the_clipped_sum() -> None:
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(64, 40_000, generator=generator)
    exact, _ = clipped_sum([gradient], 1.0)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        reduced, _ = clipped_sum([gradient], 1.0)
    finally:
        torch.set_float32_matmul_precision(precision)
    torch.testing.assert_close(reduced, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [1.0, 0.1])
def test_norms_of_long_rows_are_right_to_five_digits(value: float) -> None:
    norm = patient_norms([torch.full((1, 2_000_000), value), torch.zeros(1, 3, 0)])
    assert norm.item() == pytest.approx(value * math.sqrt(2_000_000), rel=2e-5)


def _never(*_: object) -> Tensor:
    raise AssertionError("must not be called for an empty sample")


def _gone(_: NDArray[np.int64]) -> tuple[Tensor, ...]:
    raise OSError("gone")


@pytest.mark.parametrize("scale", [0.1, 1e6])
def test_what_is_added_to_gradients_is_clipped_with_them(
    network: Network, data: tuple[Tensor, Tensor], scale: float
) -> None:
    """Of a loss with a linear term, the term's gradient may be added without differentiating."""
    torch.manual_seed(0)
    names = dict(network.named_parameters())
    table = {name: scale * torch.randn(PATIENTS, *p.shape) for name, p in names.items()}
    plain, places = _loss(network), torch.arange(PATIENTS)

    def with_term(parameters: Mapping[str, Tensor], patient: tuple[Tensor, ...]) -> Tensor:
        *own, place = patient
        terms = [
            (value * table[name].index_select(0, place[None])[0]).sum()
            for name, value in parameters.items()
        ]
        return plain(parameters, tuple(own)) + torch.stack(terms).sum()

    def addend(batch: tuple[Tensor, ...]) -> Iterable[tuple[str, Tensor]]:
        return ((name, rows[batch[2]]) for name, rows in table.items())

    sample, moved = [0, 2, 3, 7], []
    for loss, added in ((with_term, None), (lambda p, b: plain(p, b[:2]), addend)):
        copied = copy.deepcopy(network)
        sgd = _sgd(copied, [sample], physical_batch=3)
        sgd.step(loss, _loader((*data, places)), added)
        moved.append(torch.cat([p.detach().flatten() for p in copied.parameters()]))
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-6)
    start = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert (moved[1] - start).norm() > 0


def test_nothing_is_added_to_the_gradients_of_nobody(network: Network) -> None:
    def addend(_: tuple[Tensor, ...]) -> Iterable[tuple[str, Tensor]]:
        raise AssertionError("there is no patient to add to")

    _sgd(network, [[]]).step(_never, _gone, addend)


def test_a_row_for_all_patients_together_is_refused(
    network: Network, data: tuple[Tensor, Tensor]
) -> None:
    name = next(name for name, _ in network.named_parameters())
    shape = network.get_parameter(name).shape

    def addend(_: tuple[Tensor, ...]) -> Iterable[tuple[str, Tensor]]:
        yield name, torch.ones(1, *shape)

    with pytest.raises(PrivacyError, match="a row for each patient"):
        _sgd(network, [[1, 2]]).step(_loss(network), _loader(data), addend)
