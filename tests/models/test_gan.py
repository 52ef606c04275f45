"""The GAN: what draws, what judges, and what of it may be trained on patients."""

import pytest
import torch

from fundusgen.errors import ModelError, StudyError
from fundusgen.models.factory import build_model, load_weights, private_names, reply_names
from fundusgen.models.gan import GAN
from fundusgen.models.losses import loss_of_generator, loss_on_drawn, loss_on_real
from fundusgen.study import Study, parse_study


def study(size: int = 32, **model: object) -> Study:
    return Study.model_validate(
        {
            "study_id": "t",
            "conditions": ["normal", "amd"],
            "image_size": size,
            "model": {
                "kind": "gan", "width": 4, "latent": 5, "discriminator_width": 4, **model,
            },
            "privacy": {"target_epsilon": 8},
            "federation": {"rounds": 1},
        }
    )  # fmt: skip


def gan(size: int = 32, **model: object) -> GAN:
    built = build_model(study(size, **model))
    assert isinstance(built, GAN)
    return built


def noise(model: GAN, count: int, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, model.noise_length, generator=draws)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_it_draws_and_judges_every_size(size: int) -> None:
    model = gan(size)
    conditions = torch.tensor([0, 1])
    drawn = model.draw(noise(model, 2), conditions)
    assert drawn.shape == (2, 3, size, size)
    assert drawn.abs().max() <= 1
    # Outside of the field of view nothing is drawn.
    assert (drawn[:, :, 0, 0] == -1).all()
    assert model(drawn, conditions).shape == (2,)


def test_the_grain_is_a_part_of_the_noise_and_of_nothing_else() -> None:
    model = gan()
    # 8, 16 and 32 pixels; the root of 4 has none.
    assert model.noise_length == 5 + 8**2 + 16**2 + 32**2
    with torch.no_grad():
        for layer in model.generator.grains:
            layer.strength.fill_(1.0)
        for layer in model.generator.to_image:
            layer.conv.weight.normal_(generator=torch.Generator().manual_seed(0))
    one = noise(model, 1)
    other = one.clone()
    other[:, -1] += 3
    condition = torch.tensor([0])
    changed = (model.draw(one, condition) - model.draw(other, condition)).abs().amax((0, 1)) > 0
    # The last number is the last pixel of the last level, outside of the field of view and so
    # black; the one in the middle is seen where it is.
    assert not changed.any()
    middle = one.clone()
    middle[:, -(32 * 16 + 16)] += 3
    changed = (model.draw(one, condition) - model.draw(middle, condition)).abs().amax((0, 1)) > 0
    assert changed.nonzero().tolist() == [[15, 16]]


def test_one_patients_loss_does_not_depend_on_the_others_of_a_batch() -> None:
    model = gan()
    images = model.draw(noise(model, 3), torch.tensor([0, 1, 1])).detach()
    together = model(images, torch.tensor([0, 1, 1]))
    alone = torch.cat(
        [model(images[i : i + 1], torch.tensor([[0], [1], [1]][i])) for i in range(3)]
    )
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("kind", ["logistic", "hinge"])
def test_each_side_pays_for_what_the_other_wants(kind) -> None:
    votes = torch.linspace(-3, 3, 13, requires_grad=True)
    for pays, falls in ((loss_on_real, True), (loss_on_drawn, False), (loss_of_generator, True)):
        (slope,) = torch.autograd.grad(pays(votes, kind).sum(), votes)
        assert ((slope <= 0) if falls else (slope >= 0)).all()
        assert slope.abs().sum() > 0


def test_the_logistic_loss_is_that_of_the_paper() -> None:
    votes = torch.tensor([-2.0, 0.5])
    probability = torch.sigmoid(votes)
    torch.testing.assert_close(loss_on_real(votes, "logistic"), -probability.log())
    torch.testing.assert_close(loss_on_drawn(votes, "logistic"), -(1 - probability).log())
    torch.testing.assert_close(loss_of_generator(votes, "logistic"), -probability.log())


@pytest.mark.parametrize(("width", "least", "most"), [(8, 30_000, 50_000), (72, 2_500_000, 4e6)])
def test_discriminators_come_in_every_size(width: int, least: float, most: float) -> None:
    model = gan(64, discriminator_width=width)
    assert least < sum(p.numel() for p in model.discriminator.parameters()) < most


def test_by_default_patients_train_the_votes_of_the_discriminator() -> None:
    names = private_names(gan(), study().model.private)
    assert names == (
        "discriminator.patch_vote.weight", "discriminator.patch_vote.bias",
        "discriminator.embedding.weight",
        "discriminator.whole_vote.weight", "discriminator.whole_vote.bias",
    )  # fmt: skip


@pytest.mark.parametrize("private", ["*", "generator.*", "[dg]*", "?iscriminator.*"])
def test_the_generator_can_not_be_declared_private(private: str) -> None:
    with pytest.raises(ValueError, match=r"begin each pattern with 'discriminator\.'"):
        study(private=[private])


def test_sites_send_the_generator_only_where_they_train_it() -> None:
    sent = reply_names(study())
    assert all(name.startswith("discriminator.") for name in sent)
    with_generator = set(reply_names(study(generator="sites")))
    generator = {f"generator.{name}" for name, _ in gan().generator.named_parameters()}
    assert with_generator == set(sent) | generator


def test_an_ensemble_is_the_servers() -> None:
    with pytest.raises(ValueError, match="each site has only its own"):
        study(ensemble=True, generator="sites")


def test_a_word_is_enough_to_choose_a_gan() -> None:
    text = (
        '{"study_id": "t", "conditions": ["amd"], "model": MODEL, '
        '"privacy": {"target_epsilon": 8}, "federation": {"rounds": 1}}'
    )
    assert parse_study(text.replace("MODEL", '"gan"'), source="t").gan.generator == "server"
    with pytest.raises(StudyError, match="should be 'vae' or 'gan'"):
        parse_study(text.replace("MODEL", '"gna"'), source="t")
    with pytest.raises(StudyError, match=r"'model\.ensembel', did you mean 'ensemble'"):
        parse_study(text.replace("MODEL", '{"kind": "gan", "ensembel": true}'), source="t")
    with pytest.raises(StudyError, match=r"unknown key 'model\.beta'"):
        parse_study(text.replace("MODEL", '{"kind": "gan", "beta": 3}'), source="t")


def test_a_vae_has_no_gan_settings() -> None:
    vae = Study.model_validate({**study().model_dump(), "model": {"kind": "vae"}})
    with pytest.raises(StudyError, match="is a vae"):
        _ = vae.gan


def test_the_weights_of_a_vae_are_no_gan() -> None:
    vae = Study.model_validate({**study().model_dump(), "model": {"kind": "vae", "width": 4}})
    weights = build_model(vae).state_dict()
    with pytest.raises(ModelError, match="do not fit"):
        load_weights(gan(), weights)
