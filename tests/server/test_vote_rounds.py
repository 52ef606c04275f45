"""Rounds of votes on the server: what is asked, what is kept, and that a cut run goes on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load_file, save
from test_strategy import FakeGrid, Site, know_sites, receipt

from fundusgen.errors import FederationError, RunError
from fundusgen.federation.exchange import Answer, Refusal, Request
from fundusgen.federation.messages import pack_arrays, reply_to_record
from fundusgen.federation.weights import Weights, digest
from fundusgen.models.encoder import ParameterEncoder
from fundusgen.models.factory import build_model, private_names
from fundusgen.models.generator import Generator
from fundusgen.phantom.reading import PARAMETERS
from fundusgen.privacy.policy import RefusalReason
from fundusgen.run_folder import RunFolder
from fundusgen.storage import write_atomically
from fundusgen.study import Study
from fundusgen.training.fitting import Fitted
from fundusgen.training.poll import VOTES, load_poll
from fundusgen.training.prior_file import Prior, prior_digest, save_prior
from server import postprocess as postprocess_module
from server import voting as voting_module
from server.postprocess import Postprocess
from server.receipts import ReceiptBook
from server.strategy import StudyStrategy
from server.voting import Voting

CANDIDATES = 12
# Of the receipts in `test_strategy`.
NOISE = 4.0


@pytest.fixture(autouse=True)
def _inside_a_run(monkeypatch) -> None:
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1, raising=False)


def study(rounds: int = 1, **votes: object) -> Study:
    stage = {
        "rounds": 2, "candidates": CANDIDATES, "nearest": 2, "refit_phantoms": 16,
        "refit_steps": 2, "appearance_share": 0, **votes,
    }  # fmt: skip
    return Study.model_validate(
        {
            "study_id": "t",
            "conditions": ["normal", "amd"],
            "image_size": 32,
            "model": {"width": 4, "latent": 4},
            "prior": {"phantoms": 16, "steps": 1, "batch": 4},
            "stages": {"votes": stage, **({} if rounds else {"dpsgd": None})},
            "privacy": {"target_epsilon": 8},
            "federation": {"rounds": rounds, "min_sites": 2, "timeout_s": 1.0, "ema_decay": 0.0},
            "evaluation": {"samples_per_condition": 1, "phantoms": 2},
        }
    )  # fmt: skip


TRAINED = private_names(build_model(study()), study().model.private)


def prepared(folder: Path, chosen: Study) -> RunFolder:
    """A run folder as `prepare_public` leaves it, but for how much was learned."""
    run = RunFolder(folder)
    if not run.prior.exists():
        with torch.random.fork_rng():
            torch.manual_seed(4)
            model = build_model(chosen)
            encoder = ParameterEncoder(32, len(PARAMETERS))
        weights = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        save_prior(run.prior, chosen, Prior(weights, prior_digest(chosen)))
        arrays = {name: value.numpy().copy() for name, value in encoder.state_dict().items()}
        write_atomically(run.votes / "encoder.safetensors", save(arrays))
    know_sites(run)
    return run


def run(folder: Path, sites: list[Site], chosen: Study | None = None) -> FakeGrid:
    chosen = chosen or study()
    to = prepared(folder, chosen)
    state = Postprocess(chosen, to)
    grid = FakeGrid(sites)
    StudyStrategy(chosen, TRAINED, state, ReceiptBook(to)).start(
        grid,
        pack_arrays(state.request(state.state.round_number + 1)),
        num_rounds=chosen.total_rounds,
        timeout=chosen.federation.timeout_s,
    )
    return grid


def votes_of(places: dict[int, float]) -> Weights:
    votes = np.zeros(CANDIDATES, np.float32)
    for place, count in places.items():
        votes[place] = count
    return {VOTES: votes}


def voter(
    name: str,
    places: dict[int, float] | None = None,
    change: Callable[[Weights], Weights] = lambda reply: reply,
) -> Site:
    """A site that votes as it is told, and in DP-SGD moves every weight a little."""

    def answer(request: Request) -> RecordDict:
        if request.stage == "votes":
            reply = change(votes_of(places or {0: 50.0, 11: 40.0}))
        else:
            reply = {key: request.weights[key] + np.float32(0.01) for key in TRAINED}
        return reply_to_record(Answer(reply, receipt(name, request, reply)))

    return answer


def content(request: Request) -> str:
    return request.content_digest


def breaks_in(round_number: int, site: Site) -> Site:
    def answer(request: Request) -> RecordDict | None:
        if request.round_number == round_number:
            raise KeyboardInterrupt
        return site(request)

    return answer


def test_votes_come_first_and_then_dpsgd_on_the_refitted_weights(tmp_path) -> None:
    grid = run(tmp_path, [voter("a"), voter("b")])
    asked = [(request.round_number, request.stage) for request in grid.requests]
    assert asked == [(1, "votes")] * 2 + [(2, "votes")] * 2 + [(3, "dpsgd")] * 2
    for request in grid.requests[:4]:
        load_poll(study(), request.weights)
    prior = Postprocess(study(), prepared(tmp_path / "other", study())).state.weights
    sent = grid.requests[-1].weights
    assert sent.keys() == prior.keys()
    assert digest(sent) != digest(prior)
    entries = RunFolder(tmp_path).metrics()
    assert [entry["stage"] for entry in entries] == ["votes", "votes", "dpsgd"]
    assert [entry["elected"] for entry in entries[:2]] == [2, 2]


def test_every_site_is_asked_the_same_and_the_second_poll_follows_from_the_votes(tmp_path) -> None:
    one = run(tmp_path / "one", [voter("a", {0: 90.0}), voter("b", {0: 90.0})])
    other = run(tmp_path / "other", [voter("a", {2: 90.0}), voter("b", {2: 90.0})])
    for grid in (one, other):
        digests = [content(request) for request in grid.requests]
        assert digests[0] == digests[1]
        assert digests[2] == digests[3]
        assert digests[0] != digests[2]
    assert content(one.requests[0]) == content(other.requests[0])
    assert content(one.requests[2]) != content(other.requests[2])


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_run_that_was_cut_short_asks_again_for_the_same_to_the_last_bit(
    tmp_path, cut: int, monkeypatch
) -> None:
    whole = run(tmp_path / "whole", [voter("a"), voter("b")])
    seen: list[Request] = []

    def cut_short(request: Request) -> RecordDict | None:
        seen.append(request)
        return breaks_in(cut, voter("a"))(request)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", [cut_short, voter("b")])
    # Another version of the simulator, or another machine, must not be asked to draw it again.
    monkeypatch.setattr(Voting, "_encoder", _encoder_of_another_machine)
    resumed = run(tmp_path / "cut", [voter("a"), voter("b")])
    assert resumed.requests[0].request_id == seen[-1].request_id
    assert content(resumed.requests[0]) == content(seen[-1])
    assert [request.round_number for request in resumed.requests] == [
        number for number in range(cut, 4) for _ in range(2)
    ]
    assert content(resumed.requests[0]) == content(whole.requests[2 * (cut - 1)])
    states = [Postprocess(study(), RunFolder(tmp_path / name)).state for name in ("whole", "cut")]
    assert states[0].round_number == states[1].round_number == 3


def _encoder_of_another_machine(self: Voting) -> ParameterEncoder:
    encoder = ParameterEncoder(32, len(PARAMETERS))
    encoder.load_state_dict(
        {name: torch.from_numpy(array * 1.0000001) for name, array in self._weights().items()}
    )
    return encoder.requires_grad_(False).eval()


def test_a_poll_is_drawn_once_however_often_it_is_asked_for(tmp_path, monkeypatch) -> None:
    to = prepared(tmp_path, study())
    first = Voting(study(), to).poll(1)
    monkeypatch.setattr(voting_module, "encoded", lambda *_: pytest.fail("it was drawn again"))
    again = Voting(study(), to).poll(1)
    assert {name: array.tobytes() for name, array in first.items()} == {
        name: array.tobytes() for name, array in again.items()
    }


def test_a_poll_that_was_half_written_was_asked_of_nobody_and_is_made_anew(tmp_path) -> None:
    to = prepared(tmp_path, study())
    first = Voting(study(), to).poll(1)
    (to.votes / "poll-0001.json").unlink()
    (to.votes / "poll-0001.safetensors").write_bytes(b"torn")
    assert digest(Voting(study(), to).poll(1)) == digest(first)


def test_the_tally_is_the_sum_of_the_sites_votes_with_their_noise_added_up(tmp_path) -> None:
    run(tmp_path, [voter("a", {0: 50.0, 3: -2.5}), voter("b", {0: 30.0, 5: 40.0})], study(rounds=0))
    folder = RunFolder(tmp_path).votes
    kept = load_file(folder / "tally-0001.safetensors")[VOTES]
    expected = votes_of({0: 80.0, 3: -2.5, 5: 40.0})[VOTES]
    np.testing.assert_array_equal(kept, expected.astype(np.float64))
    said = json.loads((folder / "tally-0001.json").read_text())
    assert said["deviation"] == pytest.approx(NOISE * 2**0.5)
    assert (said["vote"], said["elected"], said["undecided"]) == (1, 2, [])


def test_a_condition_that_nobody_stood_out_in_is_told(tmp_path) -> None:
    run(tmp_path, [voter("a", {0: 50.0, 11: 5.0}), voter("b", {0: 50.0})], study(rounds=0))
    entry = RunFolder(tmp_path).metrics()[0]
    assert (entry["elected"], entry["undecided"]) == (1, ["amd"])


def test_the_model_is_refitted_on_children_of_the_winners(tmp_path, monkeypatch) -> None:
    seen: dict[str, object] = {}

    def fit(study: Study, weights: Weights, images: np.ndarray, conditions: np.ndarray, **how):
        seen.update(weights=weights, images=images, conditions=conditions, **how)
        return Fitted({name: array + np.float32(1) for name, array in weights.items()}, 1, {})

    monkeypatch.setattr(postprocess_module, "fit", fit)
    chosen = study(rounds=1, refit_phantoms=20, refit_steps=7)
    grid = run(tmp_path, [voter("a", {4: 60.0, 7: 60.0}), voter("b", {4: 60.0})], chosen)
    assert (seen["steps"], seen["images"].shape) == (7, (20, 32, 32, 3))
    assert np.bincount(seen["conditions"]).tolist() == [10, 10]
    voting = Voting(chosen, RunFolder(tmp_path))
    winners = {voting._asked(2).lineages[place] for place in (4, 7)}
    drawn = voting.population(2).lineages(np.arange(22) % 2, chosen.seed)
    # Each also stands, with the other disease, for the other condition.
    parents = winners | {
        replace(line, condition={"normal": "amd", "amd": "normal"}[line.condition])
        for line in winners
    }
    found = {replace(line, variations=line.variations[:-1]) for line in drawn}
    assert found <= parents
    assert found & winners
    images = voting.population(2).images(drawn)
    np.testing.assert_array_equal(images[2:], seen["images"])
    np.testing.assert_array_equal(images[:2], seen["held_out"][0])
    # What the sites train next is what came of it.
    for name, array in grid.requests[-1].weights.items():
        np.testing.assert_array_equal(array, seen["weights"][name] + np.float32(1))


def test_without_steps_of_refitting_the_prior_stays_as_it_is(tmp_path) -> None:
    chosen = study(rounds=1, refit_steps=0)
    before = Postprocess(chosen, prepared(tmp_path, chosen)).state.weights
    grid = run(tmp_path, [voter("a"), voter("b")], chosen)
    assert digest(grid.requests[-1].weights) == digest(before)
    assert not RunFolder(tmp_path).refitted.exists()


def test_votes_alone_end_in_a_generator_a_card_and_a_report(tmp_path) -> None:
    chosen = study(rounds=0)
    run(tmp_path, [voter("a"), voter("b")], chosen)
    folder = RunFolder(tmp_path)
    Postprocess(chosen, folder).finish_run()
    drawn = next(Generator.load(folder.generator).draw("amd", 2, 1))
    assert drawn.images_NSSC.shape == (2, 32, 32, 3)
    assert "Not learned from patients" not in (folder.generator / "README.md").read_text()
    assert "What the model draws after learning" in folder.report.read_text()
    assert folder.refitted.read_bytes() != (folder.samples / "round-0002.png").read_bytes()
    # There is nothing left to ask for.
    assert run(tmp_path, [voter("a"), voter("b")], chosen).requests == []


def test_conditions_that_no_vote_was_heard_for_are_on_the_card(tmp_path) -> None:
    chosen = study(rounds=0)
    run(tmp_path, [voter("a", {0: 50.0, 11: 5.0}), voter("b", {0: 50.0})], chosen)
    folder = RunFolder(tmp_path)
    assert folder.metrics()[-1]["undecided"] == ["amd"]
    Postprocess(chosen, folder).finish_run()
    card = (folder.generator / "README.md").read_text()
    assert "- **Not learned from patients**: no vote for amd stood out" in card
    assert json.loads((folder.generator / "model.json").read_text())["facts"]["undecided"] == [
        "amd"
    ]


BAD: dict[str, Site] = {
    "refusal": lambda request: reply_to_record(Refusal(RefusalReason.BUDGET_EXHAUSTED)),
    "silence": lambda request: None,
    "not a number": voter("c", change=lambda r: {VOTES: r[VOTES] * np.float32("nan")}),
    "infinite": voter("c", change=lambda r: {VOTES: np.full_like(r[VOTES], np.inf)}),
    "too few": voter("c", change=lambda r: {VOTES: r[VOTES][1:]}),
    "too many": voter("c", change=lambda r: {VOTES: np.append(r[VOTES], np.float32(1))}),
    "another shape": voter("c", change=lambda r: {VOTES: r[VOTES][None]}),
    "another name": voter("c", change=lambda r: {"vote": r[VOTES]}),
    "something more": voter("c", change=lambda r: {**r, "count": np.ones(1, np.float32)}),
    "nothing": voter("c", change=lambda r: {}),
    "far too long": voter("c", {3: 1e6}),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_vote_is_dropped_and_the_others_are_counted(tmp_path, kind: str) -> None:
    run(tmp_path, [voter("a"), voter("b"), BAD[kind]], study(rounds=0))
    folder = RunFolder(tmp_path)
    kept = load_file(folder.votes / "tally-0001.safetensors")[VOTES]
    np.testing.assert_array_equal(kept, 2.0 * votes_of({0: 50.0, 11: 40.0})[VOTES])
    states = [site["state"] for site in folder.metrics()[0]["sites"]]
    assert states.count("accepted") == 2
    assert len(states) == (2 if kind == "silence" else 3)


def test_a_site_that_votes_twice_is_counted_once(tmp_path) -> None:
    run(tmp_path, [voter("a"), voter("a"), voter("b")], study(rounds=0))
    kept = load_file(RunFolder(tmp_path).votes / "tally-0001.safetensors")[VOTES]
    np.testing.assert_array_equal(kept, 2.0 * votes_of({0: 50.0, 11: 40.0})[VOTES])


def test_votes_below_the_quorum_end_the_run_and_leave_no_tally(tmp_path) -> None:
    with pytest.raises(FederationError, match="quorum"):
        run(tmp_path, [BAD["refusal"], BAD["refusal"]])
    assert not list(RunFolder(tmp_path).votes.glob("tally-*"))


@pytest.mark.parametrize("lost", ["tally-0001.json", "tally-0001.safetensors", "poll-0001.json"])
@pytest.mark.parametrize("damage", [None, b"{"])
def test_without_an_earlier_vote_a_run_does_not_go_on(tmp_path, lost: str, damage) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [breaks_in(2, voter("a")), voter("b")])
    folder = RunFolder(tmp_path).votes
    for path in (folder / lost, *folder.glob("poll-0002.*")):
        path.unlink()
    if damage:
        (folder / lost).write_bytes(damage)
    with pytest.raises(RunError, match="missing or damaged"):
        run(tmp_path, [voter("a"), voter("b")])


def test_a_large_site_s_votes_count_beside_small_ones(tmp_path) -> None:
    """All of a large hospital's patients may be of one mind: that is no attack."""
    sites = [voter("a", {0: 90.0, 11: 90.0}), voter("b", {0: 90.0, 11: 90.0})]
    run(tmp_path, [*sites, voter("c", {2: 1500.0})], study(rounds=0))
    states = [site["state"] for site in RunFolder(tmp_path).metrics()[0]["sites"]]
    assert states == ["accepted"] * 3
