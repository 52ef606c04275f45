"""The gate: what a generator must have shown before it leaves its study.

What is demanded (`rules`) and what was found goes into the bundle, passed or not. Nothing is
measured here: the gate reads evaluations, the receipts of the sites, and the audit of the
mechanism. Whoever wrote an evaluation is believed: that its test patients were not trained on, and
its training patients were, no file can show.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fundusgen.models.generator import TRAINING_FILE, WEIGHTS_FILE
from fundusgen.release.evidence import at, listed, number
from fundusgen.release.receipt_proof import SiteProof
from fundusgen.release.rules import Gate, LeakageRules
from fundusgen.report.evaluation_values import KID_SCALE
from fundusgen.study import Study

MECHANISM_FORMAT = "fundusgen-mechanism-1"
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One thing that was demanded.

    Attributes:
        name: Of the rule, as in the gate's file: `leakage.max_auc`.
        demanded: What, in words.
        found: What was found.
        passed: Whether it is so.
    """

    name: str
    demanded: str
    found: str
    passed: bool


def checks(
    gate: Gate,
    study: Study,
    leaving: Mapping[str, str],
    rest_digest: str | None,
    evaluations: Sequence[Values],
    proofs: Sequence[SiteProof],
    mechanism: Values | None,
) -> tuple[Check, ...]:
    """Check everything that the gate demands.

    Guarantee: a figure that is missing, null, or not a finite number has not passed.

    Args:
        gate: The rules.
        study: That was trained.
        leaving: SHA-256 of everything that draws, by name: the network's weights, and a population
            of phantoms where one leaves.
        rest_digest: SHA-256 of the network's weights that do not draw: they stay, and must have
            been attacked all the same. None where they are gone.
        evaluations: Contents of evaluation.json, of one hospital or several; every one must pass.
        proofs: What the receipts prove.
        mechanism: Content of mechanism.json, or None.

    Returns:
        Every check; the generator may leave where all have passed.
    """
    found = [*_evidence(gate, study, leaving, rest_digest, evaluations, mechanism)]
    for place, values in enumerate(evaluations, start=1):
        where = f" (evaluation {place})" if len(evaluations) > 1 else ""
        of_network = subject_digest(values, study) == leaving.get(WEIGHTS_FILE)
        leakage = _leakage(gate, values, of_network=of_network)
        of_one = (*_realism(gate, values), *_usefulness(gate, values), *leakage)
        found += [Check(c.name, c.demanded, c.found + where, c.passed) for c in of_one]
    return (*found, *_receipts(gate, proofs))


def subject_digest(values: Values, study: Study) -> str | None:
    """SHA-256 of what an evaluation is of; None where that is not of this study."""
    subject = at(values, "subject")
    if at(subject, "study_hash") != study.study_hash:
        return None
    digest = at(subject, "digest")
    return digest if isinstance(digest, str) else None


def _evidence(
    gate: Gate, study: Study, leaving: Mapping[str, str], rest_digest: str | None,
    evaluations: Sequence[Values], mechanism: Values | None,
) -> Iterator[Check]:  # fmt: skip
    rules = gate.evidence
    of = [subject_digest(values, study) for values in evaluations]
    right = sum(digest in leaving.values() for digest in of)
    without = [name for name, digest in leaving.items() if digest not in of]
    yield Check(
        "evidence.evaluation", "evaluations of exactly this generator",
        "no evaluation" if not of else f"{right} of {len(of)} evaluations are of it"
        + "".join(f", none is of {name}" for name in without),
        bool(of) and right == len(of) and not without,
    )  # fmt: skip
    patients = min((number(values, "real", "patients") or 0 for values in evaluations), default=0)
    yield Check(
        "evidence.min_test_patients", f"at least {rules.min_test_patients} test patients",
        f"{patients:g}", patients >= rules.min_test_patients,
    )  # fmt: skip
    if rules.leakage:
        attacked = {
            digest for digest, values in zip(of, evaluations, strict=True)
            if listed(values, "leakage")
        }  # fmt: skip
        measured = bool(leaving) and set(leaving.values()) <= attacked
        yield Check(
            "evidence.leakage", "leakage measured at a site, with its training photographs",
            "measured" if measured else "not measured", measured,
        )  # fmt: skip
        if WEIGHTS_FILE in leaving:
            tried = [
                at(values, "attacked_digest")
                for digest, values in zip(of, evaluations, strict=True)
                if digest == leaving[WEIGHTS_FILE] and listed(values, "leakage")
            ]
            fault = _not_attacked(rest_digest, tried)
            yield Check(
                "evidence.leakage", "attacks on exactly this model's weights that do not draw, too",
                fault or "attacked", not fault,
            )  # fmt: skip
    if rules.mechanism:
        fault = _fault_of(mechanism, study)
        yield Check(
            "evidence.mechanism", "an audit of the study's mechanisms that holds",
            fault or "holds", not fault,
        )  # fmt: skip


