"""How a site answers a request: the one order that is safe.

    policy -> replay? -> budget -> read patients -> reserve -> train -> outbox -> commit -> release

Whatever goes wrong, what leaves is an `Answer` that the ledger holds or a `Refusal` in one word.
The noise multiplier is found before the first step and kept for the study, by its first event.
"""

import json
import logging
import time
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from fundusgen.data.conditions import CONDITIONS
from fundusgen.data.manifest import ManifestSettings
from fundusgen.data.patients import PatientDataset, load_patients
from fundusgen.data.problems import left_out_count
from fundusgen.errors import (
    AccountingError,
    DataError,
    FederationError,
    FundusgenError,
    LedgerError,
    ModelError,
    SiteError,
    StudyError,
)
from fundusgen.federation.exchange import Answer, Receipt, Refusal, Request
from fundusgen.federation.payload import from_payload, to_payload
from fundusgen.federation.weights import digest
from fundusgen.privacy.accounting import calibrate_noise_multiplier, epsilon
from fundusgen.privacy.events import Event
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.ledger_answers import Refuse, Replay, RequestConflict, answer_for
from fundusgen.privacy.ledger_rows import LedgerRow
from fundusgen.privacy.noise import FastNoise, SecureNoise
from fundusgen.privacy.outbox import Outbox
from fundusgen.privacy.policy import Policy, RefusalReason, Refused, require_allowed
from fundusgen.site import SiteFolder, SiteSettings
from fundusgen.study import Study, parse_study
from fundusgen.training.local import PreparedRound, load_model, prepare_round, train_round

log = logging.getLogger("fundusgen.client")
# No study is near this long; parsing what a server made up should not take minutes.
MAX_STUDY_CHARACTERS = 1 << 20

# What an error says to the server, by where it comes from; the rest is `failed`.
_WORDS: tuple[tuple[type[FundusgenError], RefusalReason], ...] = (
    (RequestConflict, RefusalReason.ROUND_CONFLICT),
    (LedgerError, RefusalReason.LEDGER_UNUSABLE),
    (AccountingError, RefusalReason.BUDGET_EXHAUSTED),
    (DataError, RefusalReason.NO_DATA),
    (StudyError, RefusalReason.STUDY_MISMATCH),
    (ModelError, RefusalReason.STUDY_MISMATCH),
    (FederationError, RefusalReason.REQUEST_MALFORMED),
    (SiteError, RefusalReason.SITE_MISCONFIGURED),
)


def answer(site: SiteFolder, request: Request) -> Answer | Refusal:
    """Answer a request, or refuse it in one word.

    Guarantee: an answer's arrays are the output of the event that the ledger holds for it, are
    made once, and are sent with the same bytes however often they are asked for. A refusal
    depends on patients' data in two words only, which `RefusalReason` names.
    Edge cases: a crash at any point leaves the reservation counted in full.

    Args:
        site: The site's folder.
        request: What the server asks.

    Raises:
        OSError: The disk fails in a way that no ledger error covers; the caller refuses.
    """
    try:
        return _answer(site, request)
    except Refused as refused:
        log.warning("round %d refused: %s", request.round_number, refused)
        return Refusal(refused.reason)
    except FundusgenError as error:
        log.error("round %d refused: %s", request.round_number, error)
        return Refusal(_word(error))


def _word(error: FundusgenError) -> RefusalReason:
    return next((word for kind, word in _WORDS if isinstance(error, kind)), RefusalReason.FAILED)


def _answer(site: SiteFolder, request: Request) -> Answer:
    started_s = time.monotonic()
    settings, policy, study = site.settings(), _policy(site), _study(request)
    outbox = Outbox(site.outbox)
    with Ledger.open(site.ledger_file) as ledger:
        _require_whole(ledger, outbox)
        decision = answer_for(
            ledger,
            study_hash=request.study_hash,
            round_number=request.round_number,
            stage=request.stage,
            request_id=request.request_id,
            content_digest=request.content_digest,
        )
        if isinstance(decision, Refuse):
            raise decision.as_error()
        if isinstance(decision, Replay):
            return _replay(ledger, outbox, policy, decision, request)
        event = _event(study, request, ledger.rows())
        require_allowed(
            policy,
            noise_multiplier=event.noise_multiplier,
            noise=study.privacy.noise,
            declared_patients=settings.data.declared_patients,
        )
        _require_budget(ledger, policy, study, event)
        # All that can be wrong with the request or the data is found before anything is spent.
        prepared = _prepared(site, settings, study, request, event)
        reply, training_s = _spent(
            ledger, outbox, settings, policy, study, request, event, prepared
        )
    log.info(
        "round %d of %s answered in %.2f s, %.2f s of it training: epsilon is %.3f of %.3f at "
        "delta %g",
        request.round_number, study.study_id, time.monotonic() - started_s, training_s,
        reply.receipt.epsilon_total, policy.max_epsilon, policy.delta,
    )  # fmt: skip
    return reply


