"""The strategy, with a grid that answers as the sites in the test do."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from pydantic import ValidationError

from fundusgen.errors import FederationError, RunError
from fundusgen.federation.exchange import Answer, Refusal, Request
from fundusgen.federation.messages import (
    pack_arrays,
    reply_to_record,
    request_from_record,
)
from fundusgen.federation.weights import Weights, digest
from fundusgen.models.factory import build_model, private_names
from fundusgen.models.generator import Generator
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import Event
from fundusgen.privacy.keys import public_text
from fundusgen.privacy.policy import RefusalReason
from fundusgen.privacy.receipt_folder import read_receipts
from fundusgen.privacy.receipts import Receipt
from fundusgen.run_folder import RunFolder
from fundusgen.study import PriorSettings, Study
from fundusgen.training.phantoms import study_phantoms
from server.postprocess import Postprocess
from server.receipts import ReceiptBook
from server.strategy import StudyStrategy

Site = Callable[[Request], RecordDict | None]


@pytest.fixture(autouse=True)
def _inside_a_run(monkeypatch) -> None:
    """Messages take their sender from here, which Flower's processes set when they start."""
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1, raising=False)


def study(**federation: object) -> Study:
    return Study.model_validate(
        {
            "study_id": "t",
            "conditions": ["normal", "amd"],
            "image_size": 32,
            "model": {"width": 4, "latent": 4},
            "privacy": {"target_epsilon": 8},
            "federation": {
                "rounds": 2, "min_sites": 2, "quorum": 1, "timeout_s": 1.0, "ema_decay": 0.0,
                **federation,
            },
            "evaluation": {"samples_per_condition": 1, "phantoms": 2},
        }
    )  # fmt: skip


TRAINED = private_names(build_model(study()), study().model.private)


