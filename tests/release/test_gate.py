"""The gate: each rule refuses what it is there to refuse, and nothing else."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finished_run import (
    DELTA,
    EVENT,
    KEYS,
    STUDY,
    evaluation_values_of,
    finished_run,
    mechanism_values,
    receipt_of,
    rest_digest_of,
)

from fundusgen.errors import RunError
from fundusgen.models.generator import WEIGHTS_FILE
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.receipt_folder import keep_receipt
from fundusgen.release.gate import Check, checks
from fundusgen.release.receipt_proof import SiteProof, proofs_of
from fundusgen.release.rules import Gate
from fundusgen.run_folder import RunFolder

Values = dict[str, Any]
SPENT = (replace(EVENT, steps=8),)
# What no figure may be.
JUNK = (None, math.nan, -math.inf, math.inf, True, "0.5", [], {}, 10**400)
ESTIMATES = (
    ("realism", 0, "rows", "overall", "generated", "kid", "high"),
    ("realism", 0, "rows", "overall", "phantoms", "kid", "low"),
    ("realism", 0, "rows", "overall", "generated", "coverage", "value"),
    ("diversity", "generated", "vendi", "value"),
    ("diversity", "real", "vendi", "value"),
    ("usefulness", "figures", 1, "estimate", "low"),
    ("usefulness", "figures", 2, "change", "high"),
    ("usefulness", "figures", 2, "change", "value"),
    ("usefulness", "figures", 2, "change"),
    ("leakage", 0, "attacks"),
    ("leakage", 0, "attacks", 0, "attack"),
    ("leakage", 0, "attacks", 0, "control"),
    ("leakage", 0, "attacks", 0, "attack", "auc", "high"),
    ("leakage", 0, "attacks", 0, "attack", "true_positive_rate", "high"),
    ("leakage", 0, "attacks", 0, "attack", "true_positive_upper"),
    ("leakage", 0, "attacks", 0, "control", "auc", "low"),
    ("leakage", 0, "attacks", 0, "control", "auc", "high"),
    ("leakage", 0, "attacks", 1, "control", "auc", "high"),
    ("leakage", 0, "copying", "share", "p_value"),
    ("leakage", 0, "copying", "closest_share", "p_value"),
    ("model_attack",),
    ("model_attack", "auc", "high"),
    ("model_attack", "true_positive_upper"),
    ("real", "patients"),
    ("subject", "digest"),
    ("subject", "study_hash"),
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return finished_run(tmp_path / "run")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that tests only read."""
    return finished_run(tmp_path_factory.mktemp("sound") / "run")


def failed(run: RunFolder, values: Values, gate: Gate | None = None, **rest: Any) -> set[str]:
    found = checks(
        gate or Gate(),
        STUDY,
        rest.get("leaving") or {WEIGHTS_FILE: evaluation_values_of(run)["subject"]["digest"]},
        rest["rest_digest"] if "rest_digest" in rest else rest_digest_of(run),
        [values],
        rest["proofs"] if "proofs" in rest else proofs_of(run),
        rest.get("mechanism", mechanism_values()),
    )
    return {check.name for check in found if not check.passed}


def test_a_generator_with_good_evidence_may_leave(run: RunFolder) -> None:
    assert not failed(run, evaluation_values_of(run))


def set_kid(values: Values) -> None:
    rows = values["realism"][0]["rows"]["overall"]
    rows["generated"]["kid"] = rows["phantoms"]["kid"]


def nobody_covered(values: Values) -> None:
    values["realism"][0]["rows"]["overall"]["generated"]["coverage"]["value"] = 0.01


def collapsed(values: Values) -> None:
    values["diversity"]["generated"]["vendi"]["value"] = 1.1


def guesses(values: Values) -> None:
    values["usefulness"]["figures"][1]["estimate"] = {"value": 0.51, "low": 0.45, "high": 0.57}


def harms(values: Values) -> None:
    change = {"value": -0.05, "low": -0.08, "high": -0.02}
    values["usefulness"]["figures"][2]["change"] = change


