"""What a SuperNode may send: the judge of a recording.

Everything is on a list of what may be there, down to the last field of a call; and nothing that
is known of the site's patients may be anywhere in the bytes, however it is packed.
"""

import base64
import binascii
import bz2
import csv
import json
import lzma
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from google.protobuf.message import Message as Protobuf  # type: ignore[import-untyped]
from PIL import Image
from recording_proxy import PUSH, Call

from fundusgen.models.factory import build_model, private_names
from fundusgen.privacy.policy import RefusalReason
from fundusgen.privacy.receipts import Receipt
from fundusgen.site import SiteFolder
from fundusgen.study import Study

PUSH_OBJECT = "/v1/fleet/push-object"
_METADATA = (
    "run_id", "message_id", "reply_to_message_id", "src_node_id", "dst_node_id", "src_task_id",
    "dst_task_id", "group_id", "message_type", "created_at", "ttl",
)  # fmt: skip
# Every call, with every field that it may have. `clientapp_runtime_list` is none of them.
CALLS: Mapping[str, tuple[type[Protobuf], frozenset[str]]] = {
    f"/v1/fleet/{path}": (kind, frozenset(allowed))
    for path, kind, allowed in (
        ("register-node", RegisterNodeFleetRequest, ["public_key"]),
        ("activate-node", ActivateNodeRequest, ["public_key", "heartbeat_interval"]),
        ("deactivate-node", DeactivateNodeRequest, ["node_id"]),
        ("unregister-node", UnregisterNodeFleetRequest, ["node_id"]),
        ("send-node-heartbeat", SendNodeHeartbeatRequest, ["node.node_id", "heartbeat_interval"]),
        ("pull-messages", PullMessagesRequest, ["node.node_id"]),
        ("get-run", GetRunRequest, ["node.node_id", "run_id"]),
        ("get-fab", GetFabRequest, ["node.node_id", "run_id", "hash_str"]),
        ("pull-object", PullObjectRequest, ["node.node_id", "run_id", "object_id"]),
        (
            "confirm-message-received",
            ConfirmMessageReceivedRequest,
            ["node.node_id", "run_id", "message_object_id"],
        ),
        (
            "push-messages",
            PushMessagesRequest,
            [
                "node.node_id",
                "message_object_trees.object_id",
                # Empty: what is in a message is pushed as objects.
                "messages_list.content",
                *(f"messages_list.metadata.{name}" for name in _METADATA),
            ],
        ),
        (
            "push-object",
            PushObjectRequest,
            ["node.node_id", "run_id", "object_id", "object_content", "session_id"],
        ),
    )
}
_BASE64 = r"[A-Za-z0-9+/]+={0,2}"
HEADERS: Mapping[str, str] = {
    "host": r"127\.0\.0\.1:\d+",
    "accept": r"application/protobuf",
    "accept-encoding": r"[a-z, ]+",
    "connection": r"keep-alive",
    "user-agent": r"python-httpx/[\d.]+",
    "content-type": r"application/protobuf",
    "content-length": r"\d+",
    "flwr-package-name": r"flwr",
    "flwr-package-version": r"[\d.]+",
    "flwr-component-name": r"SuperNode",
    "flwr-public-key": _BASE64,
    "flwr-timestamp": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00",
    "flwr-signature": _BASE64,
}
_PIECE_BYTES = 16


@dataclass(frozen=True)
class Known:
    """What is known of a site and a study, by which a recording is judged.

    Attributes:
        shapes: Of the study's private parameters, by name.
        declared_patients: What the site makes public.
        counts: True numbers of patients and images.
        words: Patients' names, names of files and folders.
        pieces: Parts of the images, as files, as pixels and as the cache holds them.
    """

    shapes: Mapping[str, tuple[int, ...]]
    declared_patients: int
    counts: frozenset[int]
    words: tuple[bytes, ...]
    pieces: frozenset[bytes]

    @classmethod
    def of(cls, site: SiteFolder, study: Study) -> "Known":
        """Read all that must not leave a site that has answered."""
        data = site.settings().data
        with data.manifest.open(newline="") as manifest:
            rows = list(csv.DictReader(manifest))
        patients = {row["patient_id"] for row in rows}
        images = [data.root / row["file"] for row in rows]
        words = patients | {image.name for image in images} | {str(site.path), data.manifest.name}
        caches = list(site.cache.glob("framed-*.bin"))
        assert caches
        model = build_model(study)
        return cls(
            {
                name: tuple(model.get_parameter(name).shape)
                for name in private_names(model, study.model.private)
            },
            data.declared_patients,
            frozenset({len(patients), len(images)}),
            tuple(word.encode(code) for word in sorted(words) for code in ("utf-8", "utf-16-le")),
            frozenset(
                piece
                for content in [
                    *(path.read_bytes() for path in [*images, *caches]),
                    *(np.asarray(Image.open(image)).tobytes() for image in images),
                ]
                for piece in _pieces(content)
            ),
        )


