"""The study file: what a federation does, written once and agreed to by every site.

A study is one YAML file. It is read strictly: a key that is not known is an error that names the
nearest known key, since a mistyped privacy setting must never fall back to a default. What is
read is frozen; `study_hash` names it, and a site answers for that name only.
"""

import hashlib
import json
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from fundusgen.errors import StudyError
from fundusgen.settings_file import dump_settings, read_settings

Condition = Literal[
    "normal", "dr1", "dr2", "dr3", "dr4", "amd", "glaucoma", "cataract", "myopia",
    "hypertension", "other", "unknown",
]  # fmt: skip
ModelKind = Literal["vae", "gan"]
# Of a ballot, for what patients say beside their votes.
_LEAST_SHARE = 0.01
Stage = Literal["votes", "dpsgd"]
# Site names become folder names on the server, so they are checked wherever they arrive.
SITE_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
Name = Annotated[str, Field(pattern=f"^{SITE_NAME}$")]
# Accounting for more would keep a site busy for longer than the steps are worth.
MAX_STEPS = 1_000_000
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Patterns = tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.*?\[\]!-]{1,128}$")], ...]
AdversarialLoss = Literal["logistic", "hinge"]


_StageT = TypeVar("_StageT")


class Settings(BaseModel):
    """Base of every part of a study: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Settings):
    """The network whose weights are shared: what all families have.

    Attributes:
        width: Channels of the finest level of what draws; the levels below have up to eight times
            as many.
        latent: Length of the latent vector.
    """

    width: Annotated[int, Field(ge=4, le=256, multiple_of=4)] = 16
    latent: Annotated[int, Field(ge=2, le=1024)] = 48


class VAESettings(ModelSettings):
    """A conditional convolutional VAE.

    Attributes:
        kind: The family.
        pixel_std: Standard deviation of the pixel likelihood, in units of [-1, 1].
        beta: Weight of the KL term; see `fundusgen.models.vae.VAE`.
        private: Which parameters are trained on patients, as glob patterns over their names.
    """

    kind: Literal["vae"] = "vae"
    pixel_std: PositiveFloat = 0.15
    beta: PositiveFloat = 4.0
    private: Patterns = ("*",)


class GANSettings(ModelSettings):
    """A conditional GAN: sites train its discriminator, and the generator learns from that.

    Attributes:
        kind: The family.
        discriminator_width: Channels of the discriminator's finest level; the levels below have
            up to four times as many.
        loss: The game: `logistic` or `hinge`.
        private: Which parameters of the discriminator are trained on patients, as glob patterns
            over their names.
        drawn: Images drawn of each condition for a step of the discriminator, whatever the
            patients in it.
        generator: Who trains the generator, after each round: the `server` against the average
            of the discriminators, or the `sites`, each against its own; their generators are
            averaged, whatever the server's optimizer.
        ensemble: Whether the server trains it against the discriminators of all sites instead of
            their average.
        generator_steps: Most steps of the generator in a round.
        generator_batch: Images of such a step.
        generator_learning_rate: Of its Adam.
        accuracy_floor: The generator waits while the discriminator knows a smaller share of
            drawn images for what they are; 0 never waits.
        phantoms_say: Weight of a second, public discriminator that the server trains on phantoms
            meanwhile, so that nothing learned from them is forgotten; 0 does without. Only of a
            study with a prior, and of no matter where sites train the generator.
    """

    kind: Literal["gan"]
    discriminator_width: Annotated[int, Field(ge=4, le=256)] = 32
    loss: AdversarialLoss = "logistic"
    private: Patterns = ("discriminator.*vote.*", "discriminator.embedding.*")
    drawn: Annotated[int, Field(ge=1, le=4096)] = 8
    generator: Literal["server", "sites"] = "server"
    ensemble: bool = False
    generator_steps: Annotated[int, Field(ge=1, le=10_000)] = 8
    generator_batch: Annotated[int, Field(ge=1, le=4096)] = 32
    generator_learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    accuracy_floor: Annotated[float, Field(ge=0, lt=1)] = 0.6
    phantoms_say: Annotated[float, Field(ge=0, le=1e3)] = 0.5

    @model_validator(mode="after")
    def _only_the_discriminator_sees_patients(self) -> Self:
        strangers = [
            pattern for pattern in self.private if not pattern.startswith("discriminator.")
        ]
        if strangers:
            raise ValueError(
                f"private has '{strangers[0]}': of a GAN, patients train the discriminator alone; "
                "begin each pattern with 'discriminator.'"
            )
        return self

    @model_validator(mode="after")
    def _the_server_has_what_it_needs(self) -> Self:
        if self.ensemble and self.generator == "sites":
            raise ValueError("ensemble is true, and generator is sites: each site has only its own")
        return self


def _kind(model: Any) -> Any:
    """The family that a study's model names, `vae` where it names none."""
    if isinstance(model, dict):
        return model.get("kind", "vae")
    return getattr(model, "kind", None)


