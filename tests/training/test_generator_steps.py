"""Steps of the generator: what they change, when they wait, and how they go on."""

import copy

import numpy as np
import pytest
import torch

from fundusgen.models.factory import build_model
from fundusgen.models.gan import GAN
from fundusgen.study import GANSettings, Study
from fundusgen.training.generator_steps import GeneratorTraining, Judge, PublicCritic


def study(**model: object) -> Study:
    return Study.model_validate(
        {
            "study_id": "t",
            "conditions": ["normal", "amd"],
            "image_size": 32,
            "model": {
                "kind": "gan", "width": 4, "latent": 4, "discriminator_width": 4,
                "generator_steps": 3, "generator_batch": 4, "accuracy_floor": 0,
                "generator_learning_rate": 0.01, **model,
            },
            "privacy": {"target_epsilon": 8},
            "federation": {"rounds": 1},
        }
    )  # fmt: skip


def gan(vote: float = 0.0, **model: object) -> GAN:
    """A GAN whose discriminator gives every image about the same vote."""
    built = build_model(study(**model))
    assert isinstance(built, GAN)
    with torch.no_grad():
        for layer in (built.discriminator.patch_vote, built.discriminator.whole_vote):
            layer.bias.fill_(vote)
    return built


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def critic(model: GAN) -> PublicCritic:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    conditions = np.arange(6, dtype=np.int64) % 2
    return PublicCritic(copy.deepcopy(model.discriminator), images, conditions, "logistic", 0.01)


def test_the_generator_changes_and_the_discriminator_does_not() -> None:
    model = gan()
    before = state(model)
    report = GeneratorTraining(model, study().gan).run(draws())
    assert report.steps == 3
    after = model.state_dict()
    changed = {name.split(".")[0] for name in after if (after[name] != before[name]).any()}
    assert changed == {"generator"}


def test_no_gradient_of_a_step_stays_with_the_discriminator() -> None:
    model = gan()
    GeneratorTraining(model, study().gan).run(draws())
    for parameter in model.discriminator.parameters():
        assert parameter.grad is None
        assert getattr(parameter, "grad_sample", None) is None
        # And it can be trained on patients again.
        assert parameter.requires_grad


def test_it_learns_to_please_the_discriminator() -> None:
    model = gan(generator_steps=30)
    noise = torch.randn(8, model.noise_length, generator=draws())
    conditions = torch.tensor([0, 1] * 4)

    def vote() -> float:
        with torch.no_grad():
            return float(model.discriminator(model.draw(noise, conditions), conditions).mean())

    before = vote()
    GeneratorTraining(model, study(generator_steps=30).gan).run(draws())
    assert vote() > before


def test_it_waits_for_a_discriminator_that_takes_what_is_drawn_for_real() -> None:
    model = gan(vote=5.0)
    before = state(model)
    report = GeneratorTraining(model, study(accuracy_floor=0.6).gan).run(draws())
    assert (report.steps, report.accuracy) == (0, 0.0)
    assert all((value == before[name]).all() for name, value in model.state_dict().items())


def test_it_does_not_wait_for_one_that_knows_what_is_drawn() -> None:
    model = gan(vote=-5.0)
    report = GeneratorTraining(model, study(accuracy_floor=0.6).gan).run(draws())
    assert (report.steps, report.accuracy) == (3, 1.0)


def test_the_say_of_an_ensemble_is_the_mean_of_its_judges() -> None:
    chosen = study(ensemble=True, generator_steps=1).gan
    one, other = gan(), gan()
    with torch.no_grad():
        other.discriminator.patch_vote.weight.neg_()
    both = [Judge(one.discriminator, 0.25), Judge(other.discriminator, 0.75)]
    model = gan()
    training = GeneratorTraining(model, chosen, both)
    training.run(draws())
    found = [p.grad for p in model.generator.parameters() if p.grad is not None]
    expected = []
    for judge in both:
        alone = gan()
        GeneratorTraining(alone, chosen, [Judge(judge.discriminator, 1.0)]).run(draws())
        expected.append(
            [judge.share * p.grad for p in alone.generator.parameters() if p.grad is not None]
        )
    assert found
    for value, first, second in zip(found, *expected, strict=True):
        torch.testing.assert_close(value, first + second, rtol=1e-4, atol=1e-7)


def test_the_public_critic_learns_beside_the_generator() -> None:
    model = gan()
    public = critic(model)
    before = state(public.discriminator)
    GeneratorTraining(model, study().gan, critic=public).run(draws())
    after = public.discriminator.state_dict()
    assert any((after[name] != before[name]).any() for name in after)


@pytest.mark.parametrize("with_critic", [False, True])
def test_a_run_that_was_cut_in_two_comes_to_the_same(with_critic: bool) -> None:
    def training(model: GAN) -> GeneratorTraining:
        public = critic(gan()) if with_critic else None
        return GeneratorTraining(model, study().gan, critic=public)

    whole, halves = gan(), gan()
    once = training(whole)
    random = draws()
    once.run(random)
    once.run(random)

    random = draws()
    first = training(halves)
    first.run(random)
    second = training(halves)
    second.go_on(first.state())
    second.run(random)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, halves.state_dict()[name], rtol=0, atol=0)
    assert set(second.state()) == set(once.state())


def test_settings_are_those_of_a_gan() -> None:
    assert isinstance(study().gan, GANSettings)
