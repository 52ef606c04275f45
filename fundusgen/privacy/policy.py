"""What a site allows: read from its `policy.yaml`, checked before any image is.

Fails closed: a policy that cannot be read, or has a key that is not known, allows nothing.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from fundusgen.errors import PrivacyError, SiteError
from fundusgen.study import UniqueKeyLoader


class RefusalReason(StrEnum):
    """Everything a site ever says when it says no. No word depends on a patient's data.

    Two words need care, since what is behind them happened with data in hand: `no-data` tells
    that the manifest or all images of the site cannot be used, and `failed` that its machine is
    broken. Neither depends on one patient more or less at a site with two usable patients, nor
    on what a study asks for: a study of a condition that nobody has is answered with noise.
    """

    REQUEST_MALFORMED = "request-malformed"
    STUDY_MISMATCH = "study-mismatch"
    POLICY_UNREADABLE = "policy-unreadable"
    BUDGET_EXHAUSTED = "budget-exhausted"
    NOISE_TOO_SMALL = "noise-too-small"
    NOISE_NOT_SECURE = "noise-not-secure"
    TOO_FEW_PATIENTS = "too-few-patients"
    ROUND_CONFLICT = "round-conflict"
    LEDGER_UNUSABLE = "ledger-unusable"
    SITE_MISCONFIGURED = "site-misconfigured"
    NO_DATA = "no-data"
    FAILED = "failed"


class Refused(PrivacyError):
    """The site says no.

    Attributes:
        reason: The word that leaves the site; the rest of the error stays.
    """

    def __init__(
        self, reason: RefusalReason, found: str, *, expected: str = "", remedy: str = ""
    ) -> None:
        """Keep the word apart from what the operator reads."""
        super().__init__(found, expected=expected, remedy=remedy)
        self.reason = reason


class Policy(BaseModel):
    """What a site allows.

    Attributes:
        max_epsilon: Total over all events of all studies, at `delta`, that may not be exceeded.
        delta: The delta at which the site counts.
        min_noise_multiplier: Smallest noise of any mechanism.
        min_patients: Smallest declared number of patients with which the site takes part.
        noise: Weakest noise generator that is accepted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0, le=1e-2)]
    min_noise_multiplier: Annotated[float, Field(gt=0)] = 0.3
    min_patients: Annotated[int, Field(ge=1)] = 1
    noise: Literal["secure", "fast"] = "secure"


def load_policy(path: Path) -> Policy:
    """Read a site's policy.

    Raises:
        SiteError: It cannot be read as a whole; nothing is allowed then.
    """
    try:
        text = path.read_text(encoding="utf-8")
        # A limit that is given twice is no limit that anybody can rely on.
        return Policy.model_validate(yaml.load(text, Loader=UniqueKeyLoader))  # noqa: S506
    # A value such as the date 2026-13-45 is a ValueError; so is what pydantic raises.
    except (OSError, ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise SiteError(
            f"The policy {path} cannot be read: {' '.join(str(error).split())}",
            expected="a policy.yaml with max_epsilon, delta and known keys only",
            remedy="Correct it; until then the site refuses every study",
        ) from error


def require_allowed(
    policy: Policy, *, noise_multiplier: float, noise: str, declared_patients: int
) -> None:
    """Refuse what the policy does not allow, before any image is read.

    Guarantee: depends on the policy, the study and public declarations only.
    Edge cases: a noise multiplier that is not a number is refused.

    Raises:
        Refused: With the reason that leaves the site.
    """
    if not noise_multiplier >= policy.min_noise_multiplier:
        raise Refused(
            RefusalReason.NOISE_TOO_SMALL,
            f"The study needs a noise multiplier of {noise_multiplier:.3f}",
            expected=f"at least {policy.min_noise_multiplier} by this site's policy",
        )
    if policy.noise == "secure" and noise != "secure":
        raise Refused(
            RefusalReason.NOISE_NOT_SECURE,
            f"The study asks for '{noise}' noise",
            expected="noise from a cryptographic generator",
            remedy="Set privacy.noise to secure in the study",
        )
    if declared_patients < policy.min_patients:
        raise Refused(
            RefusalReason.TOO_FEW_PATIENTS,
            f"The site declares {declared_patients} patients",
            expected=f"at least {policy.min_patients} by its policy",
        )