def _prepared(
    site: SiteFolder, settings: SiteSettings, study: Study, request: Request, event: Event
) -> PreparedRound:
    """Load model and patients, and build the mechanism."""
    return prepare_round(
        study,
        load_model(study, request.weights),
        _patients(site, settings, study),
        round_number=request.round_number,
        noise_multiplier=event.noise_multiplier,
        declared_patients=settings.data.declared_patients,
        noise=SecureNoise() if study.privacy.noise == "secure" else FastNoise(),
        device=prepare_device(settings),
        batch_patients=settings.batch_patients,
    )


def _spent(
    ledger: Ledger,
    outbox: Outbox,
    settings: SiteSettings,
    policy: Policy,
    study: Study,
    request: Request,
    event: Event,
    prepared: PreparedRound,
) -> tuple[Answer, float]:
    """Reserve, train, keep, commit and release; returns the answer and seconds of training."""
    event_id = ledger.reserve(
        study_id=study.study_id,
        study_hash=request.study_hash,
        round_number=request.round_number,
        stage=request.stage,
        request_id=request.request_id,
        content_digest=request.content_digest,
        event=event,
        delta=policy.delta,
        noise_kind=study.privacy.noise,
        patients_declared=settings.data.declared_patients,
    )
    started_s = time.monotonic()
    weights = train_round(prepared)
    training_s = time.monotonic() - started_s
    receipt = Receipt(
        site=settings.name,
        study_hash=request.study_hash,
        round_number=request.round_number,
        request_id=request.request_id,
        event=event.to_json(),
        epsilon_total=epsilon(ledger.events(), policy.delta),
        delta=policy.delta,
        declared_patients=settings.data.declared_patients,
        noise=study.privacy.noise,
        payload_digest=digest(weights),
    )
    reply = Answer(weights, receipt)
    payload_digest = outbox.put(request.request_id, to_payload(reply))
    ledger.commit(event_id, event, payload_digest)
    ledger.release(event_id, payload_digest)
    return reply, training_s


def _policy(site: SiteFolder) -> Policy:
    try:
        return site.policy()
    except SiteError as error:
        raise Refused(RefusalReason.POLICY_UNREADABLE, str(error)) from error


def _study(request: Request) -> Study:
    """The study that came with the request, if it is the one the request names."""
    _require_json(request.study)
    study = parse_study(request.study, source="the study in the request")
    if study.study_hash != request.study_hash or request.stage != "dpsgd":
        raise Refused(
            RefusalReason.STUDY_MISMATCH,
            f"The request names study {request.study_hash[:12]!r}, stage {request.stage[:12]!r}",
            expected=f"study {study.study_hash[:12]}, which is the text that came with it",
        )
    if request.round_number > study.federation.rounds:
        raise Refused(
            RefusalReason.STUDY_MISMATCH,
            f"Round {request.round_number} was asked for",
            expected=f"at most the study's {study.federation.rounds} rounds",
        )
    return study


def _require_json(text: str) -> None:
    """Refuse a study in anything but JSON: a few lines of YAML can unfold to gigabytes."""
    try:
        plain = len(text) <= MAX_STUDY_CHARACTERS and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        plain = False
    if not plain:
        raise Refused(
            RefusalReason.STUDY_MISMATCH,
            "The study in the request is no JSON object",
            expected=f"a study as JSON of at most {MAX_STUDY_CHARACTERS} characters",
        )


def _require_whole(ledger: Ledger, outbox: Outbox) -> None:
    """Refuse to go on with a ledger that does not know all replies of the outbox.

    A reply is put there after its reservation. If the ledger lacks it, the ledger was lost or an
    older one was put back, together with its head, and what was spent since is forgotten.
    """
    unknown = [request for request in outbox.requests() if ledger.find(request) is None]
    if unknown:
        raise LedgerError(
            f"The outbox holds replies to {len(unknown)} requests that the ledger does not know",
            expected="the ledger under which they were made",
            remedy="Restore the ledger: without it, what was spent would be forgotten",
        )


