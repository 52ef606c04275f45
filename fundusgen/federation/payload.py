"""An answer as the bytes that the outbox keeps: a receipt and its arrays, together."""

from safetensors import SafetensorError
from safetensors.numpy import load, save

from fundusgen.errors import FederationError, LedgerError, ReceiptError
from fundusgen.federation.exchange import Answer
from fundusgen.privacy.outbox import Outbox
from fundusgen.privacy.receipts import Receipt

_LENGTH_BYTES = 8


def to_payload(answer: Answer) -> bytes:
    """Pack an answer: length of the receipt, receipt in JSON, arrays in safetensors."""
    receipt = answer.receipt.to_json().encode()
    arrays: bytes = save(answer.weights)
    return len(receipt).to_bytes(_LENGTH_BYTES, "big") + receipt + arrays


def from_payload(payload: bytes) -> Answer:
    """Unpack what `to_payload` packed; gives equal arrays bit for bit.

    Raises:
        FederationError: The bytes are no payload.
    """
    end = _LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "big")
    try:
        receipt = Receipt.from_json(payload[_LENGTH_BYTES:end].decode())
        return Answer(load(payload[end:]), receipt)
    except (UnicodeDecodeError, ReceiptError, SafetensorError) as error:
        raise FederationError("a stored answer cannot be read") from error


def receipts_in(outbox: Outbox) -> dict[tuple[str, str], Receipt | None]:
    """Read the receipts of all replies that are kept, by request and digest of the reply.

    A reply that is damaged, or no answer, has None: what it was, nobody can tell from it.

    Raises:
        LedgerError: The folder cannot be read.
    """
    found: dict[tuple[str, str], Receipt | None] = {}
    for request_id, digest in sorted(outbox.replies()):
        try:
            payload = outbox.get(request_id, digest)
            found[request_id, digest] = from_payload(payload).receipt if payload else None
        except (FederationError, LedgerError):
            found[request_id, digest] = None
    return found
