import pytest
import torch
from torch.func import functional_call, grad, vmap

from fundusgen.errors import ModelError
from fundusgen.models.factory import build_model, load_weights, private_names
from fundusgen.models.vae import VAE
from fundusgen.study import Study


def study(**changes: object) -> Study:
    content: dict[str, object] = {
        "study_id": "t",
        "seed": 3,
        "conditions": ["normal", "amd"],
        "image_size": 32,
        "model": {"width": 4, "latent": 5, "beta": 1},
        "privacy": {"target_epsilon": 8},
        "federation": {"rounds": 1},
    }
    return Study.model_validate({**content, **changes})


def batch(model: VAE, count: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    size = model.image_size
    images = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    conditions = torch.arange(count) % 2
    return images, conditions, torch.randn(count, model.latent, generator=generator)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_images_have_the_study_s_size_and_are_black_outside_the_field(size: int) -> None:
    model = build_model(study(image_size=size))
    drawn = model.decoder(torch.randn(2, 5), torch.tensor([0, 1]))
    assert drawn.shape == (2, 3, size, size)
    assert drawn.min() >= -1
    assert drawn.max() <= 1
    assert (drawn[:, :, 0, 0] == -1).all()


def test_the_loss_of_a_sample_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = build_model(study())
    images, conditions, noise = batch(model, 4)
    together = model(images, conditions, noise)
    alone = torch.cat(
        [model(images[i : i + 1], conditions[i : i + 1], noise[i : i + 1]) for i in range(4)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_evidence_lower_bound_written_out() -> None:
    model = build_model(study())
    images, conditions, noise = batch(model, 3)
    mean, log_variance = model.encoder(images, conditions)
    drawn = model.decoder.decode(mean + noise * torch.exp(log_variance / 2), conditions)
    posterior = torch.distributions.Normal(mean, torch.exp(log_variance / 2))
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    kl = torch.distributions.kl_divergence(posterior, prior).sum(1)
    values = 3 * 32 * 32
    expected = ((drawn - images) ** 2).sum((1, 2, 3)) / (2 * 0.15**2) + kl
    torch.testing.assert_close(model(images, conditions, noise), expected / values)


def test_gradients_of_single_samples_equal_those_of_a_loop() -> None:
    model = build_model(study())
    images, conditions, noise = batch(model, 3)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict, image: torch.Tensor, condition: torch.Tensor, z: torch.Tensor):
        return functional_call(model, parameters, (image[None], condition[None], z[None]))[0]

    fast = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, images, conditions, noise)
    for index in range(3):
        model.zero_grad()
        one = (images[index : index + 1], conditions[index : index + 1], noise[index : index + 1])
        model(*one).sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(fast[name][index], parameter.grad, rtol=1e-3, atol=1e-5)


def test_before_training_it_draws_one_plain_colour_whatever_is_asked() -> None:
    model = build_model(study())
    drawn = model.decoder(torch.randn(4, 5), torch.tensor([0, 1, 0, 1]))
    inside = drawn[:, :, 16, 8:24]
    torch.testing.assert_close(inside, inside[:1, :, :1].expand_as(inside))


def test_every_parameter_gets_a_gradient() -> None:
    model = build_model(study())
    model(*batch(model, 4)).sum().backward()
    # Scale and shift of a norm start at zero and reach the loss all the same.
    assert all(p.grad is not None for p in model.parameters())


def test_the_same_seed_gives_the_same_first_weights_and_leaves_torch_s_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, other = build_model(study()).state_dict(), build_model(study()).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], other[name]) for name in one)
    third = build_model(study(seed=4)).state_dict()
    assert not torch.equal(one["encoder.head.weight"], third["encoder.head.weight"])


def test_the_private_subset_is_chosen_by_pattern() -> None:
    model = build_model(study())
    chosen = private_names(model, ["decoder.*modulation*", "decoder.to_image.*"])
    assert chosen
    assert all(name.startswith("decoder.") for name in chosen)
    assert "decoder.to_image.0.conv.bias" in chosen
    assert len(private_names(model, ["*"])) == len(list(model.parameters()))


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ModelError, match="matches no parameter"):
        private_names(build_model(study()), ["decoder.*", "decodr.*"])


def test_weights_of_another_model_are_an_error() -> None:
    other = build_model(study(model={"width": 8, "latent": 5})).state_dict()
    with pytest.raises(ModelError, match="do not fit"):
        load_weights(build_model(study()), other)


@pytest.mark.parametrize(("size", "width"), [(48, 8), (64, 6)])
def test_a_size_or_width_that_cannot_be_built_is_an_error(size: int, width: int) -> None:
    with pytest.raises(ModelError):
        VAE(image_size=size, conditions=2, width=width, latent=4)


def test_noise_is_decoded_as_it_is_until_the_model_is_settled() -> None:
    decoder = build_model(study()).decoder
    noise, conditions = torch.randn(4, 5), torch.tensor([0, 1, 0, 1])
    decoder.to_image[-1].conv.weight.data.normal_()
    torch.testing.assert_close(decoder(noise, conditions), decoder.decode(noise, conditions))


def test_a_settled_decoder_draws_from_where_the_encoder_puts_a_condition_s_images() -> None:
    model = build_model(study())
    images, conditions, _ = batch(model, 600)
    images = images * torch.rand(600, 1, 1, 1)
    model.settle(images, conditions)
    with torch.no_grad():
        mean, log_variance = model.encoder(images, conditions)
    for condition in (0, 1):
        chosen = conditions == condition
        torch.testing.assert_close(
            model.decoder.place[condition], mean[chosen].mean(0), rtol=0.1, atol=0.05
        )
        spread = model.decoder.spread[condition]
        covariance = torch.cov(mean[chosen].T) + torch.diag(log_variance[chosen].exp().mean(0))
        torch.testing.assert_close(spread @ spread.T, covariance, rtol=0.1, atol=0.05)


def test_a_condition_without_images_is_drawn_from_where_all_others_lie() -> None:
    model = build_model(study())
    images, _, _ = batch(model, 50)
    model.settle(images, torch.zeros(50, dtype=torch.int64))
    torch.testing.assert_close(model.decoder.place[0], model.decoder.place[1])
    torch.testing.assert_close(model.decoder.spread[0], model.decoder.spread[1])


def test_a_single_image_is_enough_to_settle() -> None:
    model = build_model(study())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.settle(torch.zeros(1, 3, 32, 32), torch.tensor([1]))
    drawn = model.decoder(torch.randn(2, 5), torch.tensor([0, 1]))
    assert torch.isfinite(drawn).all()
    # What is private is a choice among the parameters; where to draw from is none.
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert {"decoder.place", "decoder.spread"} <= model.state_dict().keys()