class FakeGrid:
    """Sites by number; a site that returns None never answers."""

    def __init__(self, sites: list[Site]) -> None:
        self.sites = sites
        self.requests: list[Request] = []
        self.waiting: dict[str, Message] = {}
        self.numbers = itertools.count()

    def get_node_ids(self) -> list[int]:
        return list(range(1, len(self.sites) + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        names = []
        for message in messages:
            name = f"m{next(self.numbers)}"
            message.metadata.__dict__["_message_id"] = name
            request = request_from_record(message.content)
            self.requests.append(request)
            content = self.sites[message.metadata.dst_node_id - 1](request)
            if content is not None:
                self.waiting[name] = (
                    Message(Error(code=3, reason="patient 7 failed"), reply_to=message)
                    if content == "error"
                    else Message(content, reply_to=message)
                )
            names.append(name)
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        return [self.waiting.pop(name) for name in list(names) if name in self.waiting]


KEYS = {name: ec.generate_private_key(ec.SECP384R1()) for name in ("a", "b", "c", "bad")}
EVENT = Event("gaussian", 4.0, 1.0, 1)


def receipt(name: str, request: Request, weights: Weights, patients: int = 10) -> Receipt:
    # Every second receipt of a site goes to another study, so no link to the one before is held.
    spent = (replace(EVENT, steps=2 * request.round_number),)
    return Receipt(
        site=name,
        study_id="t",
        study_hash=request.study_hash,
        round_number=request.round_number,
        stage=request.stage,
        request_id=request.request_id,
        event=EVENT,
        spent=spent,
        epsilon_total=epsilon(spent, 1e-5),
        delta=1e-5,
        declared_patients=patients,
        noise="secure",
        payload_digest=digest(weights),
        policy_hash="a" * 64,
        code_hash="c" * 64,
        sequence=2 * request.round_number,
        previous="0" * 64,
    ).signed(KEYS[name])


def know_sites(folder: RunFolder) -> None:
    folder.known_sites.mkdir(parents=True, exist_ok=True)
    for name, key in KEYS.items():
        (folder.known_sites / f"{name}.pub").write_text(public_text(key.public_key()))


def honest(name: str, shift: float = 0.01, patients: int = 10) -> Site:
    def answer(request: Request) -> RecordDict:
        weights = {key: request.weights[key] + np.float32(shift) for key in TRAINED}
        return reply_to_record(Answer(weights, receipt(name, request, weights, patients)))

    return answer


def spoiled(name: str, spoil: Callable[[Answer], Answer]) -> Site:
    def answer(request: Request) -> RecordDict:
        weights = {key: request.weights[key] + np.float32(0.01) for key in TRAINED}
        return reply_to_record(spoil(Answer(weights, receipt(name, request, weights))))

    return answer


def with_weights(change: Callable[[Weights], Weights]) -> Callable[[Answer], Answer]:
    """Spoil the arrays, with a receipt that fits the spoiled ones."""

    def spoil(answer: Answer) -> Answer:
        weights = change(dict(answer.weights))
        changed = replace(answer.receipt, payload_digest=digest(weights))
        return Answer(weights, changed.signed(KEYS[changed.site]))

    return spoil


def with_receipt(signed_by: str | None = "bad", **changes: object) -> Callable[[Answer], Answer]:
    """Spoil the receipt; None leaves the signature that it had before."""

    def spoil(answer: Answer) -> Answer:
        changed = replace(answer.receipt, **changes)
        return Answer(answer.weights, changed.signed(KEYS[signed_by]) if signed_by else changed)

    return spoil


def run(tmp_path, sites: list[Site], **federation: object) -> tuple[RunFolder, FakeGrid, Weights]:
    chosen = study(**federation)
    folder = RunFolder(tmp_path)
    postprocess = Postprocess(chosen, folder)
    first = postprocess.state.weights
    names = private_names(build_model(chosen), chosen.model.private)
    grid = FakeGrid(sites)
    know_sites(folder)
    StudyStrategy(chosen, names, postprocess, ReceiptBook(folder)).start(
        grid,
        pack_arrays(first),
        num_rounds=chosen.federation.rounds,
        timeout=chosen.federation.timeout_s,
    )
    return folder, grid, first


def change_of(folder: RunFolder, first: Weights, **federation: object) -> float:
    state = Postprocess(study(**federation), folder).state
    return float((state.weights["decoder.root.bias"] - first["decoder.root.bias"]).mean())


def test_two_rounds_average_the_sites_and_leave_a_run_folder(tmp_path) -> None:
    folder, grid, first = run(tmp_path, [honest("a", 0.01), honest("b", 0.03)])
    assert change_of(folder, first) == pytest.approx(0.04, abs=1e-4)
    assert [request.round_number for request in grid.requests] == [1, 1, 2, 2]
    assert sorted(p.name for p in folder.checkpoints.glob("*.safetensors")) == [
        "round-0001.safetensors",
        "round-0002.safetensors",
    ]
    assert sorted(p.name for p in folder.samples.iterdir()) == ["round-0001.png", "round-0002.png"]
    assert (folder.receipts / "a" / "000004.json").is_file()
    metrics = folder.metrics()
    assert [entry["round"] for entry in metrics] == [1, 2]
    cost = epsilon([replace(EVENT, steps=4)], 1e-5)
    assert [site["epsilon"] for site in metrics[1]["sites"]] == [cost, cost]


def test_shares_follow_the_declared_patients_or_are_equal(tmp_path) -> None:
    sites = [honest("a", 0.0, patients=10), honest("b", 0.04, patients=30)]
    declared, _, first = run(tmp_path / "declared", sites, rounds=1)
    assert change_of(declared, first, rounds=1) == pytest.approx(0.03, abs=1e-4)
    equal, _, first = run(tmp_path / "equal", sites, rounds=1, weights="equal")
    assert change_of(equal, first, weights="equal", rounds=1) == pytest.approx(0.02, abs=1e-4)


BAD: dict[str, Site] = {
    "nan": spoiled("bad", with_weights(lambda w: {**w, "decoder.root.bias": w["decoder.root.bias"]
                                                  * np.float32("nan")})),
    "missing": spoiled("bad", with_weights(lambda w: dict(list(w.items())[1:]))),
    "extra": spoiled("bad", with_weights(lambda w: {**w, "more": np.ones(1, np.float32)})),
    "shape": spoiled("bad", with_weights(lambda w: {**w, "decoder.root.bias":
                                                    w["decoder.root.bias"][:1]})),
    "other round": spoiled("bad", with_receipt(round_number=9)),
    "other study": spoiled("bad", with_receipt(study_hash="0" * 64)),
    "other arrays": spoiled("bad", with_receipt(payload_digest="0" * 64)),
    "folder as name": spoiled("bad", with_receipt(site="../../evil")),
    "unknown site": spoiled("bad", with_receipt(site="nobody")),
    "in another's name": spoiled("bad", with_receipt(site="b")),
    "signed by another": spoiled("bad", with_receipt("a")),
    "changed after signing": spoiled("bad", with_receipt(None, declared_patients=9000)),
    "not signed": spoiled("bad", with_receipt(None, signature="")),
    "epsilon too small": spoiled("bad", with_receipt(epsilon_total=0.01)),
    "own event not counted": spoiled(
        "bad", with_receipt(event=replace(EVENT, noise_multiplier=1.0))
    ),
    "no patients": spoiled("bad", with_receipt(declared_patients=0)),
    "negative epsilon": spoiled("bad", with_receipt(epsilon_total=-1.0)),
    "same name": spoiled("a", lambda answer: answer),
    "unknown part": lambda request: RecordDict({"metrics": ConfigRecord({"loss": 1.0})}),
    "flower error": lambda request: "error",
    "refusal": lambda request: reply_to_record(Refusal(RefusalReason.BUDGET_EXHAUSTED)),
    "silence": lambda request: None,
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_is_dropped_and_the_round_goes_on_without_it(tmp_path, kind: str) -> None:
    folder, _, first = run(tmp_path, [honest("a", 0.01), BAD[kind]], rounds=1)
    assert change_of(folder, first, rounds=1) == pytest.approx(0.01, abs=1e-4)
    left_out = [s for s in folder.metrics()[0]["sites"] if s["state"] != "accepted"]
    assert len(left_out) == (0 if kind == "silence" else 1)
    assert "patient 7" not in folder.metrics_file.read_text()


def test_a_reply_that_breaks_the_check_itself_ends_nobodys_run(tmp_path, monkeypatch) -> None:
    accept = ReceiptBook.accept

    def fails(self: ReceiptBook, receipt: Receipt) -> None:
        if receipt.site == "bad":
            raise ZeroDivisionError("a fault in what checks receipts")
        accept(self, receipt)

    monkeypatch.setattr(ReceiptBook, "accept", fails)
    folder, _, _ = run(tmp_path, [honest("a"), honest("bad")])
    for entry in folder.metrics():
        by_site = {site["site"]: site for site in entry["sites"]}
        assert by_site.pop("a")["state"] == "accepted"
        (bad,) = by_site.values()
        assert (bad["state"], bad["reason"]) == ("dropped", "the reply could not be checked")


def test_a_refusal_is_kept_with_its_word(tmp_path) -> None:
    folder, _, _ = run(tmp_path, [honest("a"), BAD["refusal"]], rounds=1)
    entry = folder.metrics()[0]["sites"][1]
    assert (entry["state"], entry["reason"]) == ("refused", "budget-exhausted")


def test_an_update_far_longer_than_the_others_is_dropped(tmp_path) -> None:
    sites = [honest("a", 0.01), honest("b", 0.01), honest("c", 10.0)]
    folder, _, first = run(tmp_path, sites, rounds=1)
    assert change_of(folder, first, rounds=1) == pytest.approx(0.01, abs=1e-4)


def test_a_small_site_whose_noise_is_long_counts_with_its_small_share(tmp_path) -> None:
    sites = [honest("a", 0.01, 500), honest("b", 0.01, 500), honest("c", 0.5, 10)]
    folder, _, _ = run(tmp_path, sites, rounds=1)
    assert [site["state"] for site in folder.metrics()[0]["sites"]] == ["accepted"] * 3


def test_a_round_below_the_quorum_ends_the_run_with_every_reason(tmp_path) -> None:
    with pytest.raises(FederationError, match=r"budget-exhausted.*quorum of 2"):
        run(tmp_path, [honest("a"), BAD["refusal"]], quorum=2)


def test_too_few_sites_end_the_run_after_the_wait(tmp_path) -> None:
    with pytest.raises(FederationError, match="1 sites are connected"):
        run(tmp_path, [honest("a")])


def test_a_run_that_was_cut_short_goes_on_after_its_last_checkpoint(tmp_path) -> None:
    def breaks(request: Request) -> RecordDict:
        if request.round_number == 2:
            raise KeyboardInterrupt
        return honest("a", 0.01)(request)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [breaks, honest("b", 0.01)])
    folder, grid, _ = run(tmp_path, [honest("a", 0.01), honest("b", 0.01)])
    assert [request.round_number for request in grid.requests] == [2, 2]
    assert [entry["round"] for entry in folder.metrics()] == [1, 2]


def test_a_round_asked_again_after_a_crash_has_the_same_request_id(tmp_path) -> None:
    seen = []

    def breaks(request: Request) -> RecordDict:
        seen.append(request.request_id)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, [breaks, honest("b")])
    assert seen[0] == seen[1]


def test_the_server_s_adam_moves_every_weight_along_the_change(tmp_path) -> None:
    adam = {"server_optimizer": "adam", "server_learning_rate": 0.1}
    folder, _, first = run(tmp_path, [honest("a"), honest("b")], **adam)
    state = Postprocess(study(**adam), folder).state
    assert state.optimizer
    moved = state.weights["decoder.root.bias"] - first["decoder.root.bias"]
    assert (moved > 0).all()


def test_an_epsilon_is_never_averaged(tmp_path) -> None:
    chosen = study(rounds=1)
    postprocess = Postprocess(chosen, RunFolder(tmp_path))
    names = private_names(build_model(chosen), chosen.model.private)
    more = (replace(EVENT, steps=50),)
    cost = epsilon(more, 1e-5)
    costly = spoiled("b", with_receipt("b", spent=more, epsilon_total=cost))
    know_sites(postprocess.run)
    result = StudyStrategy(chosen, names, postprocess, ReceiptBook(postprocess.run)).start(
        FakeGrid([honest("a"), costly]), pack_arrays(postprocess.state.weights), 1, 1.0
    )
    assert result.train_metrics_clientapp[1]["epsilon-max"] == cost


def test_every_receipt_is_kept_and_told_to_its_site(tmp_path) -> None:
    folder, grid, _ = run(tmp_path, [honest("a"), honest("b")])
    kept = read_receipts(folder.receipts)
    assert [receipt.round_number for receipt in kept["a"]] == [1, 2]
    assert grid.requests[0].known_receipts == {}
    assert grid.requests[2].known_receipts == {
        name: receipts[0].digest for name, receipts in kept.items()
    }


def test_a_site_whose_ledger_went_back_is_dropped_and_its_first_receipt_stays(tmp_path) -> None:
    def goes_back(request: Request) -> RecordDict:
        spoil = (
            with_receipt("b", sequence=1) if request.round_number == 2 else lambda answer: answer
        )
        return spoiled("b", spoil)(request)

    folder, _, _ = run(tmp_path, [honest("a"), goes_back])
    second = folder.metrics()[1]["sites"]
    assert [site["state"] for site in second] == ["accepted", "dropped"]
    assert "came after receipt 2" in second[1]["reason"]
    assert [receipt.sequence for receipt in read_receipts(folder.receipts)["b"]] == [2]


def test_a_link_that_names_another_receipt_is_dropped(tmp_path) -> None:
    def forks(request: Request) -> RecordDict:
        spoil = (
            with_receipt("b", sequence=3) if request.round_number == 2 else lambda answer: answer
        )
        return spoiled("b", spoil)(request)

    folder, _, _ = run(tmp_path, [honest("a"), forks])
    assert "does not name the receipt before" in folder.metrics()[1]["sites"][1]["reason"]


def test_a_receipt_is_kept_even_if_the_arrays_do_not_count(tmp_path) -> None:
    sites = [honest("a", 0.01), honest("b", 0.01), honest("c", 10.0)]
    folder, _, _ = run(tmp_path, sites, rounds=1)
    assert set(read_receipts(folder.receipts)) == {"a", "b", "c"}


def test_a_run_that_knows_no_site_does_not_begin(tmp_path) -> None:
    with pytest.raises(RunError, match="No site is known"):
        ReceiptBook(RunFolder(tmp_path))


@pytest.mark.parametrize("seed", [0, 5, 2**63 - 1])
def test_the_loss_is_measured_on_phantoms_that_no_prior_can_have_learned(
    tmp_path, monkeypatch, seed: int
) -> None:
    measured_on = []

    def drawn(study, count, seed, **rest):
        measured_on.append(seed)
        return study_phantoms(study, count, seed, **rest)

    monkeypatch.setattr("server.postprocess.study_phantoms", drawn)
    Postprocess(study().model_copy(update={"seed": seed}), RunFolder(tmp_path))
    (found,) = measured_on
    with pytest.raises(ValidationError, match="less than"):
        PriorSettings(seed=found)


def test_a_finished_run_has_a_generator_a_card_and_a_report(tmp_path) -> None:
    folder, _, _ = run(tmp_path, [honest("a"), honest("b")])
    Postprocess(study(), folder).finish_run()
    drawn = next(Generator.load(folder.generator).draw("amd", 2, 1))
    assert drawn.images_NSSC.shape == (2, 32, 32, 3)
    card = (folder.generator / "README.md").read_text()
    assert f"| a | {epsilon([replace(EVENT, steps=4)], 1e-5):.3f} |" in card
    assert study().study_hash in card
    page = folder.report.read_text()
    assert "data:image/png;base64" in page
    assert "http" not in page
