"""A site's round of a GAN: what one patient can move, and what the drawn images add to that."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_study import small_study

from fundusgen.data.patients import PatientDataset
from fundusgen.errors import ModelError
from fundusgen.models.factory import build_model, private_names
from fundusgen.models.gan import GAN
from fundusgen.privacy.clipping import PatientLoss, clipped_sum, per_patient_gradients
from fundusgen.privacy.dpsgd import DPSGDSettings, PatientSGD
from fundusgen.privacy.hooks import HookedLoss
from fundusgen.privacy.noise import FastNoise
from fundusgen.privacy.sampling import PoissonPatients
from fundusgen.site import GradSampleMode
from fundusgen.study import Study
from fundusgen.training.generator_steps import GeneratorReport, GeneratorTraining
from fundusgen.training.local import load_model, prepare_round, train_round
from fundusgen.training.mechanisms import noise_of_reply
from fundusgen.training.patient_loss import GAN_SCALE, GanLoss, PatientViews
from fundusgen.training.places import batch_that_holds

SIZE = 32


def study(**model: object) -> Study:
    return small_study(
        model={"kind": "gan", "width": 4, "latent": 4, "discriminator_width": 4, **model},
        stages={"dpsgd": {"steps_per_round": 2, "sample_rate": 0.5, "views_per_patient": 1}},
    )


def patients(count: int, seed: int = 0) -> PatientDataset:
    rng = np.random.default_rng(seed)
    images_NHWC: NDArray[np.uint8] = rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    conditions_N: NDArray[np.int64] = rng.integers(0, 2, count)
    return PatientDataset(images_NHWC, conditions_N, [f"p{number}" for number in range(count)])


def gan(chosen: Study) -> GAN:
    model = build_model(chosen)
    assert isinstance(model, GAN)
    # Random votes: a new embedding is zero, and would hide mistakes in the conditions.
    with torch.no_grad():
        model.discriminator.embedding.weight.normal_(generator=torch.Generator().manual_seed(3))
    return model


def task_of(
    model: GAN,
    private: list[str],
    site: PatientDataset,
    drawn: int,
    mode: GradSampleMode = "auto",
    views: int = 1,
) -> GanLoss:
    parameters = {name: model.get_parameter(name) for name in private_names(model, private)}
    seen = PatientViews(site, views, torch.device("cpu"))
    return GanLoss(model, parameters, seen, drawn=drawn, mode=mode)


def rows_of(
    task: GanLoss,
    loss: PatientLoss | HookedLoss,
    batch: tuple[torch.Tensor, ...],
    size: int | None = None,
) -> dict[str, torch.Tensor]:
    """What a step clips: patients' gradients, with what is added to them."""
    rows, _ = per_patient_gradients(loss, task.private, batch, fixed_size=size)
    if len(batch[0]):
        for name, added in task.addend(batch):
            assert added.shape == rows[name].shape
            rows[name] = rows[name] + added
    return rows