AnyModelSettings = Annotated[
    Annotated[VAESettings, Tag("vae")] | Annotated[GANSettings, Tag("gan")],
    Discriminator(
        _kind,
        custom_error_type="model_kind",
        custom_error_message="the kind of a model should be 'vae' or 'gan'",
    ),
]


class PriorSettings(Settings):
    """What the model learns from phantoms before any patient is asked: public, epsilon 0.

    Attributes:
        phantoms: Phantoms to learn from; a tenth as many besides tell when to stop.
        steps: Most steps of training; fewer of a VAE where held-out phantoms say it is enough.
        batch: Phantoms of a step.
        learning_rate: Of Adam; falls to nothing over the last half.
        seed: Of its first weights, its phantoms and their order. Not the study's, so that studies
            of other seeds begin with the same prior.
    """

    phantoms: Annotated[int, Field(ge=16, le=1_000_000)] = 8192
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 5000
    batch: Annotated[int, Field(ge=1, le=4096)] = 16
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 7e-4
    seed: Seed = 0


def _none_or_enough(share: float) -> float:
    if 0 < share < _LEAST_SHARE:
        raise ValueError(f"should be 0, or at least {_LEAST_SHARE}: less would be noise alone")
    return share


class VotesStage(Settings):
    """Rounds in which patients vote for the phantoms most like them.

    The defaults were chosen on phantom hospitals, by `simulations.benchmarks.vote_settings`.

    Attributes:
        rounds: Votes; after each, the population of phantoms is drawn anew from the winners.
        candidates: Phantoms that stand in each vote.
        nearest: Candidates over which an image spreads its vote.
        variation: How far the phantoms of the next round may differ from the winners, in
            parameter space: 0 not at all, 1 as far as any two phantoms.
        trusted_ancestors: Effective number of winners of a condition that have half the say in it;
            the other half is that of the winners of all conditions, drawn with its disease.
        appearance_share: Share of a ballot, by the square of its length, in which patients say how
            their photographs look (light, colour, texture); phantoms are then developed alike.
            0 asks for votes alone.
        refit_phantoms: Phantoms of the voted population that the model is refitted on.
        refit_steps: Most steps of that.
    """

    rounds: Annotated[int, Field(ge=1, le=100)] = 4
    candidates: Annotated[int, Field(ge=2, le=100_000)] = 1000
    nearest: Annotated[int, Field(ge=1, le=1000)] = 1
    variation: Annotated[float, Field(ge=0, le=1)] = 0.3
    trusted_ancestors: Annotated[float, Field(ge=0, le=1000)] = 2.0
    appearance_share: Annotated[float, Field(ge=0, le=0.9), AfterValidator(_none_or_enough)] = 0.2
    refit_phantoms: Annotated[int, Field(ge=16, le=1_000_000)] = 8192
    refit_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 1500


class DPSGDStage(Settings):
    """Rounds of DP-SGD on the patients of each site.

    Attributes:
        steps_per_round: DP-SGD steps a site takes between two exchanges.
        sample_rate: Probability with which each patient takes part in a step.
        max_grad_norm: L2 bound of what one patient adds to a step.
        views_per_patient: Images or augmentations averaged into a patient's one gradient.
        optimizer: The local optimizer; its state lives for one round.
        learning_rate: Its learning rate.
        kl_warmup_rounds: Rounds over which the KL term grows to its full weight.
    """

    steps_per_round: Annotated[int, Field(ge=1, le=10_000)] = 4
    sample_rate: Annotated[float, Field(ge=1e-6, le=1)] = 0.25
    max_grad_norm: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    views_per_patient: Annotated[int, Field(ge=1, le=64)] = 2
    optimizer: Literal["sgd", "adam"] = "adam"
    learning_rate: Annotated[float, Field(gt=0, le=1e3)] = 1e-3
    kl_warmup_rounds: Annotated[int, Field(ge=0)] = 0


class StageSettings(Settings):
    """The stages of the pipeline that this study has, in their order; `null` leaves one out.

    Attributes:
        votes: Private votes for phantoms.
        dpsgd: Rounds of DP-SGD, `federation.rounds` of them.
    """

    votes: VotesStage | None = None
    dpsgd: DPSGDStage | None = DPSGDStage()

    @model_validator(mode="after")
    def _something_is_done(self) -> Self:
        if self.votes is None and self.dpsgd is None:
            raise ValueError("votes and dpsgd are both null: nothing would be learned from sites")
        return self


