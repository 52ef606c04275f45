"""What a round's two messages weigh, found by packing them as they will be packed.

For `fundusgen plan`. Arrays and the study's text are exactly as large as they will be. Receipts
differ by a few bytes from round to round, with the digits of their numbers. What Flower, gRPC and
TLS put around the messages is not in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fundusgen.federation.exchange import Answer, Request
from fundusgen.federation.messages import reply_to_record, request_to_record
from fundusgen.federation.weights import Weights
from fundusgen.models.encoder import ParameterEncoder
from fundusgen.models.factory import build_model, reply_names
from fundusgen.phantom.reading import PARAMETERS
from fundusgen.privacy.events import Event, merged
from fundusgen.privacy.receipts import Receipt
from fundusgen.study import Stage, Study
from fundusgen.training.appearance import NUMBERS, units_of
from fundusgen.training.poll import poll_arrays, reply_shapes
from fundusgen.training.standing import Standing

# Base64 of an ECDSA signature on P-384 in DER: two numbers of 48 bytes, and at most 8 around them.
_SIGNATURE = "A" * 140
_DIGEST = "0" * 64


@dataclass(frozen=True)
class Traffic:
    """Bytes of a round at one site.

    Attributes:
        down: Of the request: all weights or the poll, the study, the names of receipts.
        up: Of the reply: the private weights or the votes, and the receipt.
    """

    down: int
    up: int


def traffic(
    study: Study, standing: Standing, stage: Stage, event: Event, spent: Sequence[Event]
) -> Traffic:
    """Pack the last request of a stage and the reply to it, and weigh them.

    Args:
        study: The study.
        standing: The site.
        stage: The stage.
        event: Its mechanism in one round.
        spent: Everything that the ledger will count then.

    Raises:
        ModelError: The study's model cannot be built.
    """
    asked, answered = _arrays(study, stage)
    receipt = _receipt(study, standing, stage, event, spent)
    request = Request(
        study.agreed_json(),
        study.study_hash,
        receipt.round_number,
        stage,
        asked,
        # The server names the last receipt of each site; other names are taken to be as long.
        {f"{receipt.site}{number}": _DIGEST for number in range(_sites(study, standing))},
    )
    answer = Answer(answered, receipt)
    down, up = (
        sum(part.count_bytes() for part in message.values())
        for message in (request_to_record(request), reply_to_record(answer))
    )
    return Traffic(down, up)


def _arrays(study: Study, stage: Stage) -> tuple[Weights, Weights]:
    """Arrays as large as those of the stage's requests and replies."""
    if stage == "votes":
        candidates, outputs = study.votes.candidates, len(PARAMETERS)
        encoder = ParameterEncoder(study.image_size, outputs).state_dict()
        poll = poll_arrays(
            np.zeros((candidates, outputs), np.float32),
            np.zeros(candidates, np.int64),
            {name: value.numpy() for name, value in encoder.items()},
            units_of(np.zeros((1, NUMBERS))) if study.votes.appearance_share else None,
        )
        shapes = reply_shapes(study.votes)
        return poll, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    model = build_model(study)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return weights, {name: weights[name] for name in reply_names(study)}


def _sites(study: Study, standing: Standing) -> int:
    return len(standing.sites_patients) or study.federation.min_sites


def _receipt(
    study: Study, standing: Standing, stage: Stage, event: Event, spent: Sequence[Event]
) -> Receipt:
    """A receipt as long as the stage's last one will be."""
    return Receipt(
        site=standing.settings.name,
        study_id=study.study_id,
        study_hash=study.study_hash,
        round_number=study.stage_rounds[stage][-1],
        stage=stage,
        request_id=_DIGEST[:32],
        event=event,
        spent=merged(spent),
        epsilon_total=standing.total_epsilon(spent),
        delta=standing.delta,
        declared_patients=standing.declared_patients,
        noise=study.privacy.noise,
        payload_digest=_DIGEST,
        policy_hash=_DIGEST,
        code_hash=_DIGEST,
        sequence=len(standing.rows) + study.total_rounds,
        previous=_DIGEST,
        signature=_SIGNATURE,
    )
