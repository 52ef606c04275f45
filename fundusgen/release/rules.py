"""The rules of the gate: settings with defaults that can be argued for."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EvidenceRules(_Settings):
    """What must be there at all.

    Attributes:
        min_test_patients: Fewer tell no two generators apart.
        leakage: Leakage of all that leaves must have been measured, with the training photographs
            of a site.
        mechanism: The audit of the mechanism must be there, of every stage of the study; it must
            hold, and must have been able to see faults.
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
        max_auc: Upper end of the interval of every attack's AUC, by patient; that by the weights
            of a network must be there. The same attacks with phantoms, which know nobody, must
            keep to it on either side of 0.5: otherwise test and training patients differ so much
            that nothing can be said of leakage, as the difference may hide it.
        max_true_positive_rate: What the share of members named at 1 % false positives does not
            exceed, by the bootstrap and by Clopper and Pearson: of few members, none is no proof.
        min_copying_p: Generated images nearer to training patients than to others, with a smaller
            probability than this under chance, are taken for copies.
    """

    max_auc: Fraction = 0.6
    max_true_positive_rate: Fraction = 0.1
    min_copying_p: Fraction = 0.001


class ReceiptRules(_Settings):
    """What it may have cost.

    Attributes:
        max_epsilon: Of any site, over all its studies, as its last receipt states.
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
