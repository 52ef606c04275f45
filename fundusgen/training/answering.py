"""How a site answers a request: the one order that is safe.

    ledger -> policy -> replay? -> budget -> read patients -> reserve -> compute -> sign a receipt
           -> outbox -> commit -> release

Whatever goes wrong, what leaves is an `Answer` that the ledger holds or a `Refusal` in one word.
What is computed is the mechanism of the request's stage: DP-SGD (`local`) or a vote (`voting`).
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.code import code_hash
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
from fundusgen.federation.exchange import Answer, Refusal, Request
from fundusgen.federation.payload import from_payload, to_payload
from fundusgen.federation.weights import Weights, digest
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.events import Event, merged
from fundusgen.privacy.keys import data_fingerprint, signing_key
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.ledger_answers import Refuse, Replay, RequestConflict, answer_for
from fundusgen.privacy.noise import FastNoise, NoiseSource, SecureNoise
from fundusgen.privacy.outbox import Outbox
from fundusgen.privacy.policy import (
    Policy,
    RefusalReason,
    Refused,
    over_budget,
    require_allowed,
    require_approved,
)
from fundusgen.privacy.receipts import MAX_CHARACTERS, Receipt
from fundusgen.privacy.remarks import note_policy, note_refusal, note_replay
from fundusgen.site import SiteFolder, SiteSettings
from fundusgen.study import Stage, Study, parse_study
from fundusgen.training.device import quickest_device
from fundusgen.training.local import load_model, prepare_round, train_round
from fundusgen.training.mechanisms import planned_events, reply_bytes, round_event
from fundusgen.training.places import batch_that_holds
from fundusgen.training.poll import load_poll
from fundusgen.training.voting import cast_votes, prepare_vote

log = logging.getLogger("fundusgen.client")
# No study is near this long; parsing what a server made up should not take minutes.
MAX_STUDY_CHARACTERS = 1 << 20
# A study with a hundred thousand faults names each of them.
_MAX_LOGGED = 2000
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)

# A round with everything found to be right and nothing computed yet; calling it spends.
Mechanism = Callable[[], Weights]

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
    depends on patients' data in three words only, which `RefusalReason` names.
    Edge cases: a crash at any point leaves the reservation counted in full.

    Args:
        site: The site's folder.
        request: What the server asks.

    Raises:
        OSError: The disk fails in a way that no ledger error covers; the caller refuses.
    """
    try:
        with Ledger.open(site.ledger_file) as ledger:
            return _recorded(ledger, site, request)
    except FundusgenError as error:
        log.error("round %d refused: %s", request.round_number, str(error)[:_MAX_LOGGED])
        return Refusal(_word(error))


def _word(error: FundusgenError) -> RefusalReason:
    if isinstance(error, Refused):
        return error.reason
    return next((word for kind, word in _WORDS if isinstance(error, kind)), RefusalReason.FAILED)


def _recorded(ledger: Ledger, site: SiteFolder, request: Request) -> Answer:
    """Answer, and write a refusal into the ledger as long as that can be trusted."""
    try:
        return _answer(ledger, site, request)
    except FundusgenError as error:
        if isinstance(error, LedgerError) and not isinstance(error, RequestConflict):
            raise
        # Other errors' sentences may hold the name of an image; the policy's never do.
        said = str(error) if isinstance(error, Refused | RequestConflict) else ""
        note_refusal(
            ledger,
            _word(error),
            said,
            round_number=request.round_number,
            study_hash=request.study_hash if _DIGEST.fullmatch(request.study_hash) else "",
        )
        raise


def _answer(ledger: Ledger, site: SiteFolder, request: Request) -> Answer:
    started_s = time.monotonic()
    asked = _asked(site, request)
    outbox = Outbox(site.outbox)
    require_whole(ledger, outbox.requests(), request.known_receipts.get(asked.settings.name))
    note_policy(ledger, asked.policy)
    # Before anything is computed for it; an approval that was taken back ends replays as well.
    require_approved(asked.policy, asked.study)
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
        return _replay(ledger, outbox, asked, decision)
    event = round_event(asked.study, asked.stage, ledger.rows())
    _require_allowed(ledger, asked, event)
    _require_budget(ledger, asked, event)
    # All that can be wrong with the request or the data is found before anything is spent.
    mechanism, fingerprint = _prepared(site, asked, event)
    outbox.require_room(reply_bytes(asked.study, asked.stage) + MAX_CHARACTERS)
    reply, training_s = _spent(ledger, outbox, asked, event, mechanism, fingerprint)
    log.info(
        "round %d of %s answered in %.2f s, %.2f s of it computing: epsilon is %.3f of %.3f at "
        "delta %g",
        request.round_number, asked.study.study_id, time.monotonic() - started_s, training_s,
        reply.receipt.epsilon_total, asked.policy.max_epsilon, asked.policy.delta,
    )  # fmt: skip
    return reply