def _not_attacked(rest_digest: str | None, tried: Sequence[Any]) -> str:
    """Why the weights that stay do not count as attacked; empty where they do."""
    if rest_digest is None:
        return f"the run's generator lacks {TRAINING_FILE}: which were attacked cannot be compared"
    if not tried or not all(tried):
        return f"not attacked: evaluate the run itself, with {TRAINING_FILE} in its generator"
    same = all(digest == rest_digest for digest in tried)
    return "" if same else "those of another model were attacked"


def _fault_of(mechanism: Values | None, study: Study) -> str:
    """Why an audit of the mechanism is no evidence; empty where it is."""
    if mechanism is None:
        return "none"
    audited = listed(mechanism, "mechanisms")
    missing = set(study.stage_rounds) - {at(one, "stage") for one in audited}
    if any(at(one, "holds") is not True for one in (mechanism, *audited)):
        return "does not hold"
    if any(at(one, "sufficient") is not True for one in (mechanism, *audited)):
        return "could not have seen faults: too few canaries"
    if missing:
        return f"not of {' and '.join(sorted(missing))}"
    if study.privacy.noise == "secure" and at(mechanism, "noise") != "secure":
        return "of another noise generator than the study's"
    return ""


def _realism(gate: Gate, values: Values) -> Iterator[Check]:
    rules = gate.realism
    rows = at(values, "realism", 0, "rows", "overall")
    if rules.nearer_than_phantoms:
        drawn = number(rows, "generated", "kid", "high")
        phantoms = number(rows, "phantoms", "kid", "low")
        yield Check(
            "realism.nearer_than_phantoms", "nearer to photographs than raw phantoms are",
            _NOT_MEASURED if drawn is None or phantoms is None else
            f"KID x1000 at most {KID_SCALE * drawn:.0f}, phantoms at least "
            f"{KID_SCALE * phantoms:.0f}",
            drawn is not None and phantoms is not None and drawn < phantoms,
        )  # fmt: skip
    yield _at_least("realism.min_coverage", "coverage of the photographs",
                    number(rows, "generated", "coverage", "value"), rules.min_coverage)  # fmt: skip
    drawn, real = (number(values, "diversity", name, "vendi", "value") for name in _SIDES)
    share = drawn / real if drawn is not None and real is not None and real > 0 else None
    yield _at_least("realism.min_modes", "different images as a share of photographs'", share,
                    rules.min_modes)  # fmt: skip


def _usefulness(gate: Gate, values: Values) -> Iterator[Check]:
    rules = gate.usefulness
    alone = _figures(values, regime="synthetic", score="auc")
    yield _at_least(
        "usefulness.min_auc_alone", "lower end of the AUC of generated images alone",
        number(alone, 0, "estimate", "low"), rules.min_auc_alone,
    )  # fmt: skip
    if rules.no_harm and alone:
        beside = _figures(values, regime="real_and_synthetic", share=1.0, score="auc",
                          task=at(alone, 0, "task"))  # fmt: skip
        changes = [(number(one, "change", "value"), number(one, "change", "high"))
                   for one in beside]  # fmt: skip
        known = [value for value, _ in changes if value is not None]
        if beside:
            yield Check(
                "usefulness.no_harm", "no harm beside all real photographs",
                f"AUC changes by {min(known):+.3f} at worst" if len(known) == len(beside)
                else _NOT_MEASURED,
                len(known) == len(beside)
                and all(high is not None and high >= 0 for _, high in changes),
            )  # fmt: skip