def found_out(values: Values) -> None:
    attack = values["leakage"][0]["attacks"][0]["attack"]
    values["leakage"][0]["attacks"][0]["attack"] = {
        **attack, "auc": {"value": 0.8, "low": 0.75, "high": 0.85},
    }  # fmt: skip


def some_found_out(values: Values) -> None:
    attack = values["leakage"][0]["attacks"][0]["attack"]
    values["leakage"][0]["attacks"][0]["attack"] = {
        **attack, "true_positive_rate": {"value": 0.2, "low": 0.1, "high": 0.3},
    }  # fmt: skip


def other_cameras(values: Values) -> None:
    attack = values["leakage"][0]["attacks"][0]["control"]
    values["leakage"][0]["attacks"][0]["control"] = {
        **attack, "auc": {"value": 0.8, "low": 0.75, "high": 0.85},
    }  # fmt: skip


def copied(values: Values) -> None:
    copying = values["leakage"][0]["copying"]
    values["leakage"][0]["copying"] = {
        **copying, "closest_share": {**copying["closest_share"], "p_value": 0.0005},
    }  # fmt: skip


def weights_tell(values: Values) -> None:
    values["model_attack"]["auc"] = {"value": 0.9, "low": 0.85, "high": 0.95}


def no_leakage(values: Values) -> None:
    values["leakage"], values["model_attack"] = [], None


def few_patients(values: Values) -> None:
    values["real"]["patients"] = 99


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (set_kid, {"realism.nearer_than_phantoms"}),
        (nobody_covered, {"realism.min_coverage"}),
        (collapsed, {"realism.min_modes"}),
        (guesses, {"usefulness.min_auc_alone"}),
        (harms, {"usefulness.no_harm"}),
        (found_out, {"leakage.max_auc"}),
        (some_found_out, {"leakage.max_true_positive_rate"}),
        (other_cameras, {"leakage.comparable"}),
        (copied, {"leakage.min_copying_p"}),
        (weights_tell, {"leakage.max_auc"}),
        (no_leakage, {"evidence.leakage"}),
        (few_patients, {"evidence.min_test_patients"}),
    ],
)
def test_each_rule_refuses_what_it_is_there_for(
    sound: RunFolder, change: Callable[[Values], None], names: set[str]
) -> None:
    values = evaluation_values_of(sound)
    change(values)
    assert failed(sound, values) == names


def test_what_was_not_measured_has_not_passed(run: RunFolder) -> None:
    values = {**evaluation_values_of(run), "realism": [], "diversity": None, "usefulness": None}
    assert failed(run, values) == {
        "realism.nearer_than_phantoms", "realism.min_coverage", "realism.min_modes",
        "usefulness.min_auc_alone",
    }  # fmt: skip


@pytest.mark.parametrize("path", ESTIMATES, ids=str)
def test_a_figure_that_is_none_fails_and_never_passes(
    sound: RunFolder, path: tuple[str | int, ...]
) -> None:
    run, proofs = sound, proofs_of(sound)
    whole = evaluation_values_of(run)
    whole["leakage"][0]["attacks"] *= 2
    assert not failed(run, whole, proofs=proofs)
    for junk in JUNK:
        values = deepcopy(whole)
        inner: Any = values
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = junk
        assert failed(run, values, proofs=proofs), (path, junk)
    del inner[path[-1]]
    assert failed(run, values, proofs=proofs)


