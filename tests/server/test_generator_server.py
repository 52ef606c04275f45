"""The generator at the server: it learns between rounds, goes on after a crash, and is watched."""

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fundusgen.federation.checkpoint import latest_checkpoint
from fundusgen.federation.weights import Weights
from fundusgen.models.factory import build_model, load_weights, reply_names
from fundusgen.models.gan import GAN
from fundusgen.models.generator import Generator
from fundusgen.run_folder import RunFolder
from fundusgen.study import Study
from fundusgen.training.generator_steps import GeneratorReport, GeneratorTraining
from fundusgen.training.poll import reply_shapes
from fundusgen.training.prior import pretrained
from fundusgen.training.prior_file import save_prior
from server.generator import GeneratorServer, Health
from server.postprocess import Postprocess
from server.preparation import prepare_public
from server.strategy import update_norm
from server.voting import SiteVotes

# Share of each site, and the noise in its reply.
NOISES = [(1.0, 0.1), (3.0, 0.1)]


def study(prior: bool = True, **model: object) -> Study:
    return Study.model_validate(
        {
            "study_id": "t",
            "conditions": ["normal", "amd"],
            "image_size": 32,
            "model": {
                "kind": "gan", "width": 4, "latent": 4, "discriminator_width": 4,
                "generator_steps": 2, "generator_batch": 4, "accuracy_floor": 0, **model,
            },
            "prior": {"phantoms": 16, "steps": 4, "batch": 4} if prior else None,
            "privacy": {"target_epsilon": 8},
            "federation": {"rounds": 4, "min_sites": 1},
            "evaluation": {"samples_per_condition": 2, "every_rounds": 2, "phantoms": 2},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("priors")


@pytest.fixture
def folders(tmp_path: Path, cache: Path) -> Iterator[object]:
    """Makes run folders with the prior of a study in them."""

    def make(chosen: Study, name: str = "run") -> RunFolder:
        run = RunFolder(tmp_path / name)
        run.path.mkdir(exist_ok=True)
        if chosen.prior is not None and not run.prior.is_file():
            save_prior(run.prior, chosen, pretrained(chosen, cache))
        return run

    return make


def replies(
    chosen: Study, server: Postprocess, seed: int, scale: float = 0.05
) -> list[tuple[float, Weights]]:
    """Two sites that moved the discriminator a little."""
    rng = np.random.default_rng(seed)
    sent = server.request(server.state.round_number + 1)
    return [
        (share, {
            name: sent[name] + scale * rng.standard_normal(sent[name].shape).astype(np.float32)
            for name in reply_names(chosen)
        })
        for share in (1.0, 3.0)
    ]  # fmt: skip


def finish(chosen: Study, server: Postprocess, number: int) -> Weights:
    return server.finish_round(
        number, replies(chosen, server, number), NOISES, sites=[], seconds=0.0
    )


def moved(before: Weights, after: Weights) -> set[str]:
    return {name for name in after if (before[name] != after[name]).any()}


def test_a_round_moves_the_private_part_to_the_average_and_lets_the_generator_learn(
    folders,
) -> None:
    chosen = study()
    server = Postprocess(chosen, folders(chosen))
    before, sent = dict(server.state.weights), replies(chosen, server, 1)
    after = server.finish_round(1, sent, NOISES, sites=[], seconds=0.0)
    changed = moved(before, after)
    of_discriminator = {name for name in changed if name.startswith("discriminator.")}
    assert of_discriminator == set(reply_names(chosen))
    for name in of_discriminator:
        expected = 0.25 * sent[0][1][name] + 0.75 * sent[1][1][name]
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6)
    assert "generator.root.weight" in changed
    (entry,) = server.run.metrics()
    assert entry["generator"]["steps"] == 2
    assert entry["public_loss"] is None


@pytest.mark.parametrize("optimizer", ["average", "adam"])
def test_the_generators_of_sites_are_averaged_whatever_the_servers_optimizer(
    folders, optimizer: str
) -> None:
    content = study(generator="sites").model_dump()
    content["federation"]["server_optimizer"] = optimizer
    chosen = Study.model_validate(content)
    server = Postprocess(chosen, folders(chosen))
    sent = replies(chosen, server, 1)
    after = server.finish_round(1, sent, NOISES, sites=[], seconds=0.0)
    name = "generator.root.weight"
    expected = 0.25 * sent[0][1][name] + 0.75 * sent[1][1][name]
    np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6)
    assert "steps" not in server.run.metrics()[0]["generator"]
    assert not any("generator." in moment for moment in server.state.optimizer)
    assert bool(server.state.optimizer) == (optimizer == "adam")