@dataclass(frozen=True)
class Pushed:
    """A message that was sent, with the bytes of its parts by their ids."""

    message: Message
    contents: Mapping[str, bytes]


def complaints(calls: Sequence[Call], known: Known) -> list[str]:
    """Why a recording is not what it may be: its calls, else its messages, else its bytes."""
    return (
        [text for call in calls for text in _of_call(call)]
        or list(_of_messages(calls, known))
        or list(_of_bytes(b"".join(call.raw for call in calls), known))
    )


def parsed(call: Call) -> Protobuf:
    """The request of a call that is on the list."""
    kind, _ = CALLS[call.path]
    return kind.FromString(call.body)


def pushed(calls: Sequence[Call]) -> list[Pushed]:
    """Put the messages together again that were sent in parts."""
    objects = {}
    for call in calls:
        if call.path == PUSH_OBJECT:
            sent = PushObjectRequest.FromString(call.body)
            objects[sent.object_id] = sent.object_content
    found = []
    for call in calls:
        if call.path == PUSH:
            for tree in PushMessagesRequest.FromString(call.body).message_object_trees:
                contents = {
                    part.object_id: objects[part.object_id] for part in iterate_object_tree(tree)
                }
                message = inflate_object_from_contents(
                    tree.object_id, contents, keep_object_contents=True
                )
                assert isinstance(message, Message)
                found.append(Pushed(message, contents))
    return found


def _of_call(call: Call) -> Iterator[str]:
    if call.method != "POST" or call.path not in CALLS:
        yield f"a call of {call.method} {call.path}"
        return
    for name, value in call.headers:
        if not re.fullmatch(HEADERS.get(name.lower(), "(?!)"), value):
            yield f"a header of {call.path}: {name}: {value}"
    request = parsed(call)
    # What is on no list of Flower's own is lost here.
    request.DiscardUnknownFields()
    if request.SerializeToString(deterministic=True) != call.body:
        yield f"more bytes in {call.path} than its fields have"
    _, allowed = CALLS[call.path]
    for name in sorted({name for name, _ in _fields(request)} - allowed):
        yield f"a field of {call.path}: {name}"