@dataclass(frozen=True)
class _Asked:
    """A request, and everything at the site that it is held against."""

    request: Request
    study: Study
    stage: Stage
    settings: SiteSettings
    policy: Policy
    key: ec.EllipticCurvePrivateKey
    code_hash: str


def _asked(site: SiteFolder, request: Request) -> _Asked:
    study = _study(request)
    return _Asked(
        request,
        study,
        next(stage for stage in study.stage_rounds if stage == request.stage),
        site.settings(),
        _policy(site),
        signing_key(site.keys),
        code_hash(),
    )


def _prepared(site: SiteFolder, asked: _Asked, event: Event) -> tuple[Mechanism, str]:
    """Load what the server sent and the patients and build the mechanism; also names the data."""
    study, settings = asked.study, asked.settings
    patients, content_digest = _patients(site, settings, study)
    noise: NoiseSource = SecureNoise() if study.privacy.noise == "secure" else FastNoise()
    return (
        _mechanism(site, asked, event, patients, noise),
        data_fingerprint(site.keys, content_digest),
    )


def _mechanism(
    site: SiteFolder,
    asked: _Asked,
    event: Event,
    patients: PatientDataset,
    noise: NoiseSource,
) -> Mechanism:
    study, sent, settings = asked.study, asked.request.weights, asked.settings
    device, mode = prepare_device(settings), settings.grad_sample_mode
    if asked.stage == "votes":
        poll = load_poll(study, sent)
        vote = prepare_vote(
            poll, patients, noise_multiplier=event.noise_multiplier, noise=noise, device=device
        )
        return lambda: cast_votes(vote)
    training = prepare_round(
        study,
        load_model(study, sent),
        patients,
        round_number=asked.request.round_number,
        noise_multiplier=event.noise_multiplier,
        declared_patients=settings.data.declared_patients,
        noise=noise,
        device=device,
        batch_patients=batch_that_holds(
            study, settings.batch_patients, mode=mode, device=device, kept=site.cache
        ),
        grad_sample_mode=mode,
    )
    return lambda: train_round(training)


def _spent(
    ledger: Ledger,
    outbox: Outbox,
    asked: _Asked,
    event: Event,
    mechanism: Mechanism,
    fingerprint: str,
) -> tuple[Answer, float]:
    """Reserve, compute, keep, commit and release; returns the answer and seconds of computing."""
    request, study, policy = asked.request, asked.study, asked.policy
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
        patients_declared=asked.settings.data.declared_patients,
        data_fingerprint=fingerprint,
        policy_hash=policy.policy_hash,
        code_hash=asked.code_hash,
    )
    started_s = time.monotonic()
    weights = mechanism()
    training_s = time.monotonic() - started_s
    reply = Answer(weights, _receipt(ledger, asked, event, digest(weights)))
    payload_digest = outbox.put(request.request_id, to_payload(reply))
    ledger.commit(event_id, event, payload_digest, receipt_digest=reply.receipt.digest)
    ledger.release(event_id, payload_digest)
    return reply, training_s


def _receipt(ledger: Ledger, asked: _Asked, event: Event, payload_digest: str) -> Receipt:
    """State what is about to be released; nothing in it is chosen by the data."""
    last, spent = ledger.last_receipt, merged(ledger.events())
    return Receipt(
        site=asked.settings.name,
        study_id=asked.study.study_id,
        study_hash=asked.request.study_hash,
        round_number=asked.request.round_number,
        stage=asked.request.stage,
        request_id=asked.request.request_id,
        event=event,
        spent=spent,
        epsilon_total=epsilon(spent, asked.policy.delta),
        delta=asked.policy.delta,
        declared_patients=asked.settings.data.declared_patients,
        noise=asked.study.privacy.noise,
        payload_digest=payload_digest,
        policy_hash=asked.policy.policy_hash,
        code_hash=asked.code_hash,
        sequence=last.sequence + 1,
        previous=last.digest,
    ).signed(asked.key)


def _policy(site: SiteFolder) -> Policy:
    try:
        return site.policy()
    except SiteError as error:
        raise Refused(RefusalReason.POLICY_UNREADABLE, str(error)) from error