class PrivacySettings(Settings):
    """What the study may cost each site.

    Attributes:
        unit: Whose presence is hidden: all images of one patient.
        target_epsilon: Epsilon of the whole study at a site, at `target_delta`.
        target_delta: Delta of the same statement.
        votes_share: Where a study has both stages, the epsilon that the votes alone may cost,
            as a share of the target. What they leave is DP-SGD's. The default was chosen on
            phantom hospitals, by `simulations.benchmarks.budget_share`.
        noise: `secure` is drawn from a cryptographic generator; `fast` is for simulations,
            is recorded, and is refused by a site's policy unless it says otherwise.
    """

    unit: Literal["patient"] = "patient"
    target_epsilon: Annotated[float, Field(gt=0, le=100)]
    target_delta: Annotated[float, Field(ge=1e-12, le=1e-2)] = 1e-5
    votes_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    noise: Literal["secure", "fast"] = "secure"


class FederationSettings(Settings):
    """How sites and server exchange weights.

    Attributes:
        rounds: Rounds of DP-SGD, which follow those of the votes; the noise is calibrated for
            all of them. 0, or left out, where the study has no DP-SGD.
        min_sites: Sites that must be connected before a round starts.
        quorum: Valid replies that a round needs; fewer end the run.
        timeout_s: Longest wait for sites to connect, and for the replies of a round.
        weights: A site's share of the average: its declared patients, or equal.
        server_optimizer: `average` takes the weighted average of the sites' weights; `adam`
            takes an Adam step along the average change (Reddi et al. 2021, FedAdam), after the
            noise of all sites has been averaged; it wants `sgd` at the sites. `adam_bc` takes the
            noise's variance out of Adam's second moment, and needs `sgd` there.
        server_learning_rate: Step of the server's Adam; falls to zero over the second half.
        ema_decay: Decay of the server's moving average of the weights, from which is drawn.
        max_update_norm_ratio: A reply whose change, times the site's share, is this many times
            longer than the median reply's is dropped; needs three replies.
    """

    rounds: Annotated[int, Field(ge=0, le=100_000)] = 0
    min_sites: Annotated[int, Field(ge=1)] = 2
    quorum: Annotated[int, Field(ge=1)] = 1
    timeout_s: Annotated[float, Field(gt=0, le=7 * 86_400)] = 3600
    weights: Literal["declared", "equal"] = "declared"
    server_optimizer: Literal["average", "adam", "adam_bc"] = "average"
    server_learning_rate: PositiveFloat = 1e-3
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    max_update_norm_ratio: Annotated[float, Field(gt=1, le=1e6)] = 20.0

    @model_validator(mode="after")
    def _quorum_is_reachable(self) -> Self:
        if self.quorum > self.min_sites:
            raise ValueError(f"quorum {self.quorum} is more than min_sites {self.min_sites}")
        return self


class EvaluationSettings(Settings):
    """What the server draws and measures, on generated and phantom images only.

    Attributes:
        samples_per_condition: Columns of the pictures drawn each time.
        every_rounds: Rounds between two pictures.
        phantoms: Phantoms on which the public loss is measured.
    """

    samples_per_condition: Annotated[int, Field(ge=1, le=64)] = 8
    every_rounds: Annotated[int, Field(ge=1)] = 1
    phantoms: Annotated[int, Field(ge=0, le=10_000)] = 64


class PhantomSite(Settings):
    """A hospital made of phantoms."""

    name: Name
    patients: Annotated[int, Field(ge=1, le=1_000_000)]
    camera: str
    mix: dict[Condition, Annotated[float, Field(ge=0)]]


class PartitionRule(Settings):
    """How one folder of patients becomes several hospitals, by patient.

    Attributes:
        into: Number of hospitals.
        how: `iid`; `dirichlet` over conditions; `size` with geometrically falling sizes.
        alpha: Concentration of the Dirichlet; small is uneven.
        ratio: Size of each hospital relative to the one before it, for `size`.
    """

    into: Annotated[int, Field(ge=1, le=1000)]
    how: Literal["iid", "dirichlet", "size"] = "iid"
    alpha: PositiveFloat = 1.0
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5


