"""What a site allows: read from its `policy.yaml`, checked before any image is.

Fails closed: a policy that cannot be read, has a key that is not known or a value of another type,
allows nothing; neither does one that names no study. `fundusgen site approve` adds a study to it.
"""

import hashlib
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fundusgen.errors import FundusgenError, PrivacyError, SiteError
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import Event
from fundusgen.privacy.ledger_rows import canonical_json
from fundusgen.settings_file import read_settings
from fundusgen.study import ModelKind, Study, describe


class RefusalReason(StrEnum):
    """Everything a site ever says when it says no. No word depends on a patient's data.

    Three words need care, since what is behind them happened with data in hand: `no-data` tells
    that the manifest cannot be read at all, or that no image of the site can be used;
    `site-misconfigured` can also mean that its disk is full, or that an image was being written;
    `failed` that its machine is broken. None depends on one patient more or less at a site with
    two usable patients and room on its disk, nor on what a study asks for: a study of a condition
    that nobody has is answered with noise. What is left is in the limits of the guarantee.
    """

    REQUEST_MALFORMED = "request-malformed"
    STUDY_MISMATCH = "study-mismatch"
    POLICY_UNREADABLE = "policy-unreadable"
    STUDY_NOT_APPROVED = "study-not-approved"
    CODE_NOT_APPROVED = "code-not-approved"
    MODEL_NOT_ALLOWED = "model-not-allowed"
    TOO_MANY_ROUNDS = "too-many-rounds"
    REPLY_TOO_LARGE = "reply-too-large"
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

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the word when the error crosses a process boundary."""
        return (_rebuild, (self.reason, self.found, self.expected, self.remedy))


def _rebuild(reason: RefusalReason, found: str, expected: str, remedy: str) -> Refused:
    return Refused(reason, found, expected=expected, remedy=remedy)


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Release(BaseModel):
    """What may leave the site in one round.

    Attributes:
        max_bytes_per_round: Size of the arrays of one reply.
        metrics: Figures about training that the server may have, each by a mechanism of its own.
            None has one so far: all of them stay at the site, and any name is an error.
    """

    model_config = _STRICT

    max_bytes_per_round: Annotated[int, Field(ge=1)] = 64 * 1024 * 1024
    metrics: Annotated[tuple[str, ...], Field(max_length=0)] = ()


class Policy(BaseModel):
    """What a site allows.

    Attributes:
        max_epsilon: Total over all events of all studies, at `delta`, that may not be exceeded.
        delta: The delta at which the site counts.
        composition: How the total is counted. `fixed`: the tight composition, which holds when
            nobody chooses later studies by what earlier ones gave. `adaptive`: a privacy filter,
            which holds whatever is chosen; needs more noise or fewer steps for the same cap.
        studies: Hashes of the studies that a person here has approved; no other is answered.
        code: Hashes of the code that a person here has approved, or `any`.
        models: Families of models that may be trained here.
        max_rounds_per_study: Longest study that is answered.
        min_noise_multiplier: Smallest noise of any mechanism.
        min_patients: Smallest declared number of patients with which the site takes part.
        noise: Weakest noise generator that is accepted; `fast` is for simulations.
        release: What may leave in one round.
    """

    model_config = _STRICT

    max_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    delta: Annotated[float, Field(ge=1e-12, le=1e-2)]
    composition: Literal["fixed", "adaptive"] = "fixed"
    studies: tuple[Digest, ...] = ()
    code: tuple[Digest, ...] | Literal["any"] = ()
    models: tuple[ModelKind, ...] = ("vae", "gan")
    max_rounds_per_study: Annotated[int, Field(ge=1)] = 1000
    min_noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.3
    min_patients: Annotated[int, Field(ge=1)] = 1
    noise: Literal["secure", "fast"] = "secure"
    release: Release = Release()

    def to_json(self) -> str:
        """Canonical JSON of every setting, the form that the ledger keeps."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def policy_hash(self) -> str:
        """SHA-256 of `to_json`, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def total_epsilon(self, events: Iterable[Event]) -> float:
        """Count what events cost by this policy's rule, at its delta.

        Guarantee: `composition: fixed`, as `accounting.epsilon`; `adaptive`, as
        `privacy_filter.filter_epsilon`, so that going on while this is at most `max_epsilon` is
        a privacy filter.
        Edge cases: 0.0 for no events.
        """
        if self.composition == "adaptive":
            from fundusgen.privacy.privacy_filter import filter_epsilon

            return filter_epsilon(events, max_epsilon=self.max_epsilon, delta=self.delta)
        return epsilon(events, self.delta)


def load_policy(path: Path) -> Policy:
    """Read a site's policy.

    Guarantee: every setting is of its own type: no text is read as a number, no `yes` as 1.
    Edge cases: a setting that is absent has its default, which allows no study.

    Raises:
        SiteError: It cannot be read as a whole; nothing is allowed then.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(str(path), str(error)) from error
    return parse_policy(text, source=str(path))


def parse_policy(text: str, *, source: str) -> Policy:
    """Read a policy from YAML or JSON text; `source` names it in errors.

    Guarantee: as `load_policy`.
    Edge cases: as `load_policy`.

    Raises:
        SiteError: The text is no policy.
    """
    try:
        return read_settings(text, Policy)
    except ValidationError as error:
        raise _unreadable(source, describe(error, Policy)) from error
    except ValueError as error:
        raise _unreadable(source, " ".join(str(error).split())) from error