def places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Everything in a document that can be replaced, with what it lies in."""
    keys = values if isinstance(values, dict) else range(len(values))
    for key in keys:
        yield values, key
        if isinstance(values[key], dict | list):
            yield from places(values[key])


def test_no_document_whatever_crashes_the_gate(run: RunFolder) -> None:
    proofs, values = proofs_of(run), evaluation_values_of(run)
    leaving = {WEIGHTS_FILE: values["subject"]["digest"]}
    for junk in JUNK:
        for inner, key in list(places(values)):
            kept, inner[key] = inner[key], junk
            failed(run, values, proofs=proofs, leaving=leaving)
            inner[key] = kept
    assert not failed(run, values, proofs=proofs)
    assert failed(run, {}, proofs=proofs) >= {"evidence.evaluation", "evidence.leakage"}


def test_a_set_of_patients_that_differs_the_other_way_hides_leaks_too(run: RunFolder) -> None:
    values = evaluation_values_of(run)
    attack = values["leakage"][0]["attacks"][0]["control"]
    values["leakage"][0]["attacks"][0]["control"] = {
        **attack, "auc": {"value": 0.35, "low": 0.3, "high": 0.4},
    }  # fmt: skip
    assert failed(run, values) == {"leakage.comparable"}


def test_of_few_members_none_named_is_no_proof(run: RunFolder) -> None:
    values = evaluation_values_of(run)
    attack = values["leakage"][0]["attacks"][0]["attack"]
    values["leakage"][0]["attacks"][0]["attack"] = {
        **attack, "true_positive_rate": {"value": 0.0, "low": 0.0, "high": 0.0},
        "true_positive_upper": 0.14,
    }  # fmt: skip
    assert failed(run, values) == {"leakage.max_true_positive_rate"}


def test_members_that_the_weights_name_are_counted_too(run: RunFolder) -> None:
    values = evaluation_values_of(run)
    values["model_attack"]["true_positive_rate"] = {"value": 0.3, "low": 0.2, "high": 0.4}
    assert failed(run, values) == {"leakage.max_true_positive_rate"}


def test_weights_that_nobody_attacked_are_no_evidence(run: RunFolder) -> None:
    values = {**evaluation_values_of(run), "model_attack": None}
    assert failed(run, values) == {"leakage.max_auc", "leakage.max_true_positive_rate"}
    # Whatever it calls itself: it is of the network's weights.
    values["subject"] = {**values["subject"], "kind": "voted phantoms"}
    assert failed(run, values) == {"leakage.max_auc", "leakage.max_true_positive_rate"}


@pytest.mark.parametrize("attacked", ["", None, "0" * 64])
def test_an_attack_on_other_weights_is_no_evidence(run: RunFolder, attacked: str | None) -> None:
    values = {**evaluation_values_of(run), "attacked_digest": attacked}
    assert failed(run, values) == {"evidence.leakage"}
    assert not failed(run, values, Gate.model_validate({"evidence": {"leakage": False}}))


def test_weights_that_are_gone_cannot_be_known_to_have_been_attacked(run: RunFolder) -> None:
    assert failed(run, evaluation_values_of(run), rest_digest=None) == {"evidence.leakage"}


def test_an_evaluation_under_another_study_does_not_count(run: RunFolder) -> None:
    values = evaluation_values_of(run)
    values["subject"] = {**values["subject"], "study_hash": "0" * 64}
    assert failed(run, values) == {"evidence.evaluation", "evidence.leakage"}


def test_everything_that_leaves_needs_an_evaluation(run: RunFolder) -> None:
    values = evaluation_values_of(run)
    leaving = {WEIGHTS_FILE: values["subject"]["digest"], "population.json": "1" * 64}
    found = checks(
        Gate(), STUDY, leaving, rest_digest_of(run), [values], proofs_of(run), mechanism_values()
    )
    assert [check.found for check in found if check.name == "evidence.evaluation"] == [
        "1 of 1 evaluations are of it, none is of population.json"
    ]
    assert failed(run, values, leaving=leaving) == {"evidence.evaluation", "evidence.leakage"}


def test_an_evaluation_of_another_generator_does_not_count(run: RunFolder) -> None:
    assert failed(run, evaluation_values_of(run), leaving={WEIGHTS_FILE: "0" * 64}) == {
        "evidence.evaluation", "evidence.leakage",
    }  # fmt: skip


def test_without_an_evaluation_nothing_leaves(run: RunFolder) -> None:
    names = {
        c.name
        for c in checks(Gate(), STUDY, {WEIGHTS_FILE: "0"}, None, [], proofs_of(run), None)
        if not c.passed
    }
    assert {"evidence.evaluation", "evidence.leakage", "evidence.mechanism"} <= names


@pytest.mark.parametrize(
    "mechanism",
    [
        None,
        {},
        mechanism_values() | {"holds": False},
        mechanism_values() | {"holds": "yes"},
        mechanism_values() | {"sufficient": False},
        mechanism_values() | {"mechanisms": []},
        mechanism_values() | {"mechanisms": mechanism_values()["mechanisms"][1:]},
        mechanism_values() | {"mechanisms": [{"stage": "dpsgd", "holds": True}]},
        mechanism_values() | {"noise": "fast"},
    ],
)
def test_the_mechanism_must_have_been_audited(run: RunFolder, mechanism: Values | None) -> None:
    assert failed(run, evaluation_values_of(run), mechanism=mechanism) == {"evidence.mechanism"}


def test_rules_of_a_file_are_kept_to(run: RunFolder) -> None:
    strict = Gate.model_validate({"leakage": {"max_auc": 0.52}, "receipts": {"max_epsilon": 0.01}})
    assert failed(run, evaluation_values_of(run), strict) == {
        "leakage.max_auc", "leakage.comparable", "receipts.max_epsilon",
    }  # fmt: skip


def test_sound_receipts_prove_what_each_site_spent(run: RunFolder) -> None:
    proofs = proofs_of(run)
    assert [proof.site for proof in proofs] == sorted(KEYS)
    for proof in proofs:
        assert not proof.faults
        assert (proof.answers, proof.receipts, proof.declared_patients) == (2, 2, 300)
        last = receipt_of(proof.site, 2, "0" * 64)
        assert (proof.epsilon, proof.delta) == (last.epsilon_total, last.delta)


def faults_of(run: RunFolder) -> dict[str, str]:
    return {proof.site: " ".join(proof.faults) for proof in proofs_of(run) if proof.faults}


def test_a_missing_receipt_is_a_fault(run: RunFolder) -> None:
    (run.receipts / "a" / "000002.json").unlink()
    assert "no receipt of 1 answers, the first in round 2" in faults_of(run)["a"]
    assert set(faults_of(run)) == {"a"}
    assert failed(run, evaluation_values_of(run)) == {"receipts"}


def test_a_receipt_that_was_changed_is_a_fault(run: RunFolder) -> None:
    path = run.receipts / "b" / "000001.json"
    path.write_text(path.read_text().replace('"declared_patients":300', '"declared_patients":900'))
    assert "not signed by the site's key" in faults_of(run)["b"]


def test_a_site_whose_key_is_not_known_proves_nothing(run: RunFolder) -> None:
    (run.known_sites / "a.pub").unlink()
    assert "a.pub is not in known-sites" in faults_of(run)["a"]


def test_an_epsilon_that_its_events_do_not_cost_is_a_fault(run: RunFolder) -> None:
    (run.receipts / "a" / "000002.json").unlink()
    first = receipt_of("a", 1, "0" * 64)
    keep_receipt(run.receipts, receipt_of("a", 2, first.digest, epsilon_total=0.01))
    assert "states epsilon 0.010000" in faults_of(run)["a"]


def test_a_damaged_receipt_proves_nothing_for_anybody(run: RunFolder) -> None:
    (run.receipts / "a" / "000001.json").write_text("{")
    assert set(faults_of(run)) == set(KEYS)


def test_a_run_that_nobody_answered_has_no_proof(run: RunFolder) -> None:
    run.metrics_file.unlink()
    shutil.rmtree(run.receipts)
    (run.generator / "model.json").unlink()
    assert proofs_of(run) == ()
    assert failed(run, evaluation_values_of(run), proofs=()) == {"receipts"}


def test_a_round_that_the_metrics_leave_out_is_a_fault_of_every_site(run: RunFolder) -> None:
    first, _ = run.metrics_file.read_text().splitlines(keepends=True)
    run.metrics_file.write_text(first)
    faults = faults_of(run)
    assert set(faults) == set(KEYS)
    assert "does not tell who answered in 1 rounds, the first of them 2" in faults["a"]


def test_a_site_that_the_metrics_do_not_name_is_held_to_its_receipts(run: RunFolder) -> None:
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    for line in lines:
        line["sites"] = [site for site in line["sites"] if site["site"] == "a"]
    run.metrics_file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert [proof.site for proof in proofs_of(run)] == ["a", "b"]
    strict = Gate.model_validate({"receipts": {"max_epsilon": 0.01}})
    found = checks(strict, STUDY, {}, None, [], proofs_of(run), None)
    assert any("epsilon of b" in check.demanded and not check.passed for check in found)


def test_a_site_that_only_the_generator_names_proves_nothing(run: RunFolder) -> None:
    path = run.generator / "model.json"
    model = json.loads(path.read_text())
    path.write_text(json.dumps({**model, "facts": {"rounds": 2, "epsilon_by_site": {"c": 1.0}}}))
    assert "no receipt of this study" in faults_of(run)["c"]


def test_receipts_of_another_study_prove_no_answer(run: RunFolder) -> None:
    shutil.rmtree(run.receipts / "a")
    previous = "0" * 64
    for round_number in (1, 2):
        receipt = receipt_of("a", round_number, previous, study_hash="b" * 64)
        keep_receipt(run.receipts, receipt)
        previous = receipt.digest
    assert "no receipt of 2 answers, the first in round 1" in faults_of(run)["a"]


def test_the_last_receipt_says_what_was_spent_whatever_delta_it_is_at(run: RunFolder) -> None:
    """An earlier receipt states more, at the delta that the gate likes, and not the whole."""
    (run.receipts / "a" / "000002.json").unlink()
    first = receipt_of("a", 1, "0" * 64)
    last = receipt_of("a", 2, first.digest, delta=1e-2, epsilon_total=epsilon(SPENT, 1e-2))
    keep_receipt(run.receipts, last)
    assert last.epsilon_total < first.epsilon_total
    proof = proofs_of(run)[0]
    assert (proof.epsilon, proof.delta, proof.faults) == (last.epsilon_total, 1e-2, ())
    assert failed(run, evaluation_values_of(run)) == {"receipts.max_delta"}


def test_a_first_receipt_that_leaves_out_its_own_event_is_a_fault(run: RunFolder) -> None:
    shutil.rmtree(run.receipts / "a")
    other = (replace(EVENT, noise_multiplier=50.0),)
    first = receipt_of("a", 1, "0" * 64, spent=other, epsilon_total=epsilon(other, DELTA))
    spent = (EVENT, *other)
    second = receipt_of("a", 2, first.digest, spent=spent, epsilon_total=epsilon(spent, DELTA))
    for receipt in (first, second):
        keep_receipt(run.receipts, receipt)
    assert faults_of(run) == {"a": "receipt 1 does not count its own event"}


@pytest.mark.parametrize("line", ['{"round": 3}', '{"round": "3", "sites": []}', "3", "{}"])
def test_damaged_metrics_end_in_a_sentence(run: RunFolder, line: str) -> None:
    with run.metrics_file.open("a") as lines:
        lines.write(line + "\n")
    with pytest.raises(RunError, match=r"metrics.jsonl is damaged"):
        proofs_of(run)


def test_every_check_says_what_was_demanded_and_found(run: RunFolder) -> None:
    found = checks(
        Gate(), STUDY, {WEIGHTS_FILE: "0"}, None, [evaluation_values_of(run)], proofs_of(run), None
    )  # fmt: skip
    assert all(isinstance(check, Check) and check.demanded and check.found for check in found)
    assert all(isinstance(proof, SiteProof) for proof in proofs_of(run))