@pytest.mark.parametrize("model", [{}, {"ensemble": True}, {"phantoms_say": 0}])
def test_a_server_that_was_killed_goes_on_to_the_same_weights(folders, model) -> None:
    chosen = study(**model)
    whole = Postprocess(chosen, folders(chosen, "whole"))
    for number in (1, 2, 3):
        finish(chosen, whole, number)
    cut = Postprocess(chosen, folders(chosen, "cut"))
    finish(chosen, cut, 1)
    for number in (2, 3):
        # Made anew from the folder before each round.
        cut = Postprocess(chosen, folders(chosen, "cut"))
        assert cut.state.round_number == number - 1
        finish(chosen, cut, number)
    assert moved(whole.state.weights, cut.state.weights) == set()
    assert moved(whole.state.average, cut.state.average) == set()
    assert moved(whole.state.optimizer, cut.state.optimizer) == set()


def test_an_ensemble_teaches_something_else_than_the_average(folders) -> None:
    taught = []
    for ensemble in (False, True):
        chosen = study(ensemble=ensemble)
        server = Postprocess(chosen, folders(chosen, f"run-{ensemble}"))
        sent = replies(chosen, server, 1, scale=1.0)
        after = server.finish_round(1, sent, NOISES, sites=[], seconds=0.0)
        taught.append(after["generator.root.weight"])
    assert (taught[0] != taught[1]).any()


def judges_of(chosen: Study, folder: RunFolder, monkeypatch) -> tuple[list[Weights], Weights, list]:
    """Train a round; returns the ensemble's private weights, the server's, and the replies."""
    seen: list[Weights] = []

    class Looking(GeneratorTraining):
        def __init__(self, model, settings, judges, critic) -> None:
            seen.extend(
                {f"discriminator.{name}": value.cpu().numpy().copy()
                 for name, value in judge.discriminator.state_dict().items()}
                for judge in judges
            )  # fmt: skip
            super().__init__(model, settings, judges, critic)

    monkeypatch.setattr("server.generator.GeneratorTraining", Looking)
    server = Postprocess(chosen, folder)
    sent = replies(chosen, server, 1)
    return seen, server.finish_round(1, sent, NOISES, sites=[], seconds=0.0), sent


@pytest.mark.parametrize("optimizer", ["average", "adam"])
def test_an_ensemble_stands_around_the_discriminator_that_the_server_made(
    folders, monkeypatch, optimizer: str
) -> None:
    content = study(ensemble=True).model_dump()
    content["federation"] |= {"server_optimizer": optimizer, "server_learning_rate": 0.5}
    chosen = Study.model_validate(content)
    judges, after, sent = judges_of(chosen, folders(chosen), monkeypatch)
    assert len(judges) == 2
    for name in reply_names(chosen):
        middle = 0.25 * judges[0][name] + 0.75 * judges[1][name]
        np.testing.assert_allclose(middle, after[name], rtol=1e-4, atol=1e-5)
        apart = sent[0][1][name] - sent[1][1][name]
        np.testing.assert_allclose(judges[0][name] - judges[1][name], apart, rtol=1e-3, atol=1e-5)


