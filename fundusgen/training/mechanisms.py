"""The mechanisms of a study's stages: how much noise each takes, and what a round of it costs.

Everything here follows from the study alone, and for a study that has begun from its own first
events in the ledger: the noise multiplier of a stage is found before its first round and kept.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from fundusgen.models.factory import build_model, reply_names
from fundusgen.privacy.accounting import calibrate_noise_multiplier
from fundusgen.privacy.events import Event
from fundusgen.privacy.ledger_rows import LedgerRow
from fundusgen.study import DPSGDStage, Stage, Study
from fundusgen.training.poll import reply_shapes

_BYTES_PER_NUMBER = 4


def round_event(study: Study, stage: Stage, rows: Sequence[LedgerRow]) -> Event:
    """The event of one round, with the noise of the stage's first event where there is one.

    Args:
        study: The study.
        stage: One of its stages.
        rows: The site's ledger.

    Raises:
        AccountingError: No noise multiplier meets the study's target.
        StudyError: The study has no such stage.
    """
    earlier = [
        row.event.noise_multiplier
        for row in rows
        if row.study_hash == study.study_hash and row.stage == stage
    ]
    return _event(study, stage, earlier[0] if earlier else noise_for(study, stage))


def planned_events(study: Study) -> tuple[Event, ...]:
    """All that a study will cost a site: an event a stage, of all its rounds.

    Guarantee: their composition is within the study's target, by every accountant that is
    installed; see `noise_for`.

    Raises:
        AccountingError: No noise multiplier meets the study's target.
    """
    events = []
    for stage, rounds in study.stage_rounds.items():
        one = _event(study, stage, noise_for(study, stage))
        events.append(replace(one, steps=len(rounds) * one.steps))
    return tuple(events)


def noise_for(study: Study, stage: Stage) -> float:
    """Noise multiplier of a stage, with which the whole study costs at most its target epsilon.

    Guarantee: where a study has one stage, epsilon of all its rounds at the target delta is at
    most `target_epsilon` by every accountant that is installed. Where it has both, epsilon of the
    votes alone is at most `votes_share` of the target, and of both composed at most the target:
    the noise of DP-SGD is calibrated beside the votes.
    Edge cases: a target that no noise can meet raises. Depends on no patient: all is public.

    Args:
        study: The study.
        stage: One of its stages.

    Raises:
        AccountingError: No noise multiplier meets the target.
        StudyError: The study has no such stage.
    """
    privacy = study.privacy
    if stage == "votes":
        share = privacy.votes_share if study.stages.dpsgd else 1.0
        target = share * privacy.target_epsilon
        return _calibrated(target, privacy.target_delta, 1.0, study.votes.rounds, ())
    before: tuple[Event, ...] = ()
    if study.stages.votes:
        before = (Event("gaussian", noise_for(study, "votes"), 1.0, study.votes.rounds),)
    return _calibrated(
        privacy.target_epsilon,
        privacy.target_delta,
        study.dpsgd.sample_rate,
        study.dpsgd_steps,
        before,
    )


def noise_of_reply(stage: DPSGDStage, noise_multiplier: float, declared_patients: int) -> float:
    """Standard deviation of the noise in each private weight, where sites take steps of SGD.

    A step moves a weight by the learning rate times noise of deviation `noise_multiplier *
    max_grad_norm`, over the public batch size; those of a round add up. Of public numbers alone.
    """
    batch = stage.sample_rate * declared_patients
    step = stage.learning_rate * noise_multiplier * stage.max_grad_norm / batch
    return step * math.sqrt(stage.steps_per_round)


def reply_bytes(study: Study, stage: Stage) -> int:
    """Size of the arrays of one reply, in bytes.

    Raises:
        StudyError: Votes are asked of a study that has none.
        ModelError: `model.private` names no parameter.
    """
    if stage == "votes":
        return _BYTES_PER_NUMBER * sum(count for (count,) in reply_shapes(study.votes).values())
    model = build_model(study)
    sizes = (model.get_parameter(name).numel() for name in reply_names(study))
    return _BYTES_PER_NUMBER * sum(sizes)


def _event(study: Study, stage: Stage, noise_multiplier: float) -> Event:
    if stage == "votes":
        return Event("gaussian", noise_multiplier, 1.0, 1)
    dpsgd = study.dpsgd
    return Event("subsampled_gaussian", noise_multiplier, dpsgd.sample_rate, dpsgd.steps_per_round)


@lru_cache(maxsize=64)
def _calibrated(
    target_epsilon: float, target_delta: float, rate: float, steps: int, spent: tuple[Event, ...]
) -> float:
    return calibrate_noise_multiplier(
        target_epsilon=target_epsilon,
        target_delta=target_delta,
        sample_rate=rate,
        steps=steps,
        spent=spent,
    )
