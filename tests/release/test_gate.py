"""The gate: each rule refuses what it is there to refuse, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_run import KEYS, evaluation_values_of, finished_run, receipt_of

from fundusgen.privacy.receipt_folder import keep_receipt
from fundusgen.release.gate import Check, Gate, checks
from fundusgen.release.receipt_proof import SiteProof, proofs_of
from fundusgen.run_folder import RunFolder

Values = dict[str, Any]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return finished_run(tmp_path / "run")


def failed(run: RunFolder, values: Values, gate: Gate | None = None, **rest: Any) -> set[str]:
    found = checks(
        gate or Gate(),
        rest.get("digest", values["subject"]["digest"]),
        [values],
        rest.get("proofs", proofs_of(run)),
        rest.get("mechanism", {"holds": True}),
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
    run: RunFolder, change: Callable[[Values], None], names: set[str]
) -> None:
    values = evaluation_values_of(run)
    change(values)
    assert failed(run, values) == names


def test_what_was_not_measured_has_not_passed(run: RunFolder) -> None:
    values = {**evaluation_values_of(run), "realism": [], "diversity": None, "usefulness": None}
    assert failed(run, values) == {
        "realism.nearer_than_phantoms", "realism.min_coverage", "realism.min_modes",
        "usefulness.min_auc_alone",
    }  # fmt: skip


def test_an_evaluation_of_another_generator_does_not_count(run: RunFolder) -> None:
    assert failed(run, evaluation_values_of(run), digest="0" * 64) == {"evidence.evaluation"}


def test_without_an_evaluation_nothing_leaves(run: RunFolder) -> None:
    names = {c.name for c in checks(Gate(), "0", [], proofs_of(run), None) if not c.passed}
    assert {"evidence.evaluation", "evidence.leakage", "evidence.mechanism"} <= names


@pytest.mark.parametrize("mechanism", [None, {"holds": False}])
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
    assert proofs_of(run) == ()
    assert failed(run, evaluation_values_of(run), proofs=()) == {"receipts"}


def test_every_check_says_what_was_demanded_and_found(run: RunFolder) -> None:
    found = checks(Gate(), "0", [evaluation_values_of(run)], proofs_of(run), None)
    assert all(isinstance(check, Check) and check.demanded and check.found for check in found)
    assert all(isinstance(proof, SiteProof) for proof in proofs_of(run))