@pytest.mark.parametrize("mode", ["vmap", "hooks"])
@pytest.mark.parametrize("private", [["discriminator.*"], ["discriminator.*vote.*"]])
def test_a_patients_gradient_is_that_of_their_image_and_of_drawn_ones_of_their_condition(
    private: list[str], mode: GradSampleMode, monkeypatch
) -> None:
    model, site = gan(study()), patients(5)
    task = task_of(model, private, site, drawn=3, mode=mode)
    remembered = task._drawn()
    monkeypatch.setattr(task, "_drawn", lambda: remembered)
    rows = rows_of(task, task.loss(), task.load(np.arange(5)))
    drawn_CM, _ = remembered
    for patient in range(5):
        images, conditions = site.views(np.array([patient]), 1, np.random.default_rng())
        own = model(images[0], conditions[0]).mean()
        condition = int(conditions[0, 0])
        against = model(drawn_CM[condition], torch.full((3,), condition), drawn=True).mean()
        paid = GAN_SCALE * (own + against)
        slow = torch.autograd.grad(paid, list(task.private.values()))
        for name, expected in zip(task.private, slow, strict=True):
            torch.testing.assert_close(rows[name][patient], expected, rtol=1e-4, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    mode=st.sampled_from(["vmap", "hooks"]),
    count=st.integers(1, 7),
    drawn=st.integers(1, 9),
    left_out=st.integers(0, 6),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    bound=st.sampled_from([0.01, 1.0, 50.0]),
)
def test_removing_a_patient_moves_the_clipped_sum_by_the_bound_at_most(
    mode: GradSampleMode, count: int, drawn: int, left_out: int, scale: float, bound: float
) -> None:
    model = gan(study())
    with torch.no_grad():
        model.discriminator.patch_vote.weight.mul_(scale)
        model.generator.root.weight.mul_(scale)
    task = task_of(model, ["discriminator.*"], patients(count), drawn, mode)
    loss, everyone = task.loss(), np.arange(count)

    def summed(indices: NDArray[np.int64]) -> torch.Tensor:
        batch = task.load(indices) if len(indices) else (torch.zeros(0),)
        rows = rows_of(task, loss, batch)
        sums, _ = clipped_sum(list(rows.values()), bound)
        return torch.cat([part.flatten() for part in sums])

    without = np.delete(everyone, left_out % count)
    moved = (summed(everyone) - summed(without)).norm()
    # Rows of batches of another size may differ in their last bits.
    assert moved <= bound * (1 + 1e-3)


class NoNoise(FastNoise):
    """Samples as ever, and leaves of a release what rounding to the lattice does."""

    def gaussian(self, shape: tuple[int, ...], standard_deviation: float) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float64)


class Recorder(torch.optim.SGD):
    """Moves nothing and keeps the gradient that it was to move along."""

    seen: torch.Tensor

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        gradients = [tensor.grad for group in self.param_groups for tensor in group["params"]]
        self.seen = torch.cat([gradient.flatten().double() for gradient in gradients])


DECLARED = 8  # A power of two: dividing by it rounds nothing.