def _figures(values: Values, **wanted: object) -> list[Any]:
    return [
        figure
        for figure in listed(values, "usefulness", "figures")
        if all(at(figure, key) == value for key, value in wanted.items())
    ]


def _leakage(gate: Gate, values: Values, *, of_network: bool) -> Iterator[Check]:
    leaks = listed(values, "leakage")
    for leak in leaks:
        yield from _attacks(gate.leakage, leak)
    if (leaks and of_network) or at(values, "model_attack"):
        attack = at(values, "model_attack")
        name = at(attack, "name") or "an attack"
        yield from _attack(gate.leakage, attack, f"{name}, by all weights of the model")


def _attacks(rules: LeakageRules, leak: Values) -> Iterator[Check]:
    by, attacks = at(leak, "extractor"), listed(leak, "attacks")
    lows, highs = (
        [number(one, "control", "auc", end) for one in attacks] for end in ("low", "high")
    )
    apart = [1 - low if low is not None else None for low in lows] + highs
    # Of no attacks at all nothing is known either.
    known = [end for end in apart if end is not None]
    yield _at_most(
        "leakage.comparable",
        f"AUC of attacks with phantoms, which know nobody, from 0.5 either way, by {by},",
        max(known) if known and len(known) == len(apart) else None, rules.max_auc,
    )  # fmt: skip
    for one in attacks or [{}]:
        attack = at(one, "attack")
        yield from _attack(rules, attack, f"{at(attack, 'name') or 'an attack'}, by {by}")
    for which, said in (("share", "generated images"), ("closest_share", "the nearest tenth")):
        p_value = number(leak, "copying", which, "p_value")
        yield Check(
            "leakage.min_copying_p", f"no copies among {said}, by {by}",
            _NOT_MEASURED if p_value is None else f"p {p_value:.4f}",
            p_value is not None and p_value >= rules.min_copying_p,
        )  # fmt: skip


def _attack(rules: LeakageRules, attack: object, name: str) -> Iterator[Check]:
    yield _at_most(
        "leakage.max_auc", f"AUC of {name}", number(attack, "auc", "high"), rules.max_auc
    )
    # A bootstrap of members of whom none was named has an interval of no width.
    ends = number(attack, "true_positive_rate", "high"), number(attack, "true_positive_upper")
    yield _at_most(
        "leakage.max_true_positive_rate", f"members named by {name}",
        None if ends[0] is None or ends[1] is None else max(ends[0], ends[1]),
        rules.max_true_positive_rate,
    )  # fmt: skip


def _receipts(gate: Gate, proofs: Sequence[SiteProof]) -> Iterator[Check]:
    rules = gate.receipts
    faults = [f"{proof.site}: {fault}" for proof in proofs for fault in proof.faults]
    yield Check(
        "receipts", "a signed receipt for every answer that counts",
        "; ".join(faults) or f"{sum(p.answers for p in proofs)} answers of {len(proofs)} sites",
        bool(proofs) and not faults,
    )  # fmt: skip
    for proof in proofs:
        if proof.epsilon is None or proof.delta is None:
            continue
        yield Check(
            "receipts.max_epsilon", f"epsilon of {proof.site} at most {rules.max_epsilon:g}",
            f"{proof.epsilon:.3f}", proof.epsilon <= rules.max_epsilon,
        )  # fmt: skip
        yield Check(
            "receipts.max_delta", f"delta of {proof.site} at most {rules.max_delta:g}",
            f"{proof.delta:g}", proof.delta <= rules.max_delta,
        )  # fmt: skip


def _at_least(name: str, what: str, found: float | None, bound: float) -> Check:
    return Check(
        name, f"{what} at least {bound:g}", _NOT_MEASURED if found is None else f"{found:.3f}",
        found is not None and found >= bound,
    )  # fmt: skip


def _at_most(name: str, what: str, found: float | None, bound: float) -> Check:
    return Check(
        name, f"{what} at most {bound:g}", _NOT_MEASURED if found is None else f"{found:.3f}",
        found is not None and found <= bound,
    )  # fmt: skip


_NOT_MEASURED = "not measured"
_SIDES = ("generated", "real")
