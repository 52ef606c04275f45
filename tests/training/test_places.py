"""A patient's gradient is the same wherever in a batch they are, or nobody shares a batch.

P patients, K views.
"""

import json
import logging
from collections.abc import Iterator

import pytest
import torch
from small_study import small_study
from torch.nn import functional

from fundusgen.models import activations, blocks, synthesis
from fundusgen.models.factory import build_model, private_names
from fundusgen.privacy.clipping import per_patient_gradients
from fundusgen.study import Study
from fundusgen.training import places
from fundusgen.training.places import batch_that_holds, equal_at_all_places

CPU = torch.device("cpu")
MODULATION = {"width": 8, "latent": 8, "private": ["decoder.*modulation*"]}
MODELS = {
    "modulation": MODULATION,
    "VAE": {"width": 8, "latent": 8},
    "votes": {"kind": "gan", "width": 8, "latent": 8},
    "discriminator": {"kind": "gan", "width": 8, "latent": 8, "private": ["discriminator.*"]},
}
# Of which MKL multiplies the input gradient differently by place.
NARROW = {"width": 8, "latent": 5}


def study(model: dict[str, object]) -> Study:
    stages = {"dpsgd": {"steps_per_round": 1, "sample_rate": 0.5, "views_per_patient": 2}}
    return small_study(model=model, stages=stages)


@pytest.fixture(params=[1, 2, 3, 6])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("mode", ["vmap", "hooks"])
@pytest.mark.parametrize("name", MODELS)
def test_networks_of_usual_sizes_give_the_same_gradient_at_all_places(
    threads: int, name: str, mode: places.GradSampleMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All 64 of these together are tried often enough.
    monkeypatch.setattr(places, "_TRIES", 4)
    assert all(equal_at_all_places(study(MODELS[name]), size, mode, CPU) for size in (7, 32))


@pytest.mark.parametrize("name", MODELS)
def test_to_move_by_a_place_changes_no_bit_of_a_patients_gradient(threads: int, name: str) -> None:
    chosen = study(MODELS[name])
    with torch.random.fork_rng():
        torch.manual_seed(threads)
        model = build_model(chosen)
        private = {n: model.get_parameter(n) for n in private_names(model, chosen.model.private)}
        task = places._task(chosen, model, private, "auto", CPU)
        patients = [places._patient(chosen, model) for _ in range(9)]
    batch = tuple(torch.cat(parts) for parts in zip(*patients, strict=True))
    loss = task.loss()
    everyone, _ = per_patient_gradients(loss, private, batch, fixed_size=9)
    for gone in range(9):
        kept = [place for place in range(9) if place != gone]
        others, _ = per_patient_gradients(
            loss, private, tuple(part[kept] for part in batch), fixed_size=9
        )
        assert all(torch.equal(others[n], everyone[n][kept]) for n in private)


def test_torchs_own_silu_is_found_out(monkeypatch) -> None:
    """It is what an attack turned into gradients of three times their bound."""
    for module in (activations, blocks, synthesis):
        monkeypatch.setattr(module, "silu", functional.silu)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3, 5):
        torch.set_num_threads(threads)
        sizes = (7, 9, 32, 33)
        found += [equal_at_all_places(study(MODULATION), size, "vmap", CPU) for size in sizes]
    torch.set_num_threads(before)
    assert not all(found)


def test_a_product_that_depends_on_place_leaves_fewer_patients_a_batch(tmp_path, caplog) -> None:
    if equal_at_all_places(study(NARROW), 8, "vmap", CPU):
        pytest.skip("the matrix products of this machine do not depend on place")
    with caplog.at_level(logging.WARNING, "fundusgen.client"):
        size = batch_that_holds(study(NARROW), 8, mode="vmap", device=CPU, kept=tmp_path)
    assert size < 8
    assert equal_at_all_places(study(NARROW), size, "vmap", CPU)
    assert f"taken {size} at a time" in caplog.text


NARROW_ONES = [
    # The last two settings would drown, or leave nothing of, what the orders differ in.
    {"latent": 5},
    {"latent": 9},
    {"latent": 5, "beta": 1e12},
    {"latent": 5, "pixel_std": 1e17},
]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", NARROW_ONES, ids=str)
def test_no_study_is_found_whose_unlike_places_pass(shape: dict[str, float], seed: int) -> None:
    """With two tries of values that follow from the study, one seed of six passed."""
    attack = {"width": 4, "private": ["encoder.*modulation*"], **shape}
    chosen = small_study(seed=seed, model=attack, stages={"dpsgd": {"views_per_patient": 1}})
    known = {"width": 4, "latent": 5, "private": ["encoder.*modulation*"]}
    if equal_at_all_places(study(known), 32, "vmap", CPU):
        pytest.skip("the matrix products of this machine do not depend on place")
    assert not equal_at_all_places(chosen, 32, "vmap", CPU)