def _study(request: Request) -> Study:
    """The study that came with the request, if it is the one the request names."""
    _require_json(request.study)
    study = parse_study(request.study, source="the study in the request")
    if study.study_hash != request.study_hash or request.stage not in study.stage_rounds:
        raise Refused(
            RefusalReason.STUDY_MISMATCH,
            f"The request names study {request.study_hash[:12]!r}, stage {request.stage[:12]!r}",
            expected=f"study {study.study_hash[:12]}, which is the text that came with it",
        )
    rounds = study.stage_rounds[request.stage]
    if request.round_number not in rounds:
        raise Refused(
            RefusalReason.STUDY_MISMATCH,
            f"Round {request.round_number} was asked for, of stage {request.stage}",
            expected=f"a round from {rounds[0]} to {rounds[-1]}",
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


def require_whole(ledger: Ledger, replies: Iterable[str], known_receipt: str | None = None) -> None:
    """Refuse to go on with a ledger that does not know all that went out under it.

    A reply is put into the outbox after its reservation, and a server holds a receipt only of
    what was released. If the ledger lacks either, it was lost or an older one was put back, with
    its head or with the whole folder, and what was spent since is forgotten.

    Args:
        ledger: The site's ledger.
        replies: Names of the requests whose replies are in the outbox.
        known_receipt: Digest of the last receipt that a server holds, where one says so.

    Raises:
        LedgerError: The ledger has forgotten something.
    """
    unknown = [request for request in replies if ledger.find(request) is None]
    if unknown:
        raise LedgerError(
            f"The outbox holds replies to {len(unknown)} requests that the ledger does not know",
            expected="the ledger under which they were made",
            remedy="Restore the latest ledger, or repair it with: fundusgen site ledger repair",
        )
    if known_receipt is not None and not ledger.knows_receipt(known_receipt):
        raise LedgerError(
            f"The server says that it holds receipt {known_receipt[:12]} of this site, which the "
            "ledger does not know",
            expected="the ledger under which it was signed",
            remedy="If the site was restored from a backup, ask the study lead for this site's "
            "receipts and use: fundusgen site ledger repair --receipts DIR",
        )


def _replay(ledger: Ledger, outbox: Outbox, asked: _Asked, decision: Replay) -> Answer:
    """Give the stored answer again; one that has not gone out yet must still be allowed."""
    row, policy = decision.row, asked.policy
    payload = outbox.get(row.request_id, row.payload_digest)
    if payload is None:
        raise LedgerError(
            f"The ledger holds an answer to round {row.round_number} that the outbox lacks",
            expected="the bytes that were released",
            remedy="Restore the outbox; the round is not trained twice",
        )
    if row.state != "released":
        _require_allowed(ledger, asked, row.event)
        total = policy.total_epsilon(ledger.events())
        if not total <= policy.max_epsilon:
            raise Refused(
                RefusalReason.BUDGET_EXHAUSTED,
                f"Epsilon is {total:.3f} at delta {policy.delta:g} with this unreleased answer",
                expected=f"at most {policy.max_epsilon:g} by this site's policy",
            )
        ledger.release(row.event_id, row.payload_digest)
    else:
        note_replay(ledger, row)
    log.info("round %d was answered before: the same bytes again", row.round_number)
    return from_payload(payload)


def _require_allowed(ledger: Ledger, asked: _Asked, event: Event) -> None:
    """Refuse what the policy does not allow: also of a later stage, before the first is spent."""
    study, rows = asked.study, ledger.rows()
    events = [event, *(round_event(study, stage, rows) for stage in study.stage_rounds)]
    require_allowed(
        asked.policy,
        study,
        noise_multiplier=min(one.noise_multiplier for one in events),
        declared_patients=asked.settings.data.declared_patients,
        reply_bytes=max(reply_bytes(study, stage) for stage in study.stage_rounds),
        code_hash=asked.code_hash,
    )


def _require_budget(ledger: Ledger, asked: _Asked, event: Event) -> None:
    """Refuse a round that would exceed the site's cap, or a study that would on its first round."""
    begun = any(row.study_hash == asked.study.study_hash for row in ledger.rows())
    planned = (event,) if begun else planned_events(asked.study)
    if (refused := over_budget(asked.policy, ledger.events(), *planned)) is not None:
        raise refused


def _patients(site: SiteFolder, settings: SiteSettings, study: Study) -> tuple[PatientDataset, str]:
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
    return patients, loaded.content_digest


def prepare_device(settings: SiteSettings) -> torch.device:
    """Set the number of threads and choose the device, as `site.yaml` says.

    Raises:
        SiteError: There is no such device here.
    """
    # Said in either case: until it is said, libraries may choose anew for every product.
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    # Of two kernels, the one that is faster now may round differently from the one before.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if settings.device == "auto":
        return quickest_device()
    try:
        device = torch.device(settings.device)
        # What only pretends to compute (`meta`) fails here, and not after the reservation.
        torch.ones(1, device=device).item()
    # Torch without CUDA says so by an assertion.
    except (RuntimeError, AssertionError) as error:
        raise SiteError(
            f"The device '{settings.device}' cannot be used: {str(error).splitlines()[0]}",
            expected="a torch device of this machine, or auto",
            remedy="Correct `device` in site.yaml",
        ) from error
    return device
