"""Every byte that a joined site sends, over rounds that it answers and one that it refuses."""

import base64
import bz2
import gzip
import json
import signal
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import httpx
import numpy as np
import pytest
import yaml
from deployed_sites import deployed_study, known_sites, phantom_site
from federation_processes import BIN, Federation, free_port
from flwr.app import Array, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from recorded_traffic import PUSH_OBJECT, Known, complaints, pushed
from recording_proxy import PUSH, Call, RecordingProxy

from fundusgen.code import code_hash
from fundusgen.federation.exchange import Answer, Refusal
from fundusgen.federation.messages import reply_from_record
from fundusgen.federation.weights import digest
from fundusgen.privacy.keys import signing_key
from fundusgen.privacy.ledger import Ledger, LedgerRow
from fundusgen.privacy.policy import RefusalReason
from fundusgen.privacy.receipts import require_signed
from fundusgen.run_folder import RunFolder
from fundusgen.site import SiteFolder

pytestmark = [pytest.mark.xdist_group("flower"), pytest.mark.slow]
REPOSITORY = Path(__file__).parents[2]
ANSWERED_ROUNDS = 3
DECLARED_PATIENTS = 10


class PlainFederation(Federation):
    """A federation without TLS, whose traffic can be read on its way.

    Attributes:
        entrance: Where sites join: the SuperLink itself, or what stands before it.
    """

    entrance = ""

    def __enter__(self) -> Self:
        """Start the SuperLink."""
        port = free_port()
        self.address = self.entrance = f"127.0.0.1:{port}"
        self.home("server").mkdir(parents=True)
        (self.home("server") / "config.toml").write_text(
            '[superlink]\ndefault = "study"\n\n[superlink.study]\n'
            f'address = "{self.address}"\ninsecure = true\n'
        )
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(port), "--insecure"]
        self._start("server", command)
        deadline = time.monotonic() + 60
        with httpx.Client(trust_env=False, timeout=2) as client:
            while time.monotonic() < deadline:
                try:
                    if client.get(f"http://{self.address}/health").is_success:
                        return self
                except httpx.HTTPError:
                    time.sleep(0.1)
        raise AssertionError(f"the SuperLink did not start:\n{self.log('server')}")

    def join_command(self, site: Path) -> list[str]:
        """The operator's one command."""
        command = [str(BIN / "fundusgen"), "site", "join", str(site)]
        return [*command, "--superlink", self.entrance, "--insecure"]