def _fields(message: Protobuf, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every field that is set, by its place; the children of a tree have their parent's."""
    entries = message.ListFields()
    if not entries and prefix:
        yield prefix.removesuffix("."), None
    for descriptor, value in entries:
        place = prefix if descriptor.name == "children" else f"{prefix}{descriptor.name}."
        repeated = not isinstance(value, str | bytes | int | float | Protobuf)
        for one in value if repeated else [value]:
            if isinstance(one, Protobuf):
                yield from _fields(one, place)
            else:
                yield place.removesuffix("."), one


def _scalars(message: Protobuf) -> list[object]:
    return [value for _, value in _fields(message)]


def _of_messages(calls: Sequence[Call], known: Known) -> Iterator[str]:
    messages = pushed(calls)
    used = {name for one in messages for name in one.contents}
    for call in calls:
        request = parsed(call)
        if isinstance(request, PushObjectRequest) and request.object_id not in used:
            yield f"an object that is part of no message: {request.object_content[:40]!r}"
        yield from _counts(_scalars(request), known)
    for one in messages:
        yield from _of_message(one, known)


def _of_message(one: Pushed, known: Known) -> Iterator[str]:
    for name, part in get_all_nested_objects(one.message).items():
        if get_object_id(one.contents[name]) != name or part.deflate() != one.contents[name]:
            yield f"more bytes in a {type(part).__name__} than it holds"
    if one.message.has_error():
        yield f"an error: {one.message.error.reason}"
        return
    content = one.message.content
    if set(content) == {"refusal"}:
        yield from _of_refusal(content["refusal"])
    elif set(content) == {"arrays", "receipt"}:
        yield from _of_arrays(content["arrays"], known)
        yield from _of_receipt(content["receipt"], known)
    else:
        yield f"the parts of a message: {sorted(content)}"


def _of_refusal(refusal: object) -> Iterator[str]:
    words = {reason.value for reason in RefusalReason}
    if not isinstance(refusal, ConfigRecord) or set(refusal) != {"reason"}:
        yield f"a refusal: {refusal}"
    elif refusal["reason"] not in words:
        yield f"a word of no list: {refusal['reason']!r}"


def _of_arrays(arrays: object, known: Known) -> Iterator[str]:
    if not isinstance(arrays, ArrayRecord) or list(arrays) != sorted(known.shapes):
        yield f"other arrays than the study's private parameters: {arrays}"
        return
    for name, array in arrays.items():
        values = array.numpy()
        if values.dtype != np.float32 or values.shape != known.shapes[name]:
            yield f"an array of {values.dtype} {values.shape}: {name}"
        if Array(values).data != array.data:
            yield f"more bytes in an array than its values: {name}"


def _of_receipt(receipt: object, known: Known) -> Iterator[str]:
    if not isinstance(receipt, ConfigRecord) or set(receipt) != {"json"}:
        yield f"a receipt: {receipt}"
        return
    text = str(receipt["json"])
    stated = json.loads(text)
    expected = {field.name for field in fields(Receipt)} | {"version"}
    if set(stated) != expected:
        yield f"the keys of a receipt: {sorted(set(stated) ^ expected)}"
    # A second key of the same name, or another spacing, would be lost in `stated`.
    elif Receipt.from_json(text).to_json() != text:
        yield "a receipt that is written in another way than receipts are"
    elif stated["declared_patients"] != known.declared_patients:
        yield f"the patients in a receipt: {stated['declared_patients']}"
    yield from _counts(_numbers(stated), known)


def _numbers(value: object) -> list[object]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [number for one in inner for number in _numbers(one)]
    return [value]


def _counts(values: Collection[object], known: Known) -> Iterator[str]:
    for value in values:
        stated = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(stated, int | float) and stated in known.counts:
            yield f"a true number of patients or images: {value}"


def _of_bytes(raw: bytes, known: Known) -> Iterator[str]:
    for how, content in _readings(raw):
        for word in known.words:
            if word in content:
                yield f"a name that is known at the site only: {word!r}{how}"
        for start in range(len(content) - _PIECE_BYTES + 1):
            if content[start : start + _PIECE_BYTES] in known.pieces:
                yield f"a part of an image, at {start}{how}"
                break


def _readings(raw: bytes, how: str = "", depth: int = 2) -> Iterator[tuple[str, bytes]]:
    """The bytes as they are, and as what they may stand for."""
    yield how, raw
    if depth:
        for kind, content in _unpacked(raw):
            yield from _readings(content, f"{how}, in {kind}", depth - 1)


def _unpacked(raw: bytes) -> Iterator[tuple[str, bytes]]:
    for run in re.finditer(rb"(?:[0-9a-fA-F]{2}){8,}", raw):
        yield "hexadecimal digits", binascii.unhexlify(run[0])
    for run in re.finditer(rb"[A-Za-z0-9+/_-]{16,}", raw):
        digits = run[0].translate(bytes.maketrans(b"-_", b"+/"))
        for start in range(4):
            whole = digits[start : start + (len(digits) - start) // 4 * 4]
            yield "base64", base64.b64decode(whole)
    packers: dict[bytes, Callable[[], Any]] = {
        rb"\x1f\x8b\x08|x[\x01\x5e\x9c\xda]": lambda: zlib.decompressobj(47),
        rb"BZh": bz2.BZ2Decompressor,
        rb"\xfd7zXZ": lzma.LZMADecompressor,
    }
    for magic, make in packers.items():
        for found in re.finditer(magic, raw):
            try:
                content = make().decompress(raw[found.start() :])
            except (zlib.error, lzma.LZMAError, OSError, EOFError):
                continue
            if content:
                yield "a compressed part", content


def _pieces(content: bytes) -> Iterator[bytes]:
    """Parts of some content that are not there by chance: a row of zeros is anywhere."""
    for start in range(0, len(content) - _PIECE_BYTES + 1, _PIECE_BYTES):
        piece = content[start : start + _PIECE_BYTES]
        if len(set(piece)) > _PIECE_BYTES // 2:
            yield piece
