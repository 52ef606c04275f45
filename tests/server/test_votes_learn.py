"""Votes do what they are for: phantoms become like the photographs of a hospital.

From end to end: a hospital of phantoms of one camera on disk, the server's poll, the site's answer
with its ledger, and the next generation. With nearly no noise, as what is tested is the learning.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save

from fundusgen.data.conditions import CONDITIONS
from fundusgen.data.manifest import ManifestSettings
from fundusgen.data.patients import load_patients
from fundusgen.federation.exchange import Answer, Request
from fundusgen.federation.weights import Weights
from fundusgen.phantom.mix import mixed_places
from fundusgen.phantom.site import write_site_folder
from fundusgen.privacy.policy import Policy
from fundusgen.run_folder import RunFolder
from fundusgen.site import SiteData, SiteFolder, SiteSettings
from fundusgen.storage import write_atomically
from fundusgen.study import Study
from fundusgen.training import vote_space as vote_space_module
from fundusgen.training.answering import answer
from fundusgen.training.appearance import appearance_of
from fundusgen.training.population import VotedPopulation
from fundusgen.training.vote_space import vote_space
from server.voting import SiteVotes, Voting

# Enough of them that the noise of one run decides nothing.
PATIENTS = 120
STUDY = Study.model_validate(
    {
        "study_id": "learns",
        "conditions": ["normal", "amd"],
        "image_size": 32,
        "prior": {},
        "stages": {
            "votes": {"rounds": 2, "candidates": 96, "appearance_share": 0}, "dpsgd": None,
        },
        "privacy": {"target_epsilon": 50},
        "federation": {},
    }
)  # fmt: skip
ASKS_BOTH = Study.model_validate(
    {
        **STUDY.model_dump(mode="json"),
        "stages": {
            "votes": {"rounds": 2, "candidates": 96, "appearance_share": 0.3}, "dpsgd": None,
        },
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Weights:
    """An encoder that has learned for seconds: colours, and little more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vote_space_module, "_PHANTOMS", 256)
        patch.setattr(vote_space_module, "_STEPS", 120)
        weights = vote_space(STUDY, tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(threads)
    return weights


def hospital(folder: Path, camera_style: str, study: Study = STUDY) -> SiteFolder:
    write_site_folder(
        folder / "data", patients=PATIENTS, seed=5, size_px=64, camera_style=camera_style,
        conditions_mix={"normal": 1, "amd": 1},
    )  # fmt: skip
    site = SiteFolder(folder)
    data = SiteData(
        manifest=Path("data/manifest.csv"), root=Path("data"), declared_patients=PATIENTS
    )
    site.write(
        SiteSettings(name="north", data=data, threads=1),
        Policy(
            max_epsilon=60.0, delta=1e-5, code="any", studies=(study.study_hash,),
            min_noise_multiplier=0.05,
        ),
    )  # fmt: skip
    return site


def voted(site: SiteFolder, voting: Voting) -> None:
    study = voting.study
    for vote in (1, 2):
        request = Request(study.agreed_json(), study.study_hash, vote, "votes", voting.poll(vote))
        reply = answer(site, request)
        assert isinstance(reply, Answer), reply
        noise = reply.receipt.event.noise_multiplier
        voting.count(vote, [SiteVotes(reply.weights, noise, PATIENTS)])


def share(population: VotedPopulation, camera_style: str) -> float:
    """How much of the next phantoms will be of a camera style."""
    lineages = population.lineages(np.arange(600) % 2, 1)
    return Counter(line.camera_style for line in lineages)[camera_style] / 600


def colours(images_NSSC: np.ndarray) -> np.ndarray:
    return images_NSSC.reshape(-1, 3).mean(axis=0)


@pytest.mark.parametrize("camera_style", ["amber", "ember"])
def test_after_two_votes_most_phantoms_are_like_the_photographs_of_the_hospital(
    encoder, tmp_path, camera_style: str
) -> None:
    site, run = hospital(tmp_path / "site", camera_style), RunFolder(tmp_path / "run")
    write_atomically(run.votes / "encoder.safetensors", save(encoder))
    voting = Voting(STUDY, run)
    voted(site, voting)
    first, last = voting._asked(1), voting.population(2)
    began = Counter(line.camera_style for line in first.lineages)[camera_style] / 96
    shares = [began, share(voting.population(1), camera_style), share(last, camera_style)]
    # Noise decides which of two votes that have both found the camera finds it more often.
    assert shares[0] < min(shares[1:])
    assert shares[2] > max(2 * began, 0.5)

    # Not only by name: what is drawn has the colours of the photographs.
    settings = ManifestSettings.of(site.settings().data)
    patients = load_patients(settings, 32, CONDITIONS, site.cache).dataset
    real = colours(patients.pixels(np.arange(patients.image_count)))
    before = last.images(first.lineages)
    after = last.images(last.lineages(np.arange(96) % 2, 1))
    assert np.linalg.norm(colours(after) - real) < 0.5 * np.linalg.norm(colours(before) - real)


def test_votes_of_nobody_lead_nowhere(encoder, tmp_path) -> None:
    """What made the phantoms alike above were patients, not the counting."""
    run = RunFolder(tmp_path / "run")
    write_atomically(run.votes / "encoder.safetensors", save(encoder))
    voting = Voting(STUDY, run)
    for vote in (1, 2):
        voting.poll(vote)
        noise = np.random.default_rng(vote).normal(0, 1.5, 96).clip(-2.9, 2.9)
        said = SiteVotes({"votes": noise.astype(np.float32)}, 1.5, PATIENTS)
        tally = voting.count(vote, [said])
        assert tally.undecided == ("normal", "amd")
    began = Counter(line.camera_style for line in voting._asked(1).lineages)
    for style, count in began.items():
        assert abs(share(voting.population(2), style) - count / 96) < 0.15


def photographs(site: SiteFolder) -> np.ndarray:
    settings = ManifestSettings.of(site.settings().data)
    patients = load_patients(settings, 32, CONDITIONS, site.cache).dataset
    return patients.pixels(np.arange(patients.image_count))


def test_phantoms_are_developed_to_look_as_the_photographs_of_the_hospital_do(
    encoder, tmp_path
) -> None:
    """Its pictures are darker and bluer than any camera's that the simulator has."""
    site = hospital(tmp_path / "site", "amber", ASKS_BOTH)
    for path in (tmp_path / "site/data").rglob("*.png"):
        levels = np.asarray(Image.open(path), np.float64) / 255
        Image.fromarray((255 * levels ** np.array([1.8, 1.2, 0.7])).astype(np.uint8)).save(path)
    run = RunFolder(tmp_path / "run")
    write_atomically(run.votes / "encoder.safetensors", save(encoder))
    voting = Voting(ASKS_BOTH, run)
    voted(site, voting)
    population = voting.population(2)
    children = population.lineages(mixed_places(("normal", "amd"), 200), 1)
    plain = replace(population, development=None).images(children)
    real = appearance_of(photographs(site))
    units = voting._known_units()
    far, near = (
        np.abs(units.of(appearance_of(images)).mean(axis=0) - units.of(real).mean(axis=0))
        for images in (plain, population.images(children))
    )
    light, texture = slice(0, 12), slice(12, None)
    assert np.linalg.norm(near[light]) < 0.5 * np.linalg.norm(far[light])
    assert np.linalg.norm(near[texture]) < 0.8 * np.linalg.norm(far[texture])


def test_statements_of_nobody_change_nothing(encoder, tmp_path) -> None:
    run = RunFolder(tmp_path / "run")
    write_atomically(run.votes / "encoder.safetensors", save(encoder))
    voting = Voting(ASKS_BOTH, run)
    voting.poll(1)
    rng = np.random.default_rng(0)
    # As of a hospital that declares few patients and hides them well.
    said = {name: rng.normal(0, 20, count).astype(np.float32) for name, count in
            (("votes", 96), ("appearance", 48))}  # fmt: skip
    voting.count(1, [SiteVotes(said, 20.0, 10)])
    noise = voting.appearance_noise(1)
    assert noise is not None
    assert noise > 20
    population = voting.population(1)
    children = population.lineages(np.arange(24) % 2, 1)
    plain = replace(population, development=None).images(children)
    apart = np.abs(population.images(children).astype(int) - plain)
    assert apart.mean() < 1