def test_a_site_whose_generator_was_trained_is_no_outlier_for_it(folders) -> None:
    chosen = study(generator="sites")
    server = Postprocess(chosen, folders(chosen))
    sent, ((_, waited), _) = server.request(1), replies(chosen, server, 1)
    trained = {n: v + 100 if n.startswith("generator.") else v for n, v in waited.items()}
    assert update_norm(trained, sent) == update_norm(waited, sent) > 0


def test_without_a_prior_there_are_no_phantoms_and_no_floor(folders) -> None:
    chosen = study(prior=False)
    server = Postprocess(chosen, folders(chosen))
    finish(chosen, server, 1)
    assert server.run.metrics()[0]["generator"]["floor"] == 0
    assert not any(name.startswith("generator/critic") for name in server.state.optimizer)


def flat(weights: Weights) -> Weights:
    """A generator whose pictures are all alike."""
    return {
        name: np.zeros_like(value) if name.startswith("generator.to_image") else value
        for name, value in weights.items()
    }


def test_a_collapse_is_named_and_the_last_good_generator_is_kept(
    folders, monkeypatch, caplog
) -> None:
    chosen = study()
    server = Postprocess(chosen, folders(chosen))
    finish(chosen, server, 1)
    assert not server.run.metrics()[-1]["generator"]["collapsed"]
    good = server.state.average
    looked = GeneratorServer.health
    monkeypatch.setattr(
        GeneratorServer, "health", lambda self, weights: looked(self, flat(weights))
    )
    with caplog.at_level(logging.WARNING):
        finish(chosen, server, 2)
        finish(chosen, server, 3)
    assert [record.message for record in caplog.records if "collapsed" in record.message] == [
        message
        for message in [caplog.records[0].message]
        if "the one of round 1 is kept" in message
    ]
    assert server.run.metrics()[-1]["generator"]["collapsed"]
    assert moved(good, server.state.drawn_from) == set()
    # It is the kept one that is exported, also by a server that was started again.
    again = Postprocess(chosen, folders(chosen))
    again.finish_run()
    exported = Generator.load(again.run.generator)
    expected = Generator(chosen, good)
    for condition in ("normal", "amd"):
        (one,), (other,) = (list(g.draw(condition, 2, seed=0)) for g in (exported, expected))
        assert (one.images_NSSC == other.images_NSSC).all()
    # And when it draws well again, the newest is drawn from again.
    monkeypatch.setattr(GeneratorServer, "health", looked)
    finish(chosen, again, 4)
    assert again.state.kept == {}


def test_pictures_that_are_alike_are_a_collapse_and_those_of_the_prior_are_not(folders) -> None:
    chosen = study()
    server = Postprocess(chosen, folders(chosen))
    assert server.generator is not None
    assert not server.generator.health(server.state.weights).collapsed
    assert server.generator.health(flat(server.state.weights)).collapsed
    assert Health(None, 0.0).collapsed


def alike(weights: Weights, server: Postprocess, condition: str) -> GAN:
    """A GAN whose pictures of one condition are all the same, and those of others as before."""
    model = build_model(server.study)
    load_weights(model, {name: torch.from_numpy(value) for name, value in weights.items()})
    assert isinstance(model, GAN)
    drawn, place = model.draw, server.study.conditions.index(condition)

    def draw(noise: torch.Tensor, conditions_N: torch.Tensor) -> torch.Tensor:
        same = torch.where((conditions_N == place)[:, None], noise[:1], noise)
        return drawn(same, conditions_N)

    model.draw = draw  # type: ignore[method-assign]
    return model


def test_one_condition_that_collapses_is_named(folders, monkeypatch) -> None:
    chosen = study()
    server = Postprocess(chosen, folders(chosen))
    assert server.generator is not None
    assert server.generator.health(server.state.weights).collapsed_conditions == ()
    broken = alike(server.state.weights, server, "amd")
    monkeypatch.setattr(GeneratorServer, "_model", lambda self, weights: broken)
    health = server.generator.health(server.state.weights)
    assert health.collapsed_conditions == ("amd",)
    assert health.collapsed