class SimulationSettings(Settings):
    """How one machine stands in for the sites. No part of what the sites agree to.

    Attributes:
        phantom_sites: Hospitals to draw; empty where `--sites` names folders.
        partition: Rules by name of a site folder.
        one_image_per_patient: Site folders without patient ids, each image a patient.
        max_epsilon: The cap each simulated site sets itself; the study's target if absent.
    """

    phantom_sites: tuple[PhantomSite, ...] = ()
    partition: dict[str, PartitionRule] = {}
    one_image_per_patient: tuple[str, ...] = ()
    max_epsilon: PositiveFloat | None = None


def _spelled_out(content: dict[str, Any]) -> dict[str, Any]:
    """Read `model: vae` as `model: {kind: vae}`."""
    model = content.get("model")
    return {**content, "model": {"kind": model}} if isinstance(model, str) else content


def _whole(value: object) -> object:
    """Refuse 64.0, which pydantic takes for the literal 64."""
    if type(value) is not int:
        raise ValueError("input should be a whole number")
    return value


class Study(Settings):
    """One federated job.

    Attributes:
        study_id: Name of the study.
        seed: Of everything public but the prior: first weights, phantoms, pictures. Never of noise.
        conditions: What generation is conditioned on, in the order of the model's index.
        image_size: Side of an image in pixels, a power of two from 32 to 256.
        prior: What the model learns from phantoms first; None begins with random weights.
    """

    study_id: Name
    seed: Seed = 0
    conditions: Annotated[tuple[Condition, ...], Field(min_length=1)]
    image_size: Annotated[Literal[32, 64, 128, 256], BeforeValidator(_whole)] = 64
    model: AnyModelSettings = VAESettings()
    prior: PriorSettings | None = None
    stages: StageSettings = StageSettings()
    privacy: PrivacySettings
    federation: FederationSettings
    evaluation: EvaluationSettings = EvaluationSettings()
    simulation: SimulationSettings = SimulationSettings()

    @model_validator(mode="after")
    def _conditions_are_distinct(self) -> Self:
        if len(set(self.conditions)) != len(self.conditions):
            raise ValueError("conditions: a condition is listed twice")
        return self

    @model_validator(mode="after")
    def _steps_can_be_accounted(self) -> Self:
        if self.dpsgd_steps > MAX_STEPS:
            raise ValueError(
                f"{self.dpsgd_steps:,} steps (rounds times steps_per_round) are more than the "
                f"{MAX_STEPS:,} that a site accounts for"
            )
        return self

    @model_validator(mode="after")
    def _rounds_belong_to_a_stage(self) -> Self:
        rounds = self.federation.rounds
        if self.stages.dpsgd is not None and rounds == 0:
            raise ValueError("federation.rounds is missing: how many rounds of DP-SGD there are")
        if self.stages.dpsgd is None and rounds > 0:
            raise ValueError(
                f"federation.rounds is {rounds}, and stages.dpsgd is null: the rounds of DP-SGD "
                "need their stage, and those of the votes are stages.votes.rounds"
            )
        return self

    @model_validator(mode="after")
    def _the_noise_of_a_reply_is_known(self) -> Self:
        dpsgd = self.stages.dpsgd
        if self.federation.server_optimizer == "adam_bc" and dpsgd and dpsgd.optimizer != "sgd":
            raise ValueError(
                f"stages.dpsgd.optimizer is {dpsgd.optimizer}, and federation.server_optimizer "
                "adam_bc: only of steps of sgd does the server know the noise"
            )
        return self

    @model_validator(mode="after")
    def _votes_have_a_prior(self) -> Self:
        if self.stages.votes is not None and self.prior is None:
            raise ValueError(
                "prior is missing: the votes choose among the phantoms that it learns from"
            )
        return self

    @model_validator(mode="after")
    def _every_condition_has_candidates(self) -> Self:
        votes = self.stages.votes
        if votes is not None and votes.candidates < 2 * len(self.conditions):
            raise ValueError(
                f"stages.votes.candidates is {votes.candidates}, for {len(self.conditions)} "
                "conditions: a vote needs at least two candidates of each"
            )
        return self

    @property
    def votes(self) -> VotesStage:
        """The settings of the votes.

        Raises:
            StudyError: The study has none.
        """
        return _there(self.stages.votes, "votes")

    @property
    def dpsgd(self) -> DPSGDStage:
        """The settings of DP-SGD.

        Raises:
            StudyError: The study has none.
        """
        return _there(self.stages.dpsgd, "dpsgd")

    @property
    def gan(self) -> GANSettings:
        """The settings of the GAN.

        Raises:
            StudyError: The study's model is of another kind.
        """
        if not isinstance(self.model, GANSettings):
            raise StudyError(
                f"The study's model is a {self.model.kind}",
                expected="a gan",
                remedy="Write `model: gan`, or leave out what needs it",
            )
        return self.model

    @property
    def votes_rounds(self) -> int:
        """Rounds of votes, which come first."""
        return self.stages.votes.rounds if self.stages.votes else 0

    @property
    def total_rounds(self) -> int:
        """Rounds of all stages; they are counted through, from 1."""
        return self.votes_rounds + self.federation.rounds

    @property
    def stage_rounds(self) -> dict[Stage, range]:
        """The stages of the study in order, with the numbers of their rounds."""
        first = self.votes_rounds + 1
        rounds: dict[Stage, range] = {}
        if self.stages.votes is not None:
            rounds["votes"] = range(1, first)
        if self.stages.dpsgd is not None:
            rounds["dpsgd"] = range(first, first + self.federation.rounds)
        return rounds

    def stage_of(self, round_number: int) -> Stage | None:
        """The stage that a round belongs to; None for a round that the study does not have."""
        return next((s for s, rounds in self.stage_rounds.items() if round_number in rounds), None)

    @property
    def dpsgd_steps(self) -> int:
        """DP-SGD steps each site takes over the whole study."""
        dpsgd = self.stages.dpsgd
        return self.federation.rounds * dpsgd.steps_per_round if dpsgd else 0

    def agreed_json(self) -> str:
        """What the sites agree to, as canonical JSON: all but the simulation."""
        agreed = self.model_dump(mode="json", exclude={"simulation"})
        return json.dumps(agreed, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def study_hash(self) -> str:
        """SHA-256 of `agreed_json`, in hex."""
        return hashlib.sha256(self.agreed_json().encode()).hexdigest()


def _there(stage: _StageT | None, name: Stage) -> _StageT:
    if stage is None:
        raise StudyError(
            f"The study has no stage '{name}'",
            expected="a stage that is not null",
            remedy=f"Give it stages.{name}, or leave out what needs it",
        )
    return stage


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        StudyError: The file cannot be read, is not YAML, or is not a study.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            f"The study file {path} cannot be read: {error}",
            expected="a YAML file in UTF-8",
            remedy="Check the path; examples are in simulations/studies",
        ) from error
    return parse_study(text, source=str(path))