@dataclass(frozen=True)
class Recorded:
    """A site, and what it has sent.

    Attributes:
        site: Its folder.
        sent: All bytes.
        calls: The requests that these bytes are.
        known: What is known of the site, by which they are judged.
    """

    site: SiteFolder
    sent: bytes
    calls: tuple[Call, ...]
    known: Known


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A study of rounds that a site answers, until its cap is lowered before the last one."""
    folder = tmp_path_factory.mktemp("recorded")
    study = deployed_study(folder / "study.yaml", sites=1, rounds=ANSWERED_ROUNDS + 1)
    site = phantom_site(folder / "north", study, code=code_hash())
    settings = site.settings()
    data = settings.data.model_copy(update={"declared_patients": DECLARED_PATIENTS})
    site.write(settings.model_copy(update={"data": data}), site.policy())
    keys = known_sites(folder / "keys", site)

    def lower_the_cap(reply: int) -> None:
        # The server has not seen this reply yet: it cannot have asked for the next round.
        if reply == ANSWERED_ROUNDS:
            content = yaml.safe_load(site.policy_file.read_text())
            site.policy_file.write_text(yaml.safe_dump({**content, "max_epsilon": 0.5}))

    with (
        PlainFederation(folder / "federation") as federation,
        RecordingProxy(federation.address, lower_the_cap) as proxy,
    ):
        federation.entrance = proxy.address
        federation.join_site("north", site.path)
        federation.wait_logged("north", f"joined {proxy.address}")
        run = RunFolder(folder / "run")
        run_config = f'run="{run.path}" study="{folder}/study.yaml" sites="{keys}"'
        federation.run(REPOSITORY, run_config)
        wait_ended(run)
        assert "(north refused: budget-exhausted)" in run.status()["message"], run.status()
        assert federation.interrupt("north", signal.SIGTERM) == 0
    return Recorded(site, proxy.sent, tuple(proxy.calls()), Known.of(site, study))


def wait_ended(run: RunFolder) -> None:
    """Wait for a run's end by its folder; Flower's command would take a core meanwhile."""
    deadline = time.monotonic() + 300
    while run.status()["state"] in ("prepared", "running"):
        assert time.monotonic() < deadline, run.status()
        time.sleep(0.1)


def test_every_reply_is_recorded_and_is_what_the_ledger_has_released(recorded: Recorded) -> None:
    assert b"".join(call.raw for call in recorded.calls) == recorded.sent
    replies = [reply_from_record(one.message.content) for one in pushed(recorded.calls)]
    *answers, refusal = replies
    assert refusal == Refusal(RefusalReason.BUDGET_EXHAUSTED)
    rows = released(recorded.site)
    assert len(rows) == len(answers) == ANSWERED_ROUNDS
    for number, (answer, row) in enumerate(zip(answers, rows, strict=True), start=1):
        assert isinstance(answer, Answer)
        require_signed(answer.receipt, signing_key(recorded.site.keys).public_key())
        assert answer.receipt.round_number == answer.receipt.sequence == row.round_number == number
        assert answer.receipt.payload_digest == digest(answer.weights)
        assert answer.receipt.digest == row.receipt_digest


def released(site: SiteFolder) -> list[LedgerRow]:
    with Ledger.read(site.ledger_file) as ledger:
        return [row for row in ledger.rows() if row.state == "released"]


def test_nothing_leaves_but_outputs_of_mechanisms_receipts_and_one_word(recorded: Recorded) -> None:
    assert complaints(recorded.calls, recorded.known) == []


def test_the_moment_at_which_an_answer_was_ready_does_not_leave(recorded: Recorded) -> None:
    """To the microsecond it tells how long the training took, as the durations left out do."""
    requests = [
        PushMessagesRequest.FromString(call.body) for call in recorded.calls if call.path == PUSH
    ]
    for request in requests:
        for message in request.messages_list:
            # The server's own figures, sent back: the study's timeout is a whole number.
            assert message.metadata.ttl == 180.0


# What follows makes sure that the two tests above can fail.


def with_call(calls: Sequence[Call], path: str, change: Callable[[Call], Call]) -> list[Call]:
    """A recording in which the first call of a path is another."""
    place = next(place for place, call in enumerate(calls) if call.path == path)
    return [*calls[:place], change(calls[place]), *calls[place + 1 :]]


def with_message(calls: Sequence[Call], number: int, message: Message) -> list[Call]:
    """A recording in which one message is another, sent as Flower sends it."""
    gone = pushed(calls)[number].contents
    pushes = [call for call in calls if call.path == PUSH]
    request = PushMessagesRequest.FromString(pushes[number].body)
    request.message_object_trees[0].CopyFrom(get_object_tree(message))
    kept, parts = [], []
    for call in calls:
        if call.path == PUSH_OBJECT:
            sent = PushObjectRequest.FromString(call.body)
            if sent.object_id in gone:
                parts.append((call, sent))
                continue
        kept.append(replace(call, body=encoded(request)) if call is pushes[number] else call)
    call, sent = parts[0]
    for name, part in get_all_nested_objects(message).items():
        sent.object_id, sent.object_content = name, part.deflate()
        kept.append(replace(call, body=encoded(sent)))
    return kept


def encoded(request: PushMessagesRequest | PushObjectRequest | GetFabRequest) -> bytes:
    return bytes(request.SerializeToString(deterministic=True))


def with_content(
    recorded: Recorded, change: Callable[[RecordDict], None], number: int = 0
) -> list[Call]:
    """A recording in which the content of one message is another."""
    message = pushed(recorded.calls)[number].message
    content = RecordDict(dict(message.content))
    change(content)
    return with_message(recorded.calls, number, make_message(message.metadata, content))


def with_receipt(recorded: Recorded, **values: object) -> list[Call]:
    """A recording in which the first receipt says something else."""

    def change(content: RecordDict) -> None:
        stated = json.loads(str(content.config_records["receipt"]["json"])) | values
        text = json.dumps(stated, sort_keys=True, separators=(",", ":"))
        content["receipt"] = ConfigRecord({"json": text})

    return with_content(recorded, change)


def with_bytes(recorded: Recorded, hidden: bytes) -> list[Call]:
    """A recording in which an array of the right name and shape holds other bytes."""

    def change(content: RecordDict) -> None:
        arrays = content.array_records["arrays"]
        name, array = max(arrays.items(), key=lambda item: len(item[1].data))
        values = array.numpy()
        filled = np.zeros(values.nbytes, np.uint8)
        filled[: len(hidden)] = np.frombuffer(hidden, np.uint8)
        others = {other: arrays[other] for other in arrays}
        others[name] = Array(filled.view(np.float32).reshape(values.shape))
        content["arrays"] = type(arrays)(others)

    return with_content(recorded, change)


def with_array(recorded: Recorded, change: Callable[[Array], Array]) -> list[Call]:
    """A recording in which the first array of the first message is another."""

    def change_first(content: RecordDict) -> None:
        arrays = dict(content.array_records["arrays"])
        first = min(arrays)
        content["arrays"] = type(content.array_records["arrays"])(
            {name: change(array) if name == first else array for name, array in arrays.items()}
        )

    return with_content(recorded, change_first)


def metrics(content: RecordDict) -> None:
    content["metrics"] = MetricRecord({"loss": 0.71})


def duration(call: Call) -> Call:
    request = PushMessagesRequest.FromString(call.body)
    request.clientapp_runtime_list.append(1.25)
    return replace(call, body=encoded(request))


def patient_as_hash(call: Call) -> Call:
    request = GetFabRequest.FromString(call.body)
    request.hash_str = "phantom00003"
    return replace(call, body=encoded(request))


def sentence(content: RecordDict) -> None:
    content["refusal"] = ConfigRecord({"reason": "no-data of phantom00003"})


def seconds(content: RecordDict) -> None:
    content.config_records["receipt"]["seconds"] = 1.25


def error(recorded: Recorded) -> Message:
    metadata = pushed(recorded.calls)[0].message.metadata
    return make_message(metadata, error=Error(0, "no such file: north"))


LEAKS: dict[str, tuple[str, Callable[[Recorded], list[Call]]]] = {
    "a metric beside the arrays": ("the parts of", lambda r: with_content(r, metrics)),
    "a metric beside a refusal": (
        "the parts of",
        lambda r: with_content(r, metrics, ANSWERED_ROUNDS),
    ),
    "a sentence as a refusal": (
        "a word of no list",
        lambda r: with_content(r, sentence, ANSWERED_ROUNDS),
    ),
    "a duration beside the receipt": ("a receipt: ", lambda r: with_content(r, seconds)),
    "a loss in the receipt": ("the keys of a receipt", lambda r: with_receipt(r, loss=0.71)),
    "the true number of patients in the receipt": (
        "the patients in a receipt",
        lambda r: with_receipt(r, declared_patients=12),
    ),
    "the true number of images in the receipt": (
        "a true number",
        lambda r: with_receipt(r, round_number=23),
    ),
    "the text of an error": ("an error: ", lambda r: list(with_message(r.calls, 0, error(r)))),
    "an array of another shape": (
        "an array of",
        lambda r: with_array(r, lambda array: Array(np.ones((12, 2), np.float32))),
    ),
    "bytes behind an array": (
        "more bytes in an array",
        lambda r: with_array(
            r,
            lambda a: Array(dtype=a.dtype, shape=a.shape, stype=a.stype, data=a.data + b"aged 64"),
        ),
    ),
    "how long the answer took": (
        "clientapp_runtime_list",
        lambda r: with_call(r.calls, PUSH, duration),
    ),
    "a field that Flower does not have": (
        "more bytes in /v1/fleet/push-messages",
        lambda r: with_call(r.calls, PUSH, lambda c: replace(c, body=c.body + b"\xfa\x3e\x02ok")),
    ),
    "a header": (
        "a header of",
        lambda r: with_call(
            r.calls, PUSH, lambda c: replace(c, headers=(*c.headers, ("x-loss", "0.71")))
        ),
    ),
    "another call": (
        "a call of POST /v1/fleet/push-logs",
        lambda r: with_call(r.calls, PUSH, lambda c: replace(c, path="/v1/fleet/push-logs")),
    ),
    "an object beside the messages": (
        "part of no message",
        lambda r: [
            *r.calls,
            next(
                replace(c, body=encoded(PushObjectRequest(object_id="0", object_content=b"loss")))
                for c in r.calls
                if c.path == PUSH_OBJECT
            ),
        ],
    ),
    "a patient in place of a digest": (
        "a name that",
        lambda r: with_call(r.calls, "/v1/fleet/get-fab", patient_as_hash),
    ),
    "an image": ("a part of an image", lambda r: with_bytes(r, image(r)[:4000])),
    "an image in base64": (
        "a part of an image, at 30, in base64",
        lambda r: with_bytes(r, b"/" * 40 + base64.b64encode(image(r)[:3000])),
    ),
    "an image, compressed": (
        "a part of an image",
        lambda r: with_bytes(r, bz2.compress(image(r)[:3000])),
    ),
    "pixels of the cache": (
        "a part of an image",
        lambda r: with_bytes(r, next(r.site.cache.glob("framed-*.bin")).read_bytes()[3000:7000]),
    ),
    "the site's folder, compressed": (
        "a name that",
        lambda r: with_bytes(r, gzip.compress(str(r.site.path).encode())),
    ),
    "a patient, compressed and in hexadecimal digits": (
        "a name that",
        lambda r: with_bytes(r, zlib.compress(b"phantom00003 has amd").hex().encode()),
    ),
}


def image(recorded: Recorded) -> bytes:
    return min((recorded.site.path / "data" / "images").iterdir()).read_bytes()


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_would_be_found(recorded: Recorded, leak: str) -> None:
    told, made = LEAKS[leak]
    found = complaints(made(recorded), recorded.known)
    assert found
    assert told in found[0]