def test_a_generator_that_diverges_is_taken_back(folders, monkeypatch, caplog) -> None:
    chosen = study()
    server = Postprocess(chosen, folders(chosen))
    before, run = dict(server.state.weights), GeneratorTraining.run

    def diverging(self: GeneratorTraining, draws: torch.Generator) -> GeneratorReport:
        report = run(self, draws)
        with torch.no_grad():
            self.model.generator.root.weight[0, 0] = math.nan
        return report

    monkeypatch.setattr(GeneratorTraining, "run", diverging)
    with caplog.at_level(logging.WARNING):
        after = finish(chosen, server, 1)
    assert "diverged" in caplog.text
    assert not any(name.startswith("generator.") for name in moved(before, after))
    # What it went on with is as broken, and forgotten.
    assert not any(name.startswith("generator/") for name in server.state.optimizer)


def test_a_checkpoint_holds_all_that_the_generator_goes_on_with(folders) -> None:
    chosen = study()
    server = Postprocess(chosen, folders(chosen))
    finish(chosen, server, 1)
    read = latest_checkpoint(server.run.checkpoints, chosen.study_hash)
    assert read is not None
    parts = {name.split("/")[1] for name in read.optimizer if name.startswith("generator/")}
    assert parts == {"adam", "critic"}
    assert replace(read, weights={}, average={}, optimizer={}, kept={}) == replace(
        server.state, weights={}, average={}, optimizer={}, kept={}
    )


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_refit_that_collapses_is_named_and_the_prior_kept(
    folders, cache, monkeypatch, caplog, goes_on: bool
) -> None:
    content = study().model_dump()
    votes = {"rounds": 1, "candidates": 8, "refit_phantoms": 16, "refit_steps": 2}
    content["stages"] = {"votes": votes, "dpsgd": content["stages"]["dpsgd"] if goes_on else None}
    content["federation"]["rounds"] = 2 if goes_on else 0
    chosen = Study.model_validate(content)
    run = folders(chosen)
    prepare_public(chosen, run, cache)
    server = Postprocess(chosen, run)
    prior = dict(server.state.average)
    fitted = Postprocess._refitted
    monkeypatch.setattr(Postprocess, "_refitted", lambda self, voting: flat(fitted(self, voting)))
    shapes = reply_shapes(chosen.votes)
    reply = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    server.request(1)
    with caplog.at_level(logging.WARNING):
        server.finish_vote(1, [SiteVotes(reply, 1.0, 40)], sites=[], seconds=0.0)
    assert "has collapsed" in caplog.text
    assert "the prior is kept" in caplog.text
    assert server.run.metrics()[-1]["generator"]["collapsed"]
    if goes_on:
        monkeypatch.setattr(GeneratorTraining, "run", lambda self, draws: GeneratorReport(0, 1.0))
        finish(chosen, server, 2)
    # Also a server that was started again exports the prior, and says so.
    again = Postprocess(chosen, run)
    assert moved(prior, again.state.drawn_from) == set()
    again.finish_run()
    assert "that of before the first round" in run.report.read_text()


def test_a_refit_that_draws_well_is_drawn_from(folders, cache) -> None:
    content = study().model_dump()
    votes = {"rounds": 1, "candidates": 8, "refit_phantoms": 16, "refit_steps": 2}
    content["stages"] = {"votes": votes, "dpsgd": None}
    content["federation"]["rounds"] = 0
    chosen = Study.model_validate(content)
    run = folders(chosen)
    prepare_public(chosen, run, cache)
    server = Postprocess(chosen, run)
    server.request(1)
    reply = {n: np.zeros(s, np.float32) for n, s in reply_shapes(chosen.votes).items()}
    server.finish_vote(1, [SiteVotes(reply, 1.0, 40)], sites=[], seconds=0.0)
    assert not server.run.metrics()[-1]["generator"]["collapsed"]
    assert server.state.kept == {}
    assert build_model(chosen).noise_length > chosen.model.latent
