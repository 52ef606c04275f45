"""The study's strategy: which replies count, and when a round goes on or the run ends.

Built on Flower's `Strategy`. Its own loop replaces Flower's, since that one always begins at
round 1, waits without bound for sites, and ends the run on a reply that differs from the others.
"""

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fundusgen.errors import FederationError, ReceiptError
from fundusgen.federation.exchange import Answer, Refusal, Request
from fundusgen.federation.messages import (
    pack_arrays,
    reply_from_record,
    request_to_record,
    unpack_arrays,
)
from fundusgen.federation.weights import Weights, digest, distance, outliers, require_fit
from fundusgen.privacy.receipts import Receipt
from fundusgen.study import Study
from fundusgen.training.mechanisms import noise_of_reply
from fundusgen.training.poll import reply_shapes
from server.postprocess import Postprocess
from server.receipts import ReceiptBook
from server.voting import SiteVotes

log = logging.getLogger("fundusgen.server")

# Asking costs a request over the network where sites are hospitals, whose rounds take minutes; it
# is free in a simulation, whose rounds take a second. So the pause grows with the wait.
_LEAST_PAUSE_S, _LONGEST_PAUSE_S, _PAUSE_PER_WAIT = 0.02, 0.5, 0.02


@dataclass(frozen=True)
class Accepted:
    """A reply that passed every check."""

    receipt: Receipt
    weights: Weights
    update_norm: float


