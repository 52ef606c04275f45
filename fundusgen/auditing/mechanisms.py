"""The mechanisms under audit: run as a site runs them, on canaries instead of patients.

The second part of an audit. Nothing of a mechanism is written anew here: samples, gradients,
clipping, steps and noise are those of `PatientSGD`, ballots and tallies those of `votes`, what
patients state with their ballots that of `moments`, and each round is reserved in a ledger on the
disk before it runs, from which the claim is read afterwards as a site reads it for its receipts.
What this module adds is what lies outside: a model whose gradients are known, an optimizer that
moves weights by exactly what is released, and a note of which patients a step loaded. The loop over
a round's steps is its own: that a site takes no more of them than it reserved, tests of `training`
hold.

Axes: T releases, M canaries, P patients who took part, K images of a patient, E entries of what a
vote releases.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import hadamard
from torch import Tensor

from fundusgen.auditing.canaries import Booleans, Floats, Observation
from fundusgen.auditing.trade_offs import GaussianFamily
from fundusgen.errors import PrivacyError
from fundusgen.privacy.accounting import epsilon
from fundusgen.privacy.dpsgd import DPSGDSettings, PatientSGD
from fundusgen.privacy.events import Event, merged
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.moments import joint, statement
from fundusgen.privacy.noise import NoiseSource
from fundusgen.privacy.sampling import PoissonPatients
from fundusgen.privacy.votes import VoteSettings, ballot, noisy_tally

# A canary's gradient is so much longer than what is allowed: a step that does not clip shows it.
_LOUDNESS = 10.0
# A canary has so many images: a step that counts images and not patients shows it.
_IMAGES = 3
_PHYSICAL_BATCH = 64
# With so many values of 1, a statement asks for more than its bound, and is cut to it.
_LEAST_VALUES = 512
_CONTENT = hashlib.sha256(b"canaries").hexdigest()


@dataclass(frozen=True)
class AuditedMechanism:
    """What is audited: a stage of a study with its public numbers.

    Attributes:
        name: What a report calls it.
        stage: Whose code runs.
        event: Of one round, as it is reserved.
        rounds: How many there are, at least 1.
        max_grad_norm: Bound on a patient's gradient; of DP-SGD alone.
        statement_share: Of a ballot, for what patients state with it; of votes alone.

    Raises:
        PrivacyError: The event is not of this stage, or there are no rounds.
    """

    name: str
    stage: Literal["dpsgd", "votes"]
    event: Event
    rounds: int
    max_grad_norm: float = 1.0
    statement_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no site would reserve."""
        kind = "gaussian" if self.stage == "votes" else "subsampled_gaussian"
        if self.event.kind != kind or self.rounds < 1 or self.event.steps < 1:
            raise PrivacyError(
                f"an audit of {self.rounds} rounds of {self.stage}, each {self.event}",
                expected=f"at least one round, of at least one step of {kind}",
            )

    @property
    def planned(self) -> Event:
        """All rounds as one event."""
        return replace(self.event, steps=self.rounds * self.event.steps)

    @property
    def family(self) -> GaussianFamily:
        """The mechanisms of this kind with any noise."""
        return GaussianFamily(self.event.sample_rate, self.planned.steps)


# What is audited without a study: DP-SGD with every patient in every step, DP-SGD on Poisson
# samples, and votes, by themselves and with what patients state beside them, each of epsilon 8.03
# at `STANDARD_DELTA`.
STANDARD_DELTA = 1e-5
STANDARD = (
    AuditedMechanism(
        "DP-SGD, every patient",
        "dpsgd",
        Event("subsampled_gaussian", 1.692, 1.0, 2),
        rounds=4,
    ),
    AuditedMechanism(
        "DP-SGD, sampled",
        "dpsgd",
        Event("subsampled_gaussian", 1.413, 0.25, 4),
        rounds=15,
    ),
    # By themselves too: of statements, noise is read in sums of many entries, which hide its shape.
    AuditedMechanism("votes", "votes", Event("gaussian", 1.196, 1.0, 1), rounds=4),
    AuditedMechanism(
        "votes and appearance",
        "votes",
        Event("gaussian", 1.196, 1.0, 1),
        rounds=4,
        # Halves: a fault in either shows best.
        statement_share=0.5,
    ),
)


def observe(
    mechanism: AuditedMechanism, included_M: Booleans, noise: NoiseSource, delta: float
) -> Observation:
    """Run all rounds of a mechanism once, on the canaries that are in.

    Args:
        mechanism: What to run.
        included_M: Which canaries take part.
        noise: The mechanism's own source of randomness; an audit never seeds it.
        delta: At which the claim is read.

    Raises:
        PrivacyError: A number is out of range, or a step failed.
        LedgerError: The ledger could not be written.
    """
    run = _dpsgd_rounds if mechanism.stage == "dpsgd" else _vote_rounds
    one_round = run(mechanism, included_M, noise)
    releases, drawn = [], []
    with (
        tempfile.TemporaryDirectory(prefix="fundusgen-audit-") as folder,
        Ledger.open(Path(folder) / "ledger.db") as ledger,
    ):
        for number in range(1, mechanism.rounds + 1):
            event_id = _reserve(ledger, mechanism, number, noise, delta)
            released_SM, drawn_SP = one_round()
            digest = hashlib.sha256(released_SM.tobytes()).hexdigest()
            ledger.commit(event_id, mechanism.event, digest)
            ledger.release(event_id, digest)
            releases.append(released_SM)
            drawn.append(drawn_SP)
        counted = merged(ledger.events())
        claim = epsilon(counted, delta)
    return Observation(included_M, np.concatenate(releases), np.concatenate(drawn), counted, claim)