def objections(
    policy: Policy,
    study: Study,
    *,
    noise_multiplier: float,
    declared_patients: int,
    reply_bytes: int,
    code_hash: str,
) -> list[Refused]:
    """Say everything about a study that a policy does not allow, but for the budget.

    Guarantee: depends on the policy, the study and public declarations only; a study that is
    answered with no objection here is within every limit of the policy but the cap.
    Edge cases: a noise multiplier that is not a number is an objection.

    Args:
        policy: The site's policy.
        study: The study.
        noise_multiplier: The least of its mechanisms.
        declared_patients: As the site declares publicly.
        reply_bytes: Size of the arrays of one reply.
        code_hash: Of the code that runs here.
    """
    found: list[Refused] = []
    try:
        require_approved(policy, study)
    except Refused as refused:
        found.append(refused)
    if policy.code != "any" and code_hash not in policy.code:
        found.append(
            Refused(
                RefusalReason.CODE_NOT_APPROVED,
                f"The code that is installed here ({code_hash[:12]}) is not approved",
                expected="its hash in the policy's list of code",
                remedy="Review the version and approve it with: fundusgen site approve-code DIR",
            )
        )
    if study.model.kind not in policy.models:
        found.append(
            Refused(
                RefusalReason.MODEL_NOT_ALLOWED,
                f"The study trains a {study.model.kind}",
                expected=f"one of {', '.join(policy.models) or 'no model at all'}",
            )
        )
    if study.total_rounds > policy.max_rounds_per_study:
        found.append(
            Refused(
                RefusalReason.TOO_MANY_ROUNDS,
                f"The study has {study.total_rounds} rounds",
                expected=f"at most {policy.max_rounds_per_study} by this site's policy",
            )
        )
    if not noise_multiplier >= policy.min_noise_multiplier:
        found.append(
            Refused(
                RefusalReason.NOISE_TOO_SMALL,
                f"The study needs a noise multiplier of {noise_multiplier:.3f}",
                expected=f"at least {policy.min_noise_multiplier} by this site's policy",
            )
        )
    if policy.noise == "secure" and study.privacy.noise != "secure":
        found.append(
            Refused(
                RefusalReason.NOISE_NOT_SECURE,
                f"The study asks for '{study.privacy.noise}' noise",
                expected="noise from a cryptographic generator",
                remedy="Set privacy.noise to secure in the study",
            )
        )
    if declared_patients < policy.min_patients:
        found.append(
            Refused(
                RefusalReason.TOO_FEW_PATIENTS,
                f"The site declares {declared_patients} patients",
                expected=f"at least {policy.min_patients} by its policy",
            )
        )
    if reply_bytes > policy.release.max_bytes_per_round:
        found.append(
            Refused(
                RefusalReason.REPLY_TOO_LARGE,
                f"A reply of the study has {reply_bytes:,} bytes",
                expected=f"at most {policy.release.max_bytes_per_round:,} by this site's policy",
            )
        )
    return found


def require_approved(policy: Policy, study: Study) -> None:
    """Refuse a study that no person here has approved.

    Guarantee: returns only if the policy lists the study's hash now.
    Edge cases: none.

    Raises:
        Refused: It does not.
    """
    if study.study_hash not in policy.studies:
        raise Refused(
            RefusalReason.STUDY_NOT_APPROVED,
            f"Nobody has approved study {study.study_id} ({study.study_hash[:12]}) here",
            expected="its hash in the policy's list of studies",
            remedy="Look at it and approve it with: fundusgen site approve STUDY.yaml --site DIR",
        )


def require_allowed(
    policy: Policy,
    study: Study,
    *,
    noise_multiplier: float,
    declared_patients: int,
    reply_bytes: int,
    code_hash: str,
) -> None:
    """Refuse what the policy does not allow, before any image is read.

    Guarantee: returns only if there are no `objections`.
    Edge cases: of several, the first is the one that leaves.

    Raises:
        Refused: With the reason that leaves the site.
    """
    found = objections(
        policy,
        study,
        noise_multiplier=noise_multiplier,
        declared_patients=declared_patients,
        reply_bytes=reply_bytes,
        code_hash=code_hash,
    )
    if found:
        raise found[0]


def over_budget(policy: Policy, spent: Iterable[Event], *planned: Event) -> Refused | None:
    """Say whether what is planned would bring the site above its cap.

    Guarantee: None only if everything spent and all planned events together cost at most
    `max_epsilon` by the policy's own rule.
    Edge cases: a total that cannot be computed raises; it is not a yes.

    Raises:
        AccountingError: No sound total was found.
    """
    total = policy.total_epsilon([*spent, *planned])
    if total <= policy.max_epsilon:
        return None
    steps = sum(event.steps for event in planned)
    return Refused(
        RefusalReason.BUDGET_EXHAUSTED,
        f"{steps} steps would bring epsilon to {total:.3f} at delta {policy.delta:g}",
        expected=f"at most {policy.max_epsilon:g} by this site's policy",
    )


def _unreadable(source: str, found: str) -> FundusgenError:
    return SiteError(
        f"The policy {source} cannot be used: {found}",
        expected="a policy.yaml with max_epsilon, delta and known keys only",
        remedy="Correct it; until then the site refuses every study",
    )
