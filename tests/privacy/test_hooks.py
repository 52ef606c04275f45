"""Gradients by hooks are those of one patient after the other, and nothing of them stays behind.

Axes: P patients, K views, B images.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from fundusgen.errors import PrivacyError
from fundusgen.models.blocks import Grain
from fundusgen.models.gan import GAN
from fundusgen.models.vae import VAE
from fundusgen.privacy.clipping import per_patient_gradients
from fundusgen.privacy.dpsgd import DPSGDSettings, PatientSGD
from fundusgen.privacy.hooks import HookedLoss, hooks_are_faster
from fundusgen.privacy.noise import FastNoise
from fundusgen.privacy.sampling import PoissonPatients

SIZE, CONDITIONS = 32, 3
NETWORKS = [
    ("vae", "decoder.*modulation*"),
    ("vae", "*"),
    ("gan", "discriminator.*vote.*"),
    ("gan", "discriminator.*"),
]


def network(kind: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module
        if kind == "vae":
            model = VAE(image_size=SIZE, conditions=CONDITIONS, width=4, latent=4)
        else:
            model = GAN(
                image_size=SIZE, conditions=CONDITIONS, width=4, latent=4, discriminator_width=4
            )
        with torch.no_grad():
            # What begins as zero would hide mistakes in what is multiplied by it.
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def private_of(model: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if fnmatchcase(n, pattern)}


def batch_of(kind: str, patients: int, views: int, seed: int = 0) -> tuple[Tensor, ...]:
    draws = torch.Generator().manual_seed(seed)
    images = torch.rand(patients, views, 3, SIZE, SIZE, generator=draws) * 2 - 1
    conditions = torch.randint(0, CONDITIONS, (patients, views), generator=draws)
    if kind == "gan":
        return images, conditions
    return images, conditions, torch.randn(patients, views, 4, generator=draws)


def hooked(model: nn.Module, private: Mapping[str, Tensor]) -> HookedLoss:
    return HookedLoss(model, private, lambda batch: model(*batch))


def one_by_one(
    model: nn.Module, private: Mapping[str, Tensor], batch: tuple[Tensor, ...]
) -> list[tuple[Tensor, ...]]:
    """Plain autograd, a patient at a time."""
    return [
        torch.autograd.grad(
            model(*(rows[patient] for rows in batch)).mean(), list(private.values())
        )
        for patient in range(len(batch[0]))
    ]


@pytest.mark.parametrize(("kind", "pattern"), NETWORKS)
@settings(max_examples=8, deadline=None)
@given(patients=st.integers(1, 5), views=st.integers(1, 3), seed=st.integers(0, 999))
def test_gradients_by_hooks_are_those_of_one_patient_after_the_other(
    kind: str, pattern: str, patients: int, views: int, seed: int
) -> None:
    model, batch = network(kind, seed), batch_of(kind, patients, views, seed)
    private = private_of(model, pattern)
    expected = one_by_one(model, private, batch)
    losses = [model(*(rows[patient] for rows in batch)).mean() for patient in range(patients)]
    rows, losses_P = per_patient_gradients(hooked(model, private), private, batch, fixed_size=6)
    torch.testing.assert_close(losses_P, torch.stack(losses).detach(), rtol=1e-4, atol=1e-5)
    for patient, gradients in enumerate(expected):
        for name, gradient in zip(private, gradients, strict=True):
            largest = float(gradient.abs().max())
            torch.testing.assert_close(
                rows[name][patient], gradient, rtol=1e-3, atol=1e-4 * largest + 1e-9
            )


@pytest.mark.parametrize(("kind", "pattern"), NETWORKS)
def test_one_patient_more_leaves_the_rows_of_the_others_to_the_last_bit(
    kind: str, pattern: str
) -> None:
    model, batch = network(kind), batch_of(kind, 7, 2)
    private = private_of(model, pattern)
    loss = hooked(model, private)
    everyone, _ = per_patient_gradients(loss, private, batch, fixed_size=8)
    for count in (1, 4, 6):
        fewer, _ = per_patient_gradients(
            loss, private, tuple(rows[:count] for rows in batch), fixed_size=8
        )
        assert all(torch.equal(fewer[name], everyone[name][:count]) for name in private)


def test_a_patient_whose_image_is_not_finite_spoils_only_their_own_row() -> None:
    model, batch = network("vae"), batch_of("vae", 4, 2)
    private = private_of(model, "decoder.*modulation*")
    loss = hooked(model, private)
    before, _ = per_patient_gradients(loss, private, batch, fixed_size=4)
    batch[0][2, 1, 0, 5, 5] = float("nan")
    after, _ = per_patient_gradients(loss, private, batch, fixed_size=4)
    others = torch.tensor([0, 1, 3])
    assert all(torch.equal(before[name][others], after[name][others]) for name in private)
    assert any(after[name][2].isnan().any() for name in private)


def test_no_patients_give_empty_rows() -> None:
    model = network("vae")
    private = private_of(model, "decoder.*modulation*")
    rows, losses_P = per_patient_gradients(hooked(model, private), private, (torch.zeros(0),))
    assert losses_P.shape == (0,)
    assert all(rows[name].shape == (0, *private[name].shape) for name in private)


def test_a_parameter_that_the_loss_ignores_has_no_gradient() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    private = dict(model.named_parameters())
    loss = HookedLoss(model, private, lambda batch: model["used"](batch[0])[:, 0])
    rows, _ = per_patient_gradients(loss, private, (torch.ones(3, 1, 2),))
    assert (rows["used.weight"] == 1).all()
    assert rows["idle.weight"].shape == (3, 1, 2)
    assert (rows["idle.weight"] == 0).all()


@pytest.mark.parametrize("breaks", ["nothing", "before the network", "after it", "backwards"])
def test_nothing_of_a_pass_stays_at_the_network(breaks: str) -> None:
    model, batch = network("gan"), batch_of("gan", 3, 1)
    private = private_of(model, "discriminator.*vote.*")

    def fail(_: Tensor) -> None:
        raise MemoryError

    def losses(flat: tuple[Tensor, ...]) -> Tensor:
        if breaks == "before the network":
            raise MemoryError
        found: Tensor = model(*flat)
        if breaks == "after it":
            raise MemoryError
        if breaks == "backwards":
            found.register_hook(fail)
        return found

    loss = HookedLoss(model, private, losses)
    if breaks == "nothing":
        per_patient_gradients(loss, private, batch)
    else:
        with pytest.raises(MemoryError):
            per_patient_gradients(loss, private, batch)
    # Not private, were it to reach an optimizer.
    assert all(parameter.grad is None for parameter in private.values())
    # What others do with the network, as a generator that learns from it, is not listened to.
    images, conditions = (rows.flatten(0, 1) for rows in batch)
    model(images.requires_grad_(), conditions).sum().backward()
    for parameter in private.values():
        assert parameter.grad is not None
        parameter.grad = None
    for layer in model.modules():
        assert not hasattr(layer, "activations")
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert getattr(parameter, "grad_sample", None) is None
        assert parameter.requires_grad == (name in private)
    breaks = "nothing"
    again, _ = per_patient_gradients(loss, private, batch)
    fresh = network("gan")
    wanted = private_of(fresh, "discriminator.*vote.*")
    right, _ = per_patient_gradients(hooked(fresh, wanted), wanted, batch)
    assert all(torch.equal(again[name], right[name]) for name in private)


def test_a_loss_that_ignores_all_parameters_has_no_gradient_either() -> None:
    model = nn.Linear(2, 1)
    private = dict(model.named_parameters())
    loss = HookedLoss(model, private, lambda batch: batch[0].sum(1))
    rows, losses_P = per_patient_gradients(loss, private, (torch.ones(3, 1, 2),))
    assert (losses_P == 2).all()
    assert all((rows[name] == 0).all() for name in private)


def test_a_parameter_used_past_its_layer_is_refused() -> None:
    model = nn.Linear(2, 1)
    private = dict(model.named_parameters())
    loss = HookedLoss(model, private, lambda batch: (batch[0] @ model.weight.T)[:, 0])
    with pytest.raises(PrivacyError, match="past the layer"):
        per_patient_gradients(loss, private, (torch.ones(3, 1, 2),))


def test_hooks_that_cannot_be_set_leave_nothing(monkeypatch) -> None:
    model, batch = network("gan"), batch_of("gan", 2, 1)
    private = private_of(model, "discriminator.*")
    loss = hooked(model, private)
    right, _ = per_patient_gradients(loss, private, batch)
    register = nn.Module.register_full_backward_hook
    calls = []

    def fails(self: nn.Module, *arguments: object) -> object:
        calls.append(self)
        if len(calls) == 3:
            raise MemoryError
        return register(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.Module, "register_full_backward_hook", fails)
    with pytest.raises(MemoryError):
        per_patient_gradients(loss, private, batch)
    again, _ = per_patient_gradients(loss, private, batch)
    assert all(torch.equal(again[name], right[name]) for name in private)


def test_a_layer_without_a_rule_is_refused_by_name() -> None:
    model = nn.ModuleDict({"grain": Grain(2, 4)})
    with pytest.raises(PrivacyError, match=r"grain \(Grain\).*grad_sample_mode: auto"):
        hooked(model, dict(model.named_parameters()))


def test_a_parameter_of_another_network_is_refused() -> None:
    with pytest.raises(PrivacyError, match="not of the network"):
        hooked(nn.Linear(2, 1), dict(nn.Linear(2, 1).named_parameters()))


def test_a_loss_that_is_already_a_mean_is_refused() -> None:
    # It would weigh a patient by how many others there are.
    model = nn.Linear(2, 1)
    private = dict(model.named_parameters())
    loss = HookedLoss(model, private, lambda batch: model(batch[0]).mean())
    with pytest.raises(PrivacyError, match="one loss for each image"):
        per_patient_gradients(loss, private, (torch.ones(3, 2, 2),))


@pytest.mark.parametrize(
    ("kind", "pattern", "faster"),
    [
        ("vae", "decoder.*modulation*", True),
        ("vae", "*embedding*", True),
        ("vae", "*", False),
        ("gan", "discriminator.*vote.*", False),
        ("gan", "discriminator.*", False),
    ],
)
def test_hooks_are_for_private_linear_layers(kind: str, pattern: str, faster: bool) -> None:
    model = network(kind)
    assert hooks_are_faster(model, private_of(model, pattern)) is faster


def test_a_step_by_hooks_is_the_step_by_vmap() -> None:
    batch = batch_of("vae", 6, 2)
    stepped = []
    for by_hooks in (False, True):
        model = network("vae")
        private = private_of(model, "decoder.*modulation*")
        frozen = {n: p.detach() for n, p in model.named_parameters() if n not in private}

        def mean(
            parameters: Mapping[str, Tensor],
            patient: tuple[Tensor, ...],
            model: nn.Module = model,
            frozen: Mapping[str, Tensor] = frozen,
        ) -> Tensor:
            losses_K: Tensor = functional_call(model, {**frozen, **parameters}, patient)
            return losses_K.mean()

        # So little noise that only the gradients tell the two apart.
        numbers = DPSGDSettings(1e-6, 1.0, 0.1, patients=6, physical_batch=4)
        sgd = PatientSGD(
            private,
            torch.optim.SGD(private.values(), lr=10.0),
            numbers,
            FastNoise(),
            PoissonPatients(6, 1.0, FastNoise()),
        )
        sgd.step(
            hooked(model, private) if by_hooks else mean,
            lambda indices: tuple(rows[torch.from_numpy(indices)] for rows in batch),
        )
        stepped.append(torch.cat([p.detach().flatten() for p in private.values()]))
    before = torch.cat(
        [p.detach().flatten() for p in private_of(network("vae"), "decoder.*modulation*").values()]
    )
    moved = (stepped[0] - before).norm()
    assert moved > 0.01
    assert (stepped[0] - stepped[1]).norm() < 1e-3 * moved