def _replay(
    ledger: Ledger, outbox: Outbox, policy: Policy, decision: Replay, request: Request
) -> Answer:
    """Give the stored answer again; one that has not gone out yet must still be allowed."""
    payload = outbox.get(decision.row.request_id, decision.row.payload_digest)
    if payload is None:
        raise LedgerError(
            f"The ledger holds an answer to round {request.round_number} that the outbox lacks",
            expected="the bytes that were released",
            remedy="Restore the outbox; the round is not trained twice",
        )
    if decision.row.state != "released":
        total = ledger.epsilon(policy.delta)
        if not total <= policy.max_epsilon:
            raise Refused(
                RefusalReason.BUDGET_EXHAUSTED,
                f"Epsilon is {total:.3f} at delta {policy.delta:g} with this unreleased answer",
                expected=f"at most {policy.max_epsilon:g} by this site's policy",
            )
        ledger.release(decision.row.event_id, decision.row.payload_digest)
    log.info("round %d was answered before: the same bytes again", request.round_number)
    return from_payload(payload)


def _event(study: Study, request: Request, rows: Sequence[LedgerRow]) -> Event:
    """The event of one round, with the noise of the study's first event where there is one."""
    stage = study.stages.dpsgd
    earlier = [
        row.event.noise_multiplier
        for row in rows
        if row.study_hash == request.study_hash and row.stage == request.stage
    ]
    noise_multiplier = earlier[0] if earlier else noise_for(study)
    return Event("subsampled_gaussian", noise_multiplier, stage.sample_rate, stage.steps_per_round)


def noise_for(study: Study) -> float:
    """Noise multiplier with which all rounds of a study cost at most its target epsilon.

    Guarantee: epsilon of `dpsgd_steps` steps at the study's sample rate and target delta is at
    most `target_epsilon` by every accountant that is installed.
    Edge cases: a target that no noise can meet raises.

    Raises:
        AccountingError: No noise multiplier meets the target.
    """
    privacy = study.privacy
    return _calibrated(
        privacy.target_epsilon,
        privacy.target_delta,
        study.stages.dpsgd.sample_rate,
        study.dpsgd_steps,
    )


@lru_cache(maxsize=64)
def _calibrated(target_epsilon: float, target_delta: float, rate: float, steps: int) -> float:
    return calibrate_noise_multiplier(
        target_epsilon=target_epsilon, target_delta=target_delta, sample_rate=rate, steps=steps
    )


def _require_budget(ledger: Ledger, policy: Policy, study: Study, event: Event) -> None:
    """Refuse a round that would exceed the site's cap, or a study that would on its first round."""
    rows = ledger.rows()
    begun = any(row.study_hash == study.study_hash for row in rows)
    steps = event.steps if begun else study.dpsgd_steps
    planned = Event(event.kind, event.noise_multiplier, event.sample_rate, steps)
    total = epsilon([*ledger.events(), planned], policy.delta)
    if not total <= policy.max_epsilon:
        what = "This round" if begun else "The study"
        raise Refused(
            RefusalReason.BUDGET_EXHAUSTED,
            f"{what} would bring epsilon to {total:.3f} at delta {policy.delta:g}",
            expected=f"at most {policy.max_epsilon:g} by this site's policy",
        )


def _patients(site: SiteFolder, settings: SiteSettings, study: Study) -> PatientDataset:
    # Whether the site has a patient with some condition is as private as anything: a study of a
    # condition that nobody here has is answered with noise, not with a word. So all conditions
    # are loaded, and the study's are picked here, be there any or not.
    loaded = load_patients(
        ManifestSettings.of(settings.data), study.image_size, CONDITIONS, site.cache
    )
    place_of = np.array(
        [study.conditions.index(name) if name in study.conditions else -1 for name in CONDITIONS]
    )
    patients = loaded.dataset.subset(
        np.flatnonzero(place_of[loaded.dataset.conditions_N] >= 0).astype(np.int64)
    )
    patients.conditions_N = place_of[patients.conditions_N].astype(np.int64)
    left_out = left_out_count(loaded.problems)
    log.info(
        "%d patients, %d images; left out: %d rows with problems, %d images of other conditions;"
        " %d warnings",
        len(patients), patients.image_count, left_out,
        loaded.dataset.image_count - patients.image_count, len(loaded.problems) - left_out,
    )  # fmt: skip
    return patients


def prepare_device(settings: SiteSettings) -> torch.device:
    """Set the number of threads and choose the device, as `site.yaml` says.

    Raises:
        SiteError: There is no such device here.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(settings.device)
        torch.empty(1, device=device)
    # Torch without CUDA says so by an assertion.
    except (RuntimeError, AssertionError) as error:
        raise SiteError(
            f"The device '{settings.device}' cannot be used: {str(error).splitlines()[0]}",
            expected="a torch device of this machine, or auto",
            remedy="Correct `device` in site.yaml",
        ) from error
    return device