def parse_study(text: str, *, source: str) -> Study:
    """Read and check a study from YAML or JSON text; `source` names it in errors.

    Raises:
        StudyError: The text is not a study.
    """
    try:
        return read_settings(text, Study, _spelled_out)
    except ValidationError as error:
        raise StudyError(f"{source}: {describe(error, Study)}") from error
    except ValueError as error:
        raise StudyError(
            f"{source} cannot be read: {_one_line(error)}",
            expected="YAML with keys such as study_id, conditions, privacy, federation",
            remedy="Correct the syntax",
        ) from error


def dump_study(study: Study) -> str:
    """Write a study as YAML with every setting spelled out."""
    return dump_settings(study.model_dump(mode="json"))


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Say every fault of a settings file in a line: where, found, expected, nearest key."""
    return "; ".join(_describe_one(dict(fault), model) for fault in error.errors())


def _describe_one(fault: dict[str, Any], model: type[BaseModel]) -> str:
    place = ".".join(_written(fault["loc"])) or "top level"
    if fault["type"] == "extra_forbidden":
        known = _keys_at(model, fault["loc"][:-1])
        near = get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f", did you mean '{near[0]}'?" if near else f", known here: {', '.join(known)}"
        return f"unknown key '{place}'{hint}"
    if fault["type"] == "missing":
        return f"'{place}' is missing"
    message = fault["msg"].removeprefix("Value error, ")
    found = fault["input"]
    shown = "" if isinstance(found, dict) else f" (found {_one_line(found)!r})"
    return f"'{place}': {message[:1].lower()}{message[1:]}{shown}"


def _written(location: tuple[int | str, ...]) -> list[str]:
    """Where a fault is in the file: without the kind that pydantic puts behind `model`."""
    parts = [str(part) for part in location]
    return parts[:1] + parts[2:] if parts[:1] == ["model"] and len(parts) > 1 else parts


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Known keys of the settings that a fault's location lies in."""
    if location[:1] == ("model",) and len(location) > 1 and "model" in model.model_fields:
        kinds: dict[object, type[BaseModel]] = {"vae": VAESettings, "gan": GANSettings}
        return list(kinds[location[1]].model_fields)
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        nested = [
            kind
            for kind in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if nested:
            model = nested[0]
    return list(model.model_fields)


def _one_line(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else f"{text[:117]}..."
