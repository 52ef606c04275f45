"""The public prior: what it learns, when it stops, and that it is found again."""

import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fundusgen.errors import ModelError, StudyError
from fundusgen.federation.weights import digest
from fundusgen.models.factory import build_model
from fundusgen.phantom.lesions import PHANTOM_CONDITIONS
from fundusgen.phantom.population import collection_phantom
from fundusgen.phantom.render import render
from fundusgen.study import Study
from fundusgen.training import prior, prior_file
from fundusgen.training.fitting import FitProgress, fit, weights_of
from fundusgen.training.phantoms import study_phantoms
from fundusgen.training.prior import cached_prior, pretrained
from fundusgen.training.prior_file import Prior, load_prior, prior_digest, save_prior

CPU = torch.device("cpu")
PRIOR = {"phantoms": 48, "steps": 6, "batch": 8, "learning_rate": 2e-3}


def study(**changes: object) -> Study:
    content: dict[str, object] = {
        "study_id": "t",
        "seed": 2,
        "conditions": ["normal", "amd", "other"],
        "image_size": 32,
        "model": {"width": 4, "latent": 4, "beta": 4},
        "prior": PRIOR,
        "privacy": {"target_epsilon": 8},
        "federation": {"rounds": 1},
    }
    return Study.model_validate({**content, **changes})


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def phantoms():
    return study_phantoms(study(), 96, 5)


def fitted(phantoms, *, steps=20, held_out=None, seed=0, learning_rate=2e-3):
    images, conditions = phantoms
    seen: list[FitProgress] = []
    fitted = fit(
        study(),
        weights_of(build_model(study())),
        images[:72],
        conditions[:72],
        steps=steps,
        batch=16,
        learning_rate=learning_rate,
        seed=seed,
        device=CPU,
        held_out=held_out or (images[72:], conditions[72:]),
        on_progress=seen.append,
    )
    return fitted.weights, seen


def distances(seen: list[FitProgress]) -> list[float]:
    return [p.held_out_distance for p in seen if p.held_out_distance is not None]


def test_what_is_drawn_comes_nearer_to_phantoms_that_were_held_out(phantoms) -> None:
    weights, seen = fitted(phantoms, steps=60)
    looked = distances(seen)
    assert min(looked) < 0.8 * looked[0]
    assert all(np.isfinite(array).all() for array in weights.values())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(phantoms) -> None:
    one, other = fitted(phantoms, steps=5)[0], fitted(phantoms, steps=5)[0]
    assert all(np.array_equal(one[name], other[name]) for name in one)
    third = fitted(phantoms, steps=5, seed=1)[0]
    assert any((one[name] != third[name]).any() for name in one)