def test_tries_cannot_be_foretold(monkeypatch) -> None:
    seen: list[torch.Tensor] = []
    patient = places._patient

    def watched(*arguments):  # type: ignore[no-untyped-def]
        seen.append(torch.rand(1))
        return patient(*arguments)

    monkeypatch.setattr(places, "_patient", watched)
    for _ in range(2):
        torch.manual_seed(0)
        assert equal_at_all_places(study(MODULATION), 2, "vmap", CPU)
    assert len({float(drawn) for drawn in seen}) == len(seen) >= 80
    # And what others draw from torch goes on as if nothing had been tried.
    torch.manual_seed(0)
    assert float(torch.rand(1)) == pytest.approx(0.4963, abs=1e-3)


def test_a_smaller_batch_is_taken_where_the_wanted_one_does_not_hold(tmp_path, monkeypatch) -> None:
    tried = []

    def holds(_: Study, size: int, *__: object) -> bool:
        tried.append(size)
        return size <= 4

    monkeypatch.setattr(places, "equal_at_all_places", holds)
    chosen = study(MODULATION)
    for _ in range(2):
        assert batch_that_holds(chosen, 24, mode="auto", device=CPU, kept=tmp_path) == 4
    # Found out once, and kept.
    assert tried == [24, 16, 8, 4]
    (kept,) = tmp_path.glob("places-*.json")
    for spoiled in ("{", "[]", '{"batch_patients": 99}', '{"batch_patients": "4"}'):
        kept.write_text(spoiled)
        assert batch_that_holds(chosen, 24, mode="auto", device=CPU, kept=tmp_path) == 4
        assert json.loads(kept.read_text()) == {"batch_patients": 4}
    assert len(tried) == 4 * 5


def test_whatever_could_change_the_answer_is_tried_by_itself(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(places, "equal_at_all_places", lambda *_: True)

    def tried(chosen: Study, wanted: int = 8, mode: places.GradSampleMode = "vmap") -> int:
        batch_that_holds(chosen, wanted, mode=mode, device=CPU, kept=tmp_path)
        return len(list(tmp_path.glob("places-*.json")))

    usual = study(MODULATION)
    assert tried(usual) == tried(usual) == 1
    assert tried(study(MODELS["VAE"])) == 2
    assert tried(usual, wanted=16) == 3
    assert tried(usual, mode="hooks") == 4
    views = {"dpsgd": {"steps_per_round": 1, "sample_rate": 0.5, "views_per_patient": 3}}
    assert tried(small_study(model=MODULATION, stages=views)) == 5
    assert tried(Study.model_validate({**usual.model_dump(mode="json"), "image_size": 64})) == 6
    assert tried(small_study(
        model=MODULATION, conditions=["normal", "amd", "dr1"],
        stages=usual.model_dump(mode="json")["stages"],
    )) == 7  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    assert tried(usual) == 8
    torch.set_num_threads(before)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert tried(usual) == 9
    monkeypatch.delenv("MKL_CBWR")
    # An update of the code, after which nothing that was found out before may count.
    monkeypatch.setattr(places, "code_hash", lambda: "another")
    assert tried(usual) == 10


def test_a_folder_that_cannot_be_written_does_not_stop_a_round(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(places, "equal_at_all_places", lambda *_: True)
    (tmp_path / "file").write_text("")
    assert batch_that_holds(
        study(MODULATION), 8, mode="vmap", device=CPU, kept=tmp_path / "file" / "cache"
    ) == 8  # fmt: skip


def test_nonlinearities_have_the_values_and_slopes_of_torchs(threads: int) -> None:
    values = torch.cat([torch.linspace(-90, 90, 4001), torch.tensor([0.0, -0.0, 1e-30])]).double()
    for ours, theirs in (
        (activations.silu, functional.silu), (activations.softplus, functional.softplus),
    ):  # fmt: skip
        here, there = (values.clone().requires_grad_() for _ in range(2))
        torch.testing.assert_close(ours(here), theirs(there), rtol=1e-9, atol=1e-9)
        ours(here).sum().backward()
        theirs(there).sum().backward()
        torch.testing.assert_close(here.grad, there.grad, rtol=1e-7, atol=1e-9)
