"""How a site answers a request for votes: what it costs, what is refused, what is sent again."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_study import PATIENTS, approve, approve_asked, phantom_site, request_for, small_study
from small_votes import (
    CANDIDATES,
    MALFORMED,
    NEAREST,
    NoNoise,
    asked_with,
    both_stages,
    poll_for,
    votes_study,
)
from torch import Tensor
from typer.testing import CliRunner

from fundusgen.cli.main import app
from fundusgen.federation.exchange import Answer, Refusal, Request
from fundusgen.federation.messages import reply_to_record
from fundusgen.federation.weights import digest
from fundusgen.privacy.accounting import epsilon, epsilon_pld, epsilon_rdp
from fundusgen.privacy.events import Event
from fundusgen.privacy.keys import signing_key
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.policy import RefusalReason
from fundusgen.privacy.receipt_folder import keep_receipt
from fundusgen.privacy.receipts import require_epsilon, require_signed
from fundusgen.site import SiteFolder
from fundusgen.training import answering
from fundusgen.training.mechanisms import noise_for
from fundusgen.training.poll import VOTES
from fundusgen.training.voting import PreparedVote


@pytest.fixture(scope="module")
def made_site(tmp_path_factory) -> Path:
    return phantom_site(tmp_path_factory.mktemp("made") / "site").path


@pytest.fixture
def site(made_site, tmp_path) -> SiteFolder:
    return SiteFolder(Path(shutil.copytree(made_site, tmp_path / "site")))


def answered(site: SiteFolder, request: Request) -> Answer:
    approve_asked(site, request)
    reply = answering.answer(site, request)
    assert isinstance(reply, Answer), reply
    return reply


def refused(site: SiteFolder, request: Request) -> RefusalReason:
    approve_asked(site, request)
    reply = answering.answer(site, request)
    assert isinstance(reply, Refusal)
    return reply.reason


def rows(site: SiteFolder):
    if not site.ledger_file.exists():
        return ()
    with Ledger.read(site.ledger_file) as ledger:
        return ledger.rows()


def change_policy(site: SiteFolder, **changes: object) -> None:
    content = yaml.safe_load(site.policy_file.read_text())
    site.policy_file.write_text(yaml.safe_dump({**content, **changes}))


def test_an_answer_is_a_noisy_tally_and_a_receipt_of_one_gaussian_mechanism(site) -> None:
    study = votes_study()
    reply = answered(site, poll_for(study))
    assert set(reply.weights) == {VOTES}
    assert (reply.weights[VOTES].shape, reply.weights[VOTES].dtype) == ((CANDIDATES,), np.float32)
    event = Event("gaussian", noise_for(study, "votes"), 1.0, 1)
    assert reply.receipt.event == event
    assert (reply.receipt.stage, reply.receipt.round_number) == ("votes", 1)
    assert reply.receipt.payload_digest == digest(reply.weights)
    assert reply.receipt.epsilon_total == epsilon([event], 1e-5)
    require_signed(reply.receipt, signing_key(site.keys).public_key())
    require_epsilon(reply.receipt)
    (row,) = rows(site)
    assert (row.event, row.state, row.stage, row.noise_kind) == (
        event, "released", "votes", "secure",
    )  # fmt: skip
    assert set(reply_to_record(reply)) == {"arrays", "receipt"}


def test_the_tally_is_that_of_the_site_s_patients_with_noise_of_the_event(
    site, monkeypatch
) -> None:
    asked: list[float] = []

    class Recorded(NoNoise):
        kind = "secure"

        def gaussian(self, shape: Sequence[int], standard_deviation: float) -> Tensor:
            asked.append(standard_deviation)
            return super().gaussian(shape, standard_deviation)

    monkeypatch.setattr(answering, "SecureNoise", Recorded)
    study = votes_study()
    tally = answered(site, poll_for(study)).weights[VOTES]
    assert asked == [noise_for(study, "votes")]
    # Every patient votes, and none with more than one whole image's three choices.
    assert (tally >= 0).all()
    assert PATIENTS <= tally.sum() <= PATIENTS * np.sqrt(2 * NEAREST) + 1e-3


def test_the_same_poll_is_answered_with_the_same_bytes_and_costs_nothing(site) -> None:
    study = votes_study()
    first, again = (reply_to_record(answered(site, poll_for(study))) for _ in range(2))
    assert again["receipt"]["json"] == first["receipt"]["json"]
    assert again["arrays"][VOTES].data == first["arrays"][VOTES].data
    assert len(rows(site)) == 1


def test_another_poll_for_a_round_that_was_answered_is_refused_and_costs_nothing(site) -> None:
    study = votes_study()
    answered(site, poll_for(study))
    for other in (asked_with(scale=2.0), asked_with(conditions_N=np.ones(CANDIDATES))):
        assert refused(site, poll_for(study, arrays=other)) is RefusalReason.ROUND_CONFLICT
    assert len(rows(site)) == 1


def test_two_rounds_with_the_same_poll_have_independent_noise_and_cost_twice(site) -> None:
    study = votes_study()
    first, second = (answered(site, poll_for(study, number)) for number in (1, 2))
    assert not np.array_equal(first.weights[VOTES], second.weights[VOTES])
    assert [row.event.steps for row in rows(site)] == [1, 1]
    twice = Event("gaussian", noise_for(study, "votes"), 1.0, 2)
    assert second.receipt.spent == (twice,)
    assert second.receipt.epsilon_total == epsilon([twice], 1e-5) <= 8.0


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_poll_is_refused_in_a_word_and_costs_nothing(site, kind: str) -> None:
    asked = poll_for(votes_study(), arrays={"a": np.ones(1, np.float32)})
    asked = replace(asked, weights=MALFORMED[kind](asked_with()))
    assert refused(site, asked) is RefusalReason.STUDY_MISMATCH
    assert rows(site) == ()
    # The round is not lost: an honest poll for it is answered.
    assert isinstance(answering.answer(site, poll_for(votes_study())), Answer)


@pytest.mark.parametrize(
    "asked",
    [
        lambda: poll_for(small_study()),
        lambda: request_for(votes_study()),
        lambda: poll_for(votes_study(), 3),
        lambda: poll_for(both_stages(), 3),
        lambda: request_for(both_stages(), 1),
        lambda: request_for(both_stages(), 6),
        lambda: replace(poll_for(both_stages()), weights=request_for(both_stages()).weights),
        lambda: replace(request_for(both_stages(), 3), weights=asked_with()),
        lambda: replace(poll_for(votes_study()), stage="vote"),
        lambda: replace(poll_for(votes_study()), study_hash="0" * 64),
    ],
    ids=[
        "votes of a study without", "dpsgd of a study without", "round after the last",
        "votes in a round of dpsgd", "dpsgd in a round of votes", "dpsgd after the last",
        "weights for a poll", "a poll for weights", "unknown stage", "another study",
    ],
)  # fmt: skip
def test_a_request_of_another_stage_is_refused_and_costs_nothing(site, asked) -> None:
    assert refused(site, asked()) is RefusalReason.STUDY_MISMATCH
    assert rows(site) == ()


@pytest.mark.parametrize("composition", ["fixed", "adaptive"])
def test_both_stages_of_a_study_come_to_the_target_and_not_beyond(site, composition: str) -> None:
    change_policy(site, composition=composition, max_epsilon=8.5)
    study = both_stages(privacy={"target_epsilon": 8, "votes_share": 0.25})
    replies = [answered(site, poll_for(study, number)) for number in (1, 2)]
    assert epsilon([row.event for row in rows(site)], 1e-5) <= 0.25 * 8
    replies += [answered(site, request_for(study, number)) for number in (3, 4, 5)]
    assert [row.event.kind for row in rows(site)] == ["gaussian"] * 2 + ["subsampled_gaussian"] * 3
    events = [row.event for row in rows(site)]
    for bound in (epsilon, epsilon_rdp, epsilon_pld):
        assert 7.0 < bound(events, 1e-5) <= 8.0
    totals = [reply.receipt.epsilon_total for reply in replies]
    assert totals == sorted(totals)
    assert replies[-1].receipt.spent == tuple(
        sorted(
            (
                Event("gaussian", noise_for(study, "votes"), 1.0, 2),
                Event("subsampled_gaussian", noise_for(study, "dpsgd"), 0.5, 6),
            ),
            key=lambda event: event.kind,
        )
    )


def test_a_study_whose_later_stage_would_exceed_the_cap_is_refused_before_the_votes(site) -> None:
    study = both_stages()
    change_policy(site, max_epsilon=4.0)
    assert refused(site, poll_for(study)) is RefusalReason.BUDGET_EXHAUSTED
    assert rows(site) == ()


@pytest.mark.parametrize("stage", ["votes", "dpsgd"])
def test_the_policy_s_least_noise_holds_for_both_stages_before_either_is_spent(
    site, monkeypatch, stage: str
) -> None:
    monkeypatch.setattr(answering, "load_patients", lambda *a, **k: pytest.fail("images were read"))
    # A share by which either stage has the least noise.
    share = {"votes": 0.9, "dpsgd": 0.25}[stage]
    study = both_stages(privacy={"target_epsilon": 8, "votes_share": share})
    least = noise_for(study, stage)  # type: ignore[arg-type]
    other = noise_for(study, "dpsgd" if stage == "votes" else "votes")
    assert least < other
    change_policy(site, min_noise_multiplier=(least + other) / 2)
    assert refused(site, poll_for(study)) is RefusalReason.NOISE_TOO_SMALL
    assert refused(site, request_for(study, 3)) is RefusalReason.NOISE_TOO_SMALL
    assert rows(site) == ()


def test_a_reply_too_large_in_the_later_stage_is_refused_before_the_votes(site) -> None:
    change_policy(site, release={"max_bytes_per_round": 10_000})
    assert refused(site, poll_for(both_stages())) is RefusalReason.REPLY_TOO_LARGE
    assert rows(site) == ()
    answered(site, poll_for(votes_study()))


def test_rounds_of_votes_count_among_those_that_the_policy_allows(site) -> None:
    change_policy(site, max_rounds_per_study=4)
    assert refused(site, poll_for(both_stages())) is RefusalReason.TOO_MANY_ROUNDS


def test_a_crash_while_votes_are_counted_costs_in_full_and_they_can_be_asked_for_again(
    site, monkeypatch
) -> None:
    change_policy(site, max_epsilon=20.0)
    study = both_stages()
    request = poll_for(study)
    approve(site, study)

    def crash(_: PreparedVote) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(answering, "cast_votes", crash)
        with pytest.raises(KeyboardInterrupt):
            answering.answer(site, request)
    assert [row.state for row in rows(site)] == ["reserved"]
    reply = answered(site, request)
    events = [row.event for row in rows(site)]
    assert events == [Event("gaussian", noise_for(study, "votes"), 1.0, 1)] * 2
    assert reply.receipt.epsilon_total == epsilon(events, 1e-5)


def test_an_interrupted_stage_that_was_paid_twice_ends_the_study_at_the_cap(
    site, monkeypatch
) -> None:
    change_policy(site, max_epsilon=8.0)
    # Votes that cost so little that six more of them leave room for some of the other stage.
    study = both_stages(privacy={"target_epsilon": 8, "votes_share": 0.25})
    approve(site, study)
    with monkeypatch.context() as patch:
        patch.setattr(answering, "cast_votes", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        for _ in range(6):
            with pytest.raises(KeyboardInterrupt):
                answering.answer(site, poll_for(study))
    for number in (1, 2):
        answered(site, poll_for(study, number))
    replies = [answering.answer(site, request_for(study, number)) for number in (3, 4, 5)]
    assert replies[-1] == Refusal(RefusalReason.BUDGET_EXHAUSTED)
    assert epsilon([row.event for row in rows(site)], 1e-5) <= 8.0


def test_whether_a_site_has_a_patient_with_a_condition_is_not_told(site) -> None:
    study = votes_study(conditions=["dr4", "glaucoma"])
    reply = answered(site, poll_for(study))
    assert (np.abs(reply.weights[VOTES]) > 0).all()
    assert [row.state for row in rows(site)] == ["released"]


def test_a_repaired_ledger_counts_votes_again_and_votes_no_second_time(site, tmp_path) -> None:
    change_policy(site, max_epsilon=20.0)
    study = both_stages()
    last = [answered(site, poll_for(study, number)).receipt for number in (1, 2)]
    for receipt in last:
        keep_receipt(tmp_path / "receipts", receipt)
    for path in site.path.glob("ledger.db*"):
        path.unlink()
    for path in site.outbox.iterdir():
        path.unlink()
    done = CliRunner().invoke(
        app,
        [
            "site", "ledger", "repair", str(site.path), "--receipts", str(tmp_path / "receipts"),
            "--yes", "--by", "M. Meier", "--reason", "a test", "--nothing-else-was-sent",
        ],
    )  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    with Ledger.read(site.ledger_file) as ledger:
        assert ledger.epsilon(1e-5) == pytest.approx(last[-1].epsilon_total)
    for arrays in (asked_with(), asked_with(scale=2.0)):
        assert refused(site, poll_for(study, 2, arrays)) in (
            RefusalReason.ROUND_CONFLICT, RefusalReason.LEDGER_UNUSABLE,
        )  # fmt: skip
    after = answered(site, request_for(study, 3)).receipt
    assert after.epsilon_total > last[-1].epsilon_total


def test_an_audit_finds_nothing_wrong_with_a_ledger_of_both_stages(site, tmp_path) -> None:
    change_policy(site, max_epsilon=8.5)
    study = both_stages()
    requests = [poll_for(study, 1), poll_for(study, 2), request_for(study, 3)]
    for request in requests:
        keep_receipt(tmp_path / "receipts", answered(site, request).receipt)
    done = CliRunner().invoke(
        app,
        [
            "audit", "ledger", str(site.path), "--out", str(tmp_path / "audit"),
            "--receipts", str(tmp_path / "receipts"),
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = (tmp_path / "audit" / "audit.html").read_text()
    assert f"Gaussian, noise {noise_for(study, 'votes'):.4g}, 2 steps" in told
    assert f"DP-SGD, noise {noise_for(study, 'dpsgd'):.4g}, rate 0.5, 2 steps" in told