def test_fitting_leaves_torch_s_own_generator_alone(phantoms) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fitted(phantoms, steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_it_stops_where_held_out_phantoms_are_drawn_no_better(phantoms, monkeypatch) -> None:
    looks = iter(range(1, 100))
    monkeypatch.setattr(
        "fundusgen.training.fitting.sliced_distance", lambda *arguments: float(next(looks))
    )
    _, seen = fitted(phantoms, steps=39)
    assert 5 < seen[-1].step < 20
    assert seen[-1].steps == 39


def test_the_best_weights_are_returned_and_not_the_last(phantoms, monkeypatch) -> None:
    def weights_where(looks: list[float]):
        told = iter(looks)
        monkeypatch.setattr(
            "fundusgen.training.fitting.sliced_distance", lambda *arguments: next(told)
        )
        weights, seen = fitted(phantoms, steps=len(looks))
        assert distances(seen) == looks
        return weights

    best, last = weights_where([3.0, 1.0, 2.0]), weights_where([3.0, 2.0, 1.0])
    # The first two steps are the same in both.
    assert any((best[name] != last[name]).any() for name in best)


def test_no_steps_return_the_weights_as_they_are(phantoms) -> None:
    weights, seen = fitted(phantoms, steps=0)
    first = weights_of(build_model(study()))
    assert all(np.array_equal(weights[name], first[name]) for name in first)
    assert seen == []


def test_a_fit_goes_on_from_the_weights_it_is_given(phantoms) -> None:
    images, conditions = phantoms
    begun = fitted(phantoms, steps=30)[0]
    looked: list[FitProgress] = []
    fit(
        study(), begun, images[:72], conditions[:72], steps=2, batch=16, learning_rate=1e-5,
        seed=0, device=CPU, held_out=(images[72:], conditions[72:]), on_progress=looked.append,
    )  # fmt: skip
    assert distances(looked)[0] < 0.9 * distances(fitted(phantoms, steps=2)[1])[0]


def test_a_refit_begins_with_the_critic_that_the_prior_was_judged_by(phantoms, tmp_path) -> None:
    images, conditions = phantoms
    settings = {
        "batch": 16, "learning_rate": 1e-3, "seed": 0, "device": CPU,
        "held_out": (images[72:], conditions[72:]),
    }  # fmt: skip
    first = weights_of(build_model(study()))
    begun = fit(study(), first, images[:72], conditions[:72], steps=20, **settings)
    save_prior(tmp_path / "p", study(), Prior(begun.weights, "d", begun.critic))
    kept = load_prior(tmp_path / "p", study())
    assert all(np.array_equal(kept.critic[name], array) for name, array in begun.critic.items())
    again = {
        name: fit(
            study(), kept.weights, images[:72], conditions[:72], steps=1, critic=critic, **settings
        ).critic
        for name, critic in {"kept": kept.critic, "new": None}.items()
    }
    far = {
        name: max(float(np.abs(critic[key] - begun.critic[key]).max()) for key in critic)
        for name, critic in again.items()
    }
    assert far["kept"] < 0.01 < far["new"]


def test_fewer_phantoms_than_a_batch_are_enough(phantoms) -> None:
    images, conditions = phantoms
    weights = fit(
        study(), weights_of(build_model(study())), images[:3], conditions[:3], steps=3, batch=16,
        learning_rate=1e-3, seed=0, device=CPU, held_out=(images[3:4], conditions[3:4]),
    ).weights  # fmt: skip
    assert all(np.isfinite(array).all() for array in weights.values())


def test_weights_of_another_model_cannot_be_fitted(phantoms) -> None:
    images, conditions = phantoms
    other = weights_of(build_model(study(model={"width": 8, "latent": 4})))
    with pytest.raises(ModelError, match="do not fit"):
        fit(
            study(), other, images, conditions, steps=1, batch=4, learning_rate=1e-3, seed=0,
            device=CPU, held_out=phantoms,
        )  # fmt: skip


def test_phantoms_are_served_as_right_eyes_with_the_places_of_their_conditions() -> None:
    images, conditions = study_phantoms(study(), 12, 5)
    assert images.shape == (12, 32, 32, 3)
    assert conditions.tolist() == [0, 1, 2] * 4
    kinds = [c if c != "other" else k for k in PHANTOM_CONDITIONS for c in study().conditions]
    drawn = [collection_phantom(number, 5, kinds) for number in range(12)]
    assert {phantom.anatomy.eye for phantom in drawn} == {"L", "R"}
    for image, phantom in zip(images, drawn, strict=True):
        whole = render(phantom, 32)
        np.testing.assert_array_equal(
            image, whole[:, ::-1] if phantom.anatomy.eye == "L" else whole
        )


def test_a_condition_without_a_picture_is_given_phantoms_of_every_kind() -> None:
    kinds = [
        collection_phantom(number, 5, prior_kinds()).condition
        for number in range(2, 3 * len(PHANTOM_CONDITIONS), 3)
    ]
    assert kinds == list(PHANTOM_CONDITIONS)


def prior_kinds() -> list[str]:
    return [c if c != "other" else k for k in PHANTOM_CONDITIONS for c in study().conditions]


def test_the_number_of_workers_changes_no_phantom() -> None:
    one, other = study_phantoms(study(), 70, 5), study_phantoms(study(), 70, 5, workers=2)
    np.testing.assert_array_equal(one[0], other[0])


@pytest.fixture
def trainings(monkeypatch) -> list[int]:
    """Counts how often anything is trained."""
    counted: list[int] = []

    def counting(*arguments, **settings):
        counted.append(1)
        return fit(*arguments, **settings)

    monkeypatch.setattr(prior, "fit", counting)
    return counted


def test_a_prior_that_is_in_the_cache_is_not_trained_again(tmp_path, trainings) -> None:
    first = pretrained(study(), tmp_path)
    again = pretrained(study(), tmp_path)
    assert len(trainings) == 1
    assert first.digest == again.digest
    assert first.facts == again.facts
    assert all(np.array_equal(first.weights[name], again.weights[name]) for name in first.weights)


def test_its_facts_say_how_it_was_learned(tmp_path) -> None:
    facts = pretrained(study(), tmp_path).facts
    assert facts["phantoms"] == 48
    assert facts["steps"] == 6
    assert facts["held_out_distance"] == min(d for _, d in facts["held_out_distances"])
    assert facts["training_seconds"] >= 0
    json.dumps(facts, allow_nan=False)


def test_progress_goes_through_all_phantoms_and_all_steps(tmp_path) -> None:
    seen: list[prior.PriorProgress] = []
    pretrained(study(), tmp_path, on_progress=seen.append)
    drawn = [p for p in seen if p.stage == "phantoms"]
    trained = [p for p in seen if p.stage == "training"]
    assert drawn[-1].done == drawn[-1].total == 52
    assert [p.done for p in trained] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "bits", "folder of another"])