def joined(observations: list[Observation]) -> Observation:
    """Put independent runs, each with canaries of its own, side by side.

    Together they are one mechanism in which each canary is in one run. Ledgers of sound runs say
    the same; where they do not, the one that counts least is wrong, and is what stands here.

    Args:
        observations: Of the same mechanism, at least one.
    """
    cheapest = min(observations, key=lambda one: (one.claim, _steps(one)))
    return Observation(
        np.concatenate([one.included_M for one in observations]),
        np.concatenate([one.released_TM for one in observations], axis=1),
        np.concatenate([one.drawn_TP for one in observations], axis=1),
        cheapest.counted,
        cheapest.claim,
    )


def _steps(one: Observation) -> int:
    return sum(event.steps for event in one.counted)


# A round's releases (steps, M), and who was in each (steps, P).
_Round = Callable[[], tuple[Floats, Booleans]]


def _dpsgd_rounds(mechanism: AuditedMechanism, included_M: Booleans, noise: NoiseSource) -> _Round:
    """Rounds of DP-SGD on a model of two tensors with a place for each canary.

    A canary's direction lies half in either: clipping each tensor by itself would show.
    """
    canaries, patients_P = len(included_M), np.flatnonzero(included_M)
    event = mechanism.event
    # Double precision and a learning rate of one: a step moves weights by what is released.
    weights = {
        name: torch.zeros(canaries, dtype=torch.float64, requires_grad=True)
        for name in ("first", "second")
    }
    settings = DPSGDSettings(
        noise_multiplier=event.noise_multiplier,
        sample_rate=event.sample_rate,
        max_grad_norm=mechanism.max_grad_norm,
        patients=max(1, canaries // 2),
        physical_batch=_PHYSICAL_BATCH,
    )
    loudness = _LOUDNESS * mechanism.max_grad_norm / math.sqrt(2)

    def loss(parameters: Mapping[str, Tensor], patient: tuple[Tensor, ...]) -> Tensor:
        (images_KM,) = patient
        means: Tensor = (images_KM @ (parameters["first"] + parameters["second"])).mean()
        return loudness * means

    def one_round() -> tuple[Floats, Booleans]:
        # Optimizer and sampler live for one round, as at a site.
        sgd = PatientSGD(
            weights,
            torch.optim.SGD(weights.values(), lr=1.0),
            settings,
            noise,
            PoissonPatients(len(patients_P), event.sample_rate, noise),
        )
        released_SM = np.empty((event.steps, canaries))
        drawn_SP = np.zeros((event.steps, len(patients_P)), dtype=bool)
        for step in range(event.steps):

            def load(
                indices_P: NDArray[np.int64], loaded_P: Booleans = drawn_SP[step]
            ) -> tuple[Tensor, ...]:
                loaded_P[indices_P] = True
                images = torch.zeros(len(indices_P), _IMAGES, canaries, dtype=torch.float64)
                images[np.arange(len(indices_P)), :, patients_P[indices_P]] = 1.0
                return (images,)

            before = {name: tensor.detach().clone() for name, tensor in weights.items()}
            sgd.step(loss, load)
            moved_M = torch.stack(
                [before[name] - tensor.detach() for name, tensor in weights.items()]
            ).sum(dim=0)
            scale = settings.expected_batch_size / (math.sqrt(2) * mechanism.max_grad_norm)
            released_SM[step] = moved_M.numpy() * scale
        return released_SM, drawn_SP

    return one_round


def _vote_rounds(mechanism: AuditedMechanism, included_M: Booleans, noise: NoiseSource) -> _Round:
    """Votes in which each canary's images are all for a candidate of its own.

    Where patients state something besides, so do canaries: each what is at right angles to the
    statements of all others, so that what a tally holds of a canary is a number.
    """
    canaries, patients_P = len(included_M), np.flatnonzero(included_M)
    noise_multiplier, share = mechanism.event.noise_multiplier, mechanism.statement_share
    settings = whole = VoteSettings(noise_multiplier, canaries)
    directions_ME: Floats = np.eye(canaries)
    if share:
        # Rows of a Hadamard matrix: values of 1 and -1, whose squares state nothing.
        side = max(_LEAST_VALUES, 1 << (canaries - 1).bit_length())
        values_MD = hadamard(side)[:canaries].astype(np.float64)
        whole = VoteSettings(noise_multiplier, canaries + 2 * side)
        stated_MD = values_MD * math.sqrt(share / side)
        directions_ME = np.concatenate(
            [math.sqrt(1 - share) * directions_ME, stated_MD, np.zeros_like(stated_MD)], axis=1
        )

    def contribution(place: np.int64) -> Floats:
        one = ballot(np.full((_IMAGES, 1), place), settings)
        if not share:
            return one
        return joint(one, statement(np.tile(values_MD[place], (_IMAGES, 1))), share)

    def one_round() -> tuple[Floats, Booleans]:
        released = [
            directions_ME @ noisy_tally((contribution(place) for place in patients_P), whole, noise)
            for _ in range(mechanism.event.steps)
        ]
        return np.stack(released), np.ones((mechanism.event.steps, len(patients_P)), dtype=bool)

    return one_round


def _reserve(
    ledger: Ledger, mechanism: AuditedMechanism, number: int, noise: NoiseSource, delta: float
) -> int:
    return ledger.reserve(
        study_id="canaries",
        study_hash=_CONTENT,
        round_number=number,
        stage=mechanism.stage,
        request_id=hashlib.sha256(f"round {number}".encode()).hexdigest()[:32],
        content_digest=_CONTENT,
        event=mechanism.event,
        delta=delta,
        noise_kind="fast" if noise.kind == "fast" else "secure",
    )