def step_on(
    task: GanLoss, batch: tuple[torch.Tensor, ...], kept: list[int], bound: float, size: int
) -> torch.Tensor:
    """The sum that a step of DP-SGD would hide in noise, of the kept patients."""
    recorder = Recorder(list(task.private.values()))
    numbers = DPSGDSettings(1.0, 1.0, bound, DECLARED, size)
    sampler = PoissonPatients(len(kept), 1.0, FastNoise())
    sgd = PatientSGD(task.private, recorder, numbers, NoNoise(), sampler)

    def load(places: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        chosen = [kept[place] for place in places]
        return tuple(tensor[chosen] for tensor in batch)

    sgd.step(task.loss(), load, task.addend)
    return recorder.seen * DECLARED


@settings(max_examples=20, deadline=None)
@given(
    mode=st.sampled_from(["vmap", "hooks"]),
    views=st.integers(1, 3),
    count=st.integers(1, 7),
    drawn=st.integers(1, 9),
    left_out=st.integers(0, 6),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    bound=st.sampled_from([0.01, 1.0, 50.0]),
)
def test_removing_a_patient_moves_a_step_by_no_more_than_the_bound_and_not_by_a_bit(
    mode: GradSampleMode, views: int, count: int, drawn: int, left_out: int, scale: float,
    bound: float,
) -> None:  # fmt: skip
    chosen = study(private=["discriminator.*"])
    # Smaller than some samples, which then take several.
    size = batch_that_holds(chosen, 4, mode=mode, device=torch.device("cpu"))
    model = gan(chosen)
    with torch.no_grad():
        model.discriminator.patch_vote.weight.mul_(scale)
        model.generator.root.weight.mul_(scale)
    task = task_of(model, ["discriminator.*"], patients(count), drawn, mode, views)
    remembered = task._drawn()
    task._drawn = lambda: remembered  # type: ignore[method-assign]
    everyone = list(range(count))
    batch = task.load(np.array(everyone))
    without = [place for place in everyone if place != left_out % count]
    whole = step_on(task, batch, everyone, bound, size)
    moved = (whole - step_on(task, batch, without, bound, size)).norm()
    assert moved <= bound
    # Clipped to the bound, and not to much less: a patient who is heard says something.
    if scale >= 1e4:
        assert moved > 0.99 * bound


def test_an_empty_sample_adds_nothing_of_the_drawn_images() -> None:
    model = gan(study())
    task = task_of(model, ["discriminator.*"], patients(1), drawn=4)
    rows = rows_of(task, task.loss(), (torch.zeros(0),))
    sums, _ = clipped_sum(list(rows.values()), 1.0)
    assert all((part == 0).all() for part in sums)


def test_the_drawn_images_are_as_many_whatever_the_patients() -> None:
    model = gan(study())
    for count in (1, 6):
        images, conditions = task_of(model, ["discriminator.*"], patients(count), drawn=4)._drawn()
        assert images.shape == (2, 4, 3, SIZE, SIZE)
        assert conditions.tolist() == [[0] * 4, [1] * 4]


def test_each_step_draws_images_anew() -> None:
    task = task_of(gan(study()), ["discriminator.*"], patients(1), drawn=1)
    with torch.no_grad():
        for layer in task.model.generator.to_image:
            layer.conv.weight.normal_(generator=torch.Generator().manual_seed(0))
    (one, _), (other, _) = task._drawn(), task._drawn()
    assert (one != other).any()


def round_of(
    chosen: Study, mode: GradSampleMode = "auto"
) -> tuple[dict[str, NDArray[np.float32]], dict[str, torch.Tensor]]:
    sent = {name: value.numpy().copy() for name, value in gan(chosen).state_dict().items()}
    model = load_model(chosen, sent)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepared = prepare_round(
        chosen, model, patients(9), round_number=1, noise_multiplier=1.0, declared_patients=9,
        noise=FastNoise(), device=torch.device("cpu"), batch_patients=4, grad_sample_mode=mode,
    )  # fmt: skip
    return train_round(prepared), before


def test_a_round_sends_the_private_part_of_the_discriminator_and_nothing_else() -> None:
    reply, before = round_of(study())
    assert set(reply) == set(private_names(gan(study()), study().model.private))
    assert all((reply[name] != before[name].numpy()).any() for name in reply)


@pytest.mark.parametrize("mode", ["vmap", "hooks"])
def test_sites_that_train_the_generator_send_it_too(mode: GradSampleMode) -> None:
    chosen = study(generator="sites", generator_steps=2, accuracy_floor=0.0)
    reply, before = round_of(chosen, mode)
    changed = [name for name in reply if (reply[name] != before[name].numpy()).any()]
    assert {name.split(".")[0] for name in changed} == {"discriminator", "generator"}
    assert "generator.root.weight" in changed
    # What is frozen of the discriminator stays.
    assert not any(name.startswith("discriminator.blocks") for name in reply)


def test_the_noise_in_a_reply_is_what_the_server_takes_it_to_be() -> None:
    chosen = small_study(
        model={"kind": "gan", "width": 4, "latent": 4, "discriminator_width": 4,
               "private": ["discriminator.*"]},
        stages={"dpsgd": {"steps_per_round": 3, "sample_rate": 0.5, "views_per_patient": 1,
                          "optimizer": "sgd", "learning_rate": 0.2, "max_grad_norm": 0.5}},
    )  # fmt: skip
    sent = {name: value.numpy().copy() for name, value in gan(chosen).state_dict().items()}
    prepared = prepare_round(
        chosen, load_model(chosen, sent), patients(0), round_number=1, noise_multiplier=2.0,
        declared_patients=40, noise=FastNoise(), device=torch.device("cpu"), batch_patients=4,
    )  # fmt: skip
    reply = train_round(prepared)
    # Without patients, a reply is nothing but noise.
    moved = np.concatenate([(reply[name] - sent[name]).ravel() for name in reply])
    expected = noise_of_reply(chosen.dpsgd, 2.0, 40)
    assert moved.std() == pytest.approx(expected, rel=0.05)
    assert abs(moved.mean()) < 0.05 * expected


@pytest.mark.parametrize("mode", ["vmap", "hooks"])
@pytest.mark.parametrize("views", [1, 3])
def test_one_patient_less_leaves_the_others_gradients_as_they_are_to_the_last_bit(
    views: int, mode: GradSampleMode
) -> None:
    model, site = gan(study()), patients(7)
    with torch.no_grad():
        model.discriminator.patch_vote.weight.mul_(1e4)
    task = task_of(model, ["discriminator.*"], site, drawn=5, mode=mode, views=views)
    loss, batch = task.loss(), task.load(np.arange(7))

    def rows(kept: list[int]) -> dict[str, torch.Tensor]:
        return rows_of(task, loss, tuple(tensor[kept] for tensor in batch), size=8)

    whole = rows(list(range(7)))
    for left_out in range(7):
        kept = [place for place in range(7) if place != left_out]
        without = rows(kept)
        assert all(torch.equal(without[name], whole[name][kept]) for name in whole)


def test_a_generator_that_draws_nothing_finite_is_refused_before_anything_is_spent() -> None:
    chosen = study()
    sent = {name: value.numpy().copy() for name, value in gan(chosen).state_dict().items()}
    sent["generator.root.weight"] *= np.float32(1e38)
    sent["generator.root.weight"] *= np.float32(1e38) / np.float32(1e37)
    sent["generator.from_latent.weight"] *= np.float32(1e38)
    sent = {name: np.clip(value, -3e38, 3e38) for name, value in sent.items()}
    with pytest.raises(ModelError, match="not finite"):
        prepare_round(
            chosen, load_model(chosen, sent), patients(3), round_number=1, noise_multiplier=1.0,
            declared_patients=9, noise=FastNoise(), device=torch.device("cpu"), batch_patients=4,
        )  # fmt: skip


def test_a_sites_generator_that_diverges_is_sent_as_it_came(monkeypatch) -> None:
    chosen = study(generator="sites", generator_steps=1, accuracy_floor=0.0)
    run = GeneratorTraining.run

    def diverging(self: GeneratorTraining, draws: torch.Generator) -> GeneratorReport:
        report = run(self, draws)
        with torch.no_grad():
            self.model.generator.root.weight[0, 0] = float("inf")
        return report

    monkeypatch.setattr(GeneratorTraining, "run", diverging)
    reply, before = round_of(chosen)
    for name, value in reply.items():
        assert np.isfinite(value).all()
        if name.startswith("generator."):
            assert (value == before[name].numpy()).all()


def test_a_patient_with_views_of_two_conditions_gets_the_mean_of_their_rows() -> None:
    model = gan(study())
    task = task_of(model, ["discriminator.*"], patients(2), drawn=2)
    task.loss()
    conditions = torch.tensor([[0, 1, 1], [0, 0, 0]])
    table = task._table_CD
    for name, rows in task.addend((torch.zeros(2, 3), conditions)):
        torch.testing.assert_close(rows[0], (table[name][0] + 2 * table[name][1]) / 3)
        torch.testing.assert_close(rows[1], table[name][0])


def test_the_table_that_was_checked_is_that_of_the_first_step_and_of_no_other(monkeypatch) -> None:
    task = task_of(gan(study()), ["discriminator.*"], patients(2), drawn=2)
    drawn, draw = [], GanLoss._drawn
    monkeypatch.setattr(GanLoss, "_drawn", lambda self: drawn.append(1) or draw(self))
    assert task.usable()
    first = task._checked
    task.loss()
    assert task._table_CD is first
    assert len(drawn) == 1
    task.loss()
    assert task._table_CD is not first
    assert len(drawn) == 2
