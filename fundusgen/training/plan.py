"""What a study would cost a site and do there, stage by stage, before anything is spent.

Everything here follows from the study and from where the site stands (`standing`). No manifest
and no image of a patient is read, and nothing is written. How long the study takes is measured on
phantoms (`rehearsal`), what it sends is packed and weighed (`traffic`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fundusgen.code import code_hash
from fundusgen.privacy.events import Event
from fundusgen.privacy.policy import Refused, objections, over_budget
from fundusgen.study import Stage, Study
from fundusgen.training.forecast import (
    noise_over_signal,
    noise_over_votes,
    private_parameters,
    verdict,
    votes_verdict,
)
from fundusgen.training.mechanisms import reply_bytes, round_event
from fundusgen.training.rehearsal import Rehearsal, rehearse, rehearse_votes
from fundusgen.training.standing import Standing
from fundusgen.training.traffic import Traffic, traffic


@dataclass(frozen=True)
class StagePlan:
    """What one stage of a study would do at a site from now on, and cost.

    Attributes:
        stage: Its name, as in requests and in the ledger.
        rounds: Rounds of the whole stage.
        rounds_left: Those that the ledger holds no answer to.
        event: Its mechanism over the rounds left.
        epsilon_alone: Of `event` by itself.
        epsilon_after: Of all that is spent, the stages before this one, and this one.
        private_parameters: Number of parameters trained on patients; 0 for votes.
        noise_over_signal: Of a step, or of a candidate's votes; this site alone.
        noise_over_signal_pooled: Of all sites; None where they are not known.
        traffic: Bytes of a round.
        rehearsal: What was measured; None where nothing is left to do.
    """

    stage: Stage
    rounds: int
    rounds_left: int
    event: Event
    epsilon_alone: float
    epsilon_after: float
    private_parameters: int
    noise_over_signal: float
    noise_over_signal_pooled: float | None
    traffic: Traffic
    rehearsal: Rehearsal | None

    @property
    def verdict(self) -> str:
        """Whether it can learn anything, in plain words."""
        said = votes_verdict if self.stage == "votes" else verdict
        return said(self.noise_over_signal, self.noise_over_signal_pooled)

    @property
    def minutes(self) -> float:
        """Expected time of all rounds left, as far as it was measured."""
        if self.rehearsal is None:
            return 0.0
        besides_s = self.rounds_left * self.rehearsal.seconds_per_round_besides
        return (self.event.steps * self.rehearsal.seconds_per_step + besides_s) / 60


@dataclass(frozen=True)
class StudyPlan:
    """What a study would cost a site and do there.

    Attributes:
        study: The study.
        standing: The site, as the study finds it.
        epsilon_spent: Of all that the ledger counts.
        stages: The study's stages, in order.
        objections: Everything that the site's policy has against it.
    """

    study: Study
    standing: Standing
    epsilon_spent: float
    stages: tuple[StagePlan, ...]
    objections: tuple[Refused, ...]

    @property
    def epsilon_after(self) -> float:
        """Of all that is spent and the whole study."""
        return self.stages[-1].epsilon_after

    @property
    def minutes(self) -> float:
        """Expected time of all that is left, as far as it was measured."""
        return sum(stage.minutes for stage in self.stages)

    @property
    def bytes_down(self) -> int:
        """Of all requests that are left."""
        return sum(stage.rounds_left * stage.traffic.down for stage in self.stages)

    @property
    def bytes_up(self) -> int:
        """Of all replies that are left."""
        return sum(stage.rounds_left * stage.traffic.up for stage in self.stages)


def plan(study: Study, standing: Standing) -> StudyPlan:
    """Plan a study at a site.

    Raises:
        SiteError: The site's device is not there.
        AccountingError: No noise multiplier meets the study's target.
        ModelError: The study's model cannot be built.
        RunError: A step of the study fails on this machine.
    """
    stages: list[StagePlan] = []
    for stage in study.stage_rounds:
        before = [*standing.spent, *(planned.event for planned in stages)]
        stages.append(_planned(study, standing, stage, before))
    return StudyPlan(
        study,
        standing,
        standing.total_epsilon(standing.spent),
        tuple(stages),
        tuple(_objections(study, standing, stages)),
    )


def _objections(study: Study, standing: Standing, stages: Sequence[StagePlan]) -> list[Refused]:
    if standing.policy is None:
        return []
    found = objections(
        standing.policy,
        study,
        noise_multiplier=min(stage.event.noise_multiplier for stage in stages),
        declared_patients=standing.declared_patients,
        reply_bytes=max(reply_bytes(study, stage.stage) for stage in stages),
        code_hash=code_hash(),
    )
    spent = list(standing.spent)
    for stage in stages:
        over = over_budget(standing.policy, spent, stage.event)
        found += [over] if over else []
        spent.append(stage.event)
    return found


def _planned(study: Study, standing: Standing, stage: Stage, spent: Sequence[Event]) -> StagePlan:
    """Plan the rounds of a stage that are left, on top of what is spent before them."""
    rounds = study.stage_rounds[stage]
    answered = {
        row.round_number
        for row in standing.rows
        if row.answered and (row.study_hash, row.stage) == (study.study_hash, stage)
    }
    left = len(rounds) - len(answered)
    one = round_event(study, stage, standing.rows)
    event, noise = replace(one, steps=left * one.steps), one.noise_multiplier
    sites = standing.sites_patients
    return StagePlan(
        stage=stage,
        rounds=len(rounds),
        rounds_left=left,
        event=event,
        epsilon_alone=standing.total_epsilon([event]),
        epsilon_after=standing.total_epsilon([*spent, event]),
        private_parameters=private_parameters(study) if stage == "dpsgd" else 0,
        noise_over_signal=_ratio(study, stage, [standing.declared_patients], noise),
        noise_over_signal_pooled=_ratio(study, stage, sites, noise) if sites else None,
        traffic=traffic(study, standing, stage, one, [*spent, event]),
        rehearsal=_rehearsed(study, standing, stage, noise) if left else None,
    )


def _ratio(study: Study, stage: Stage, patients: Sequence[int], noise: float) -> float:
    if stage == "votes":
        return noise_over_votes(study, patients, noise)
    return noise_over_signal(study, patients, noise, private_parameters(study))


def _rehearsed(study: Study, standing: Standing, stage: Stage, noise: float) -> Rehearsal:
    rehearsing = rehearse_votes if stage == "votes" else rehearse
    return rehearsing(study, standing.settings, noise_multiplier=noise)
