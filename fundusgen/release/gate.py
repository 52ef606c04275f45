"""The gate: what a generator must have shown before it leaves its study.

Thresholds are settings with defaults that can be argued for; what is demanded and what was found
goes into the bundle, passed or not. Nothing is measured here: the gate reads evaluations, the
receipts of the sites, and the audit of the mechanism.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fundusgen.release.receipt_proof import SiteProof
from fundusgen.report.evaluation_values import KID_SCALE, figures_of

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Values = Mapping[str, Any]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EvidenceRules(_Settings):
    """What must be there at all.

    Attributes:
        min_test_patients: Fewer tell no two generators apart.
        leakage: Leakage must have been measured, with the training photographs of a site.
        mechanism: The audit of the mechanism must be there, and hold.
    """

    min_test_patients: Annotated[int, Field(ge=1)] = 100
    leakage: bool = True
    mechanism: bool = True


class RealismRules(_Settings):
    """How real images must look.

    Attributes:
        nearer_than_phantoms: KID to photographs must be below that of raw phantoms, beyond both
            intervals: otherwise patients' privacy was spent for nothing that can be seen.
        min_coverage: Share of photographs with a generated image in their neighbourhood, by the
            leading extractor. Real photographs have about 0.97; 0.05 refuses a generator that
            leaves nearly everybody out.
        min_modes: Effective number of different images, as a share of that of real photographs; a
            collapsed generator has next to none.
    """

    nearer_than_phantoms: bool = True
    min_coverage: Fraction = 0.05
    min_modes: Fraction = 0.25


class UsefulnessRules(_Settings):
    """What images must be good for.

    Attributes:
        min_auc_alone: Lower end of the interval of the AUC, in the first task, of a classifier
            that learned from generated images alone; 0.5 means: better than guessing.
        no_harm: Beside all real training photographs, generated images must not make a classifier
            worse, beyond the interval. Where it was not measured, this is not checked.
    """

    min_auc_alone: Fraction = 0.5
    no_harm: bool = True


class LeakageRules(_Settings):
    """What attackers must have failed at.

    Attributes:
        max_auc: Upper end of the interval of every attack's AUC, by patient. The same attacks with
            phantoms, which know nobody, must keep to it too: otherwise test and training patients
            differ so much that nothing can be said of leakage.
        max_true_positive_rate: The same of the share of members named at 1 % false positives.
        min_copying_p: Generated images nearer to training patients than to others, with a smaller
            probability than this under chance, are taken for copies.
    """

    max_auc: Fraction = 0.6
    max_true_positive_rate: Fraction = 0.1
    min_copying_p: Fraction = 0.001


class ReceiptRules(_Settings):
    """What it may have cost.

    Attributes:
        max_epsilon: Of any site, over all its studies, as its receipts state.
        max_delta: At which that holds at most.
    """

    max_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    max_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-4


class Gate(_Settings):
    """All rules; `GATE.yaml` has those that differ."""

    evidence: EvidenceRules = EvidenceRules()
    realism: RealismRules = RealismRules()
    usefulness: UsefulnessRules = UsefulnessRules()
    leakage: LeakageRules = LeakageRules()
    receipts: ReceiptRules = ReceiptRules()


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
    generator_digest: str,
    evaluations: Sequence[Values],
    proofs: Sequence[SiteProof],
    mechanism: Values | None,
) -> tuple[Check, ...]:
    """Check everything that the gate demands.

    Args:
        gate: The rules.
        generator_digest: SHA-256 of the generator's weights, or of its population of phantoms.
        evaluations: Contents of evaluation.json, of one hospital or several; every one must pass.
        proofs: What the receipts prove.
        mechanism: Content of mechanism.json, or None.

    Returns:
        Every check; the generator may leave where all have passed.
    """
    found = [*_evidence(gate, generator_digest, evaluations, mechanism)]
    for number, values in enumerate(evaluations, start=1):
        where = f" (evaluation {number})" if len(evaluations) > 1 else ""
        of_one = (*_realism(gate, values), *_usefulness(gate, values), *_leakage(gate, values))
        found += [Check(c.name, c.demanded, c.found + where, c.passed) for c in of_one]
    return (*found, *_receipts(gate, proofs))


def _evidence(
    gate: Gate, generator_digest: str, evaluations: Sequence[Values], mechanism: Values | None
) -> Iterator[Check]:
    rules = gate.evidence
    same = [values["subject"]["digest"] == generator_digest for values in evaluations]
    yield Check(
        "evidence.evaluation", "an evaluation of exactly this generator",
        f"{sum(same)} of {len(same)} evaluations are of it" if same else "no evaluation",
        bool(same) and all(same),
    )  # fmt: skip
    patients = min((values["real"]["patients"] for values in evaluations), default=0)
    yield Check(
        "evidence.min_test_patients", f"at least {rules.min_test_patients} test patients",
        f"{patients}", patients >= rules.min_test_patients,
    )  # fmt: skip
    if rules.leakage:
        measured = sum(bool(values["leakage"]) for values in evaluations)
        yield Check(
            "evidence.leakage", "leakage measured at a site, with its training photographs",
            "measured" if measured else "not measured", measured > 0,
        )  # fmt: skip
    if rules.mechanism:
        yield Check(
            "evidence.mechanism", "an audit of the mechanism that holds",
            "none" if mechanism is None else "holds" if mechanism["holds"] else "does not hold",
            mechanism is not None and bool(mechanism["holds"]),
        )  # fmt: skip


def _realism(gate: Gate, values: Values) -> Iterator[Check]:
    rules = gate.realism
    rows = values["realism"][0]["rows"]["overall"] if values["realism"] else None
    if rules.nearer_than_phantoms:
        drawn, phantoms = (rows[name]["kid"] if rows else None for name in _KINDS)
        yield Check(
            "realism.nearer_than_phantoms", "nearer to photographs than raw phantoms are",
            "not measured" if drawn is None or phantoms is None else
            f"KID x1000 at most {KID_SCALE * drawn['high']:.0f}, phantoms at least "
            f"{KID_SCALE * phantoms['low']:.0f}",
            drawn is not None and phantoms is not None and drawn["high"] < phantoms["low"],
        )  # fmt: skip
    coverage = rows["generated"]["coverage"]["value"] if rows else None
    yield _at_least("realism.min_coverage", "coverage of the photographs", coverage,
                    rules.min_coverage)  # fmt: skip
    varied = values["diversity"]
    share = None
    if varied and varied["real"]["vendi"]["value"]:
        share = varied["generated"]["vendi"]["value"] / varied["real"]["vendi"]["value"]
    yield _at_least("realism.min_modes", "different images as a share of photographs'", share,
                    rules.min_modes)  # fmt: skip


def _usefulness(gate: Gate, values: Values) -> Iterator[Check]:
    rules = gate.usefulness
    alone = figures_of(values, regime="synthetic", score="auc")
    low = alone[0]["estimate"]["low"] if alone else None
    yield _at_least(
        "usefulness.min_auc_alone", "lower end of the AUC of generated images alone", low,
        rules.min_auc_alone,
    )  # fmt: skip
    if rules.no_harm and alone:
        beside = figures_of(values, regime="real_and_synthetic", share=1.0, score="auc",
                            task=alone[0]["task"])  # fmt: skip
        harmed = [figure for figure in beside if figure["change"]["high"] < 0]
        if beside:
            worst = min(figure["change"]["value"] for figure in beside)
            yield Check(
                "usefulness.no_harm", "no harm beside all real photographs",
                f"AUC changes by {worst:+.3f} at worst", not harmed,
            )  # fmt: skip


def _leakage(gate: Gate, values: Values) -> Iterator[Check]:
    rules = gate.leakage
    for leak in values["leakage"]:
        by = leak["extractor"]
        controls = [one["control"]["auc"]["high"] for one in leak["attacks"]]
        yield _at_most(
            "leakage.comparable", f"AUC of attacks with phantoms, which know nobody, by {by}",
            max(controls), rules.max_auc,
        )  # fmt: skip
        for one in leak["attacks"]:
            attack, name = one["attack"], f"{one['attack']['name']}, by {by}"
            yield _at_most(
                "leakage.max_auc", f"AUC of {name}", attack["auc"]["high"], rules.max_auc
            )
            yield _at_most(
                "leakage.max_true_positive_rate", f"members named by {name}",
                attack["true_positive_rate"]["high"], rules.max_true_positive_rate,
            )  # fmt: skip
        for which, said in (("share", "generated images"), ("closest_share", "the nearest tenth")):
            p_value = leak["copying"][which]["p_value"]
            yield Check(
                "leakage.min_copying_p", f"no copies among {said}, by {by}", f"p {p_value:.4f}",
                p_value >= rules.min_copying_p,
            )  # fmt: skip
    if values["model_attack"]:
        attack = values["model_attack"]
        yield _at_most("leakage.max_auc", f"AUC of {attack['name']}, by the released weights",
                       attack["auc"]["high"], rules.max_auc)  # fmt: skip


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
        name, f"{what} at least {bound:g}", "not measured" if found is None else f"{found:.3f}",
        found is not None and found >= bound,
    )  # fmt: skip


def _at_most(name: str, what: str, found: float, bound: float) -> Check:
    return Check(name, f"{what} at most {bound:g}", f"{found:.3f}", found <= bound)


_KINDS = ("generated", "phantoms")