def test_a_damaged_prior_in_the_cache_is_trained_anew_and_replaced(
    tmp_path, trainings, damage: str
) -> None:
    first = pretrained(study(), tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    other = study(prior={"phantoms": 48, "steps": 6, "batch": 8, "seed": 9})
    if damage == "folder of another":
        save_prior(file, other, replace(first, digest=prior_digest(other)))
    else:
        flipped = bytes([*whole[:-1], whole[-1] ^ 1])
        file.write_bytes(
            {"cut": whole[:-9], "empty": b"", "text": b"no prior", "bits": flipped}[damage]
        )
    again = pretrained(study(), tmp_path)
    assert len(trainings) == 2
    assert all(np.array_equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert cached_prior(study(), tmp_path) is not None
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"seed": 3}, True),
        ({"prior": {**PRIOR, "seed": 3}}, False),
        ({"conditions": ["normal", "other", "amd"]}, False),
        ({"model": {"width": 8, "latent": 4, "beta": 4}}, False),
        ({"prior": {"phantoms": 48, "steps": 7, "batch": 8}}, False),
        ({"privacy": {"target_epsilon": 1}}, True),
        ({"federation": {"rounds": 9}}, True),
        ({"model": {"width": 4, "latent": 4, "beta": 4, "private": ["decoder.*"]}}, True),
    ],
)
def test_studies_share_a_prior_exactly_where_it_would_come_out_the_same(
    changes: dict, same: bool
) -> None:
    assert (prior_digest(study()) == prior_digest(study(**changes))) is same


def test_a_prior_comes_out_the_same_for_studies_of_other_seeds(tmp_path, trainings) -> None:
    one = pretrained(study(seed=2), tmp_path / "one")
    other = pretrained(study(seed=11), tmp_path / "other")
    assert len(trainings) == 2
    assert digest(one.weights) == digest(other.weights)
    assert pretrained(study(seed=11), tmp_path / "one").digest == one.digest
    assert len(trainings) == 2


def test_priors_of_other_seeds_are_others(tmp_path) -> None:
    one = pretrained(study(), tmp_path)
    other = pretrained(study(prior={**PRIOR, "seed": 1}), tmp_path)
    assert digest(one.weights) != digest(other.weights)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"discriminator_width": 8}, False),
        ({"loss": "hinge"}, False),
        ({"latent": 8}, False),
        ({"private": ["discriminator.*"]}, True),
        ({"drawn": 3, "generator": "sites"}, True),
        ({"ensemble": True, "phantoms_say": 0}, True),
        ({"generator_steps": 1, "generator_batch": 2, "generator_learning_rate": 0.1}, True),
        ({"accuracy_floor": 0}, True),
    ],
)
def test_gans_share_a_prior_whatever_becomes_of_it_among_patients(
    changes: dict, same: bool
) -> None:
    gan = {"kind": "gan", "width": 4, "latent": 4, "discriminator_width": 4}
    one, other = study(model=gan), study(model={**gan, **changes})
    assert (prior_digest(one) == prior_digest(other)) is same