class StudyStrategy(Strategy):
    """Federated averaging of mechanism outputs, with everything checked on arrival.

    Args:
        study: The study to run.
        private: Names of the weights that sites train.
        postprocess: What happens to an accepted round; owns the server's state.
        receipts: Checks and keeps the receipts of the sites.
    """

    def __init__(
        self,
        study: Study,
        private: tuple[str, ...],
        postprocess: Postprocess,
        receipts: ReceiptBook,
    ) -> None:
        """Start from the state that `postprocess` holds, which may be a resumed one."""
        self.study = study
        self.private = private
        self.postprocess = postprocess
        self.receipts = receipts
        self._request: Request | None = None
        self._started_s = 0.0
        self._names: dict[int, str] = {}

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: object = None,
    ) -> Result:
        """Run the rounds that are left.

        Args:
            grid: Flower's way to the sites.
            initial_arrays: All weights, as the last finished round left them.
            num_rounds: Rounds of the whole study.
            timeout: Seconds to wait for sites, and for the replies of a round.
            train_config: Not used: what the sites are told is the request.
            evaluate_config: Not used: nothing is measured on patients.
            evaluate_fn: Not used.

        Raises:
            FederationError: Too few sites, or too few valid replies.
        """
        self.summary()
        arrays = initial_arrays
        result = Result(arrays=arrays)
        config = ConfigRecord()
        for round_number in range(self.postprocess.state.round_number + 1, num_rounds + 1):
            self._started_s = time.monotonic()
            self._wait_for_sites(grid, timeout)
            messages = self.configure_train(round_number, arrays, config, grid)
            replies = self._exchange(grid, messages, timeout)
            aggregated, metrics = self.aggregate_train(round_number, replies)
            if aggregated is not None:
                result.arrays = arrays = aggregated
            if metrics is not None:
                result.train_metrics_clientapp[round_number] = metrics
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every connected site for the same thing."""
        self._request = Request(
            study=self.study.agreed_json(),
            study_hash=self.study.study_hash,
            round_number=server_round,
            stage=str(self.study.stage_of(server_round)),
            weights=unpack_arrays(arrays),
            known_receipts=self.receipts.latest(),
        )
        content = request_to_record(self._request)
        return [
            Message(
                content,
                node,
                f"train.{self._request.stage}",
                ttl=self.study.federation.timeout_s,
                group_id=str(server_round),
            )
            for node in sorted(grid.get_node_ids())
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check replies, and make of what passed what the stage makes of it.

        Raises:
            FederationError: Fewer than the quorum passed.
        """
        accepted, left_out = self._sift(replies)
        federation = self.study.federation
        if len(accepted) < federation.quorum:
            raise FederationError(
                f"Round {server_round} has {len(accepted)} valid replies"
                f" ({'; '.join(_said(entry) for entry in left_out) or 'nobody answered'})",
                expected=f"a quorum of {federation.quorum}",
                remedy="See each site's client.log for its own reason, then run again: the study "
                "goes on from its last finished round",
            )
        weights = self._finished(server_round, accepted, left_out)
        # An epsilon is never averaged: each site's holds for its own patients.
        worst = max(reply.receipt.epsilon_total for reply in accepted)
        return pack_arrays(weights), MetricRecord({"epsilon-max": worst, "sites": len(accepted)})

    def _finished(
        self, server_round: int, accepted: list[Accepted], left_out: list[dict[str, object]]
    ) -> Weights:
        """Hand the replies that count to what their stage makes of them."""
        sites = [_entry(reply) for reply in accepted] + left_out
        seconds = time.monotonic() - self._started_s
        if self.study.stage_of(server_round) == "votes":
            votes = [
                SiteVotes(
                    reply.weights,
                    reply.receipt.event.noise_multiplier,
                    reply.receipt.declared_patients,
                )
                for reply in accepted
            ]
            return self.postprocess.finish_vote(server_round, votes, sites=sites, seconds=seconds)
        replies = [(self._share(reply.receipt), reply.weights) for reply in accepted]
        noises = [
            (
                self._share(reply.receipt),
                noise_of_reply(
                    self.study.dpsgd,
                    reply.receipt.event.noise_multiplier,
                    reply.receipt.declared_patients,
                ),
            )
            for reply in accepted
        ]
        return self.postprocess.finish_round(
            server_round, replies, noises, sites=sites, seconds=seconds
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing is measured on patients: a loss without a mechanism would leak."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """See `configure_evaluate`."""
        return None

    def summary(self) -> None:
        """Log what is about to run."""
        federation, done = self.study.federation, self.postprocess.state.round_number
        log.info(
            "study %s (%s): rounds %d to %d, at least %d sites, quorum %d",
            self.study.study_id, self.study.study_hash[:12], done + 1, self.study.total_rounds,
            federation.min_sites, federation.quorum,
        )  # fmt: skip

    def _wait_for_sites(self, grid: Grid, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        wanted = self.study.federation.min_sites
        while (connected := len(list(grid.get_node_ids()))) < wanted:
            if time.monotonic() > deadline:
                raise FederationError(
                    f"{connected} sites are connected after {timeout_s:.0f} s",
                    expected=f"at least {wanted}",
                    remedy="Start the missing sites' clients, or lower federation.min_sites",
                )
            time.sleep(_LONGEST_PAUSE_S)

    def _exchange(self, grid: Grid, messages: Iterable[Message], timeout_s: float) -> list[Message]:
        """Send, and wait until all have answered or the time is up."""
        waiting = set(grid.push_messages(messages))
        started_s = time.monotonic()
        deadline = started_s + timeout_s
        replies: list[Message] = []
        while waiting and time.monotonic() < deadline:
            arrived = list(grid.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            if waiting and not arrived:
                pause_s = _PAUSE_PER_WAIT * (time.monotonic() - started_s)
                time.sleep(min(max(pause_s, _LEAST_PAUSE_S), _LONGEST_PAUSE_S))
        if waiting:
            log.warning("%d sites did not answer within %.0f s", len(waiting), timeout_s)
        return replies

    def _sift(self, replies: Iterable[Message]) -> tuple[list[Accepted], list[dict[str, object]]]:
        """Part the replies into those that count and, with the reason, those that do not."""
        accepted: dict[str, Accepted] = {}
        left_out: list[dict[str, object]] = []
        for message in replies:
            node_id = message.metadata.src_node_id
            node = self._names.get(node_id, f"node {node_id}")
            try:
                reply = self._checked(message)
                if isinstance(reply, Refusal):
                    left_out.append(_entry_of(node, "refused", reply.reason.value))
                elif reply.receipt.site in accepted:
                    raise FederationError(f"a second reply in the name of {reply.receipt.site}")
                else:
                    accepted[reply.receipt.site] = reply
                    self._names[node_id] = reply.receipt.site
            except (FederationError, ReceiptError) as error:
                left_out.append(_entry_of(node, "dropped", str(error)))
            except Exception:
                # Whatever a site sends, it ends nobody's run but its own part in it.
                log.exception("the reply of %s could not be checked", node)
                left_out.append(_entry_of(node, "dropped", "the reply could not be checked"))
        kept = sorted(accepted.values(), key=lambda reply: reply.receipt.site)
        # Weighed as they enter the average: the noise of a small site is long, and its share small.
        far = outliers(
            [self._length(reply) for reply in kept],
            self.study.federation.max_update_norm_ratio,
        )
        left_out += [
            _entry_of(
                reply.receipt.site, "dropped", f"update norm {reply.update_norm:.3g} too long"
            )
            for reply, is_far in zip(kept, far, strict=True)
            if is_far
        ]
        for entry in left_out:
            log.warning("%s", _said(entry))
        return [reply for reply, is_far in zip(kept, far, strict=True) if not is_far], left_out

    def _checked(self, message: Message) -> Accepted | Refusal:
        request = self._request
        if request is None:
            raise FederationError("a reply without a request")
        if message.has_error():
            raise FederationError(f"Flower reports error {message.error.code}")
        reply = reply_from_record(message.content)
        if isinstance(reply, Refusal):
            return reply
        require_receipt(reply, request)
        # Kept even if the arrays turn out not to fit: what a site released, it has spent.
        self.receipts.accept(reply.receipt)
        sent = self._comparable(request)
        require_fit(reply.weights, sent)
        return Accepted(reply.receipt, reply.weights, update_norm(reply.weights, sent))

    def _comparable(self, request: Request) -> Weights:
        """What a reply must be like, and from which its length is measured."""
        if request.stage == "votes":
            shapes = reply_shapes(self.study.votes)
            return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        return {name: request.weights[name] for name in self.private}

    def _length(self, reply: Accepted) -> float:
        """How long a reply is beside others, for its site: all patients may have voted alike."""
        receipt = reply.receipt
        if receipt.stage == "votes":
            entries = sum(count for (count,) in reply_shapes(self.study.votes).values())
            noise = receipt.event.noise_multiplier * math.sqrt(entries)
            return reply.update_norm / (receipt.declared_patients + noise)
        return reply.update_norm * self._share(receipt)

    def _share(self, receipt: Receipt) -> float:
        return receipt.declared_patients if self.study.federation.weights == "declared" else 1.0


def update_norm(reply: Weights, sent: Weights) -> float:
    """How far a reply lies from what was sent, in what DP-SGD has clipped.

    A site's generator moves far where it was trained, and not at all where it waited.
    """
    clipped = {n: v for n, v in reply.items() if not n.startswith("generator.")}
    return distance(clipped, {name: sent[name] for name in clipped})


def require_receipt(answer: Answer, request: Request) -> None:
    """Hold a receipt against the request and the arrays it came with.

    Raises:
        FederationError: It speaks of something else.
    """
    receipt = answer.receipt
    if (receipt.study_hash, receipt.round_number, receipt.stage, receipt.request_id) != (
        request.study_hash, request.round_number, request.stage, request.request_id,
    ):  # fmt: skip
        raise FederationError("a receipt of another request")
    if receipt.payload_digest != digest(answer.weights):
        raise FederationError("a receipt of other arrays")


def _entry(reply: Accepted) -> dict[str, object]:
    receipt = reply.receipt
    return {
        "site": receipt.site,
        "state": "accepted",
        "epsilon": receipt.epsilon_total,
        "delta": receipt.delta,
        "noise": receipt.noise,
        "declared_patients": receipt.declared_patients,
        "update_norm": reply.update_norm,
        "receipt": receipt.sequence,
    }


def _entry_of(site: str, state: str, reason: str) -> dict[str, object]:
    return {"site": site, "state": state, "reason": reason}


def _said(entry: dict[str, object]) -> str:
    return f"{entry['site']} {entry['state']}: {entry['reason']}"