def test_another_simulator_or_other_code_is_another_prior(monkeypatch, tmp_path) -> None:
    before = prior_digest(study())
    monkeypatch.setattr("fundusgen.phantom.SIMULATOR_VERSION", "another")
    assert prior_digest(study()) != before
    monkeypatch.undo()
    changed = tmp_path / "vae.py"
    changed.write_text("# other code\n")
    monkeypatch.setattr("fundusgen.models.vae.__file__", str(changed))
    assert prior_digest(study()) != before


def test_all_code_that_a_prior_is_learned_with_decides_its_digest() -> None:
    """Held against what the training module and the networks import, followed to the end."""
    needed, waiting = set(), ["fundusgen.training.fitting", "fundusgen.models.factory"]
    # Settings and errors say what is wanted; weights and phantoms are arrays by then.
    apart = {"errors", "study", "storage", "federation", "phantom"}
    while waiting:
        name = waiting.pop()
        needed.add(name)
        imported = re.findall(
            r"^from (fundusgen[.\w]*) import", Path(import_module(name).__file__).read_text(), re.M
        )
        waiting += [
            found for found in imported if found not in needed and found.split(".")[1] not in apart
        ]
    assert needed <= {source.__name__ for source in prior_file._SOURCES}
    assert "fundusgen.models.activations" in needed


@pytest.fixture
def saved(tmp_path) -> Path:
    file = tmp_path / "prior.safetensors"
    save_prior(file, study(), Prior(weights_of(build_model(study())), "d" * 64, facts={"steps": 6}))
    return file


def test_a_saved_prior_is_read_back_as_it_was(saved) -> None:
    read = load_prior(saved, study(seed=8))
    first = weights_of(build_model(study()))
    assert read.digest == "d" * 64
    assert read.facts == {"steps": 6}
    assert all(np.array_equal(read.weights[name], first[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "found", "expected"),
    [
        ({"image_size": 64}, "image_size 32", "image_size 64"),
        ({"conditions": ["normal", "amd"]}, "normal, amd, other", "conditions normal, amd"),
        ({"model": {"width": 8, "latent": 4, "beta": 4}}, "width 4", "width 8"),
    ],
)
def test_a_prior_of_another_model_is_refused_with_what_differs(
    saved, changes: dict, found: str, expected: str
) -> None:
    with pytest.raises(ModelError) as refused:
        load_prior(saved, study(**changes))
    assert found in refused.value.found
    assert expected in refused.value.expected
    assert "fundusgen prior" in refused.value.remedy


def test_a_prior_of_an_older_network_is_refused(tmp_path) -> None:
    weights = weights_of(build_model(study()))
    weights.pop(next(iter(weights)))
    save_prior(tmp_path / "p", study(), Prior(weights, "d"))
    with pytest.raises(ModelError, match="do not fit"):
        load_prior(tmp_path / "p", study())


def test_a_prior_of_a_newer_format_is_refused(saved, monkeypatch) -> None:
    monkeypatch.setattr("fundusgen.training.prior_file.FORMAT", 0)
    with pytest.raises(ModelError, match="format 1"):
        load_prior(saved, study())


@pytest.mark.parametrize("content", [None, b"", b"x" * 100])
def test_what_is_no_prior_is_refused(tmp_path, content: bytes | None) -> None:
    file = tmp_path / "p.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match="no whole prior"):
        load_prior(file, study())


def test_a_generator_s_weights_are_no_prior(tmp_path) -> None:
    save_file(weights_of(build_model(study())), tmp_path / "g.safetensors")
    with pytest.raises(ModelError, match="no whole prior"):
        load_prior(tmp_path / "g.safetensors", study())


def test_a_study_without_a_prior_is_an_error_that_says_how_to_add_one(tmp_path) -> None:
    with pytest.raises(StudyError, match=r"prior: \{\}"):
        pretrained(study(prior=None), tmp_path)
