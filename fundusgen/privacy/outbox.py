"""The outbox: what a site has answered, byte for byte, for when it is asked again.

A reply is put here after training and before the ledger's commit; a round that is asked for
again is answered from here and never trained twice. Two noisy answers to one question would let
the noise be averaged away. Files are named by request and digest and are never overwritten, so
that the reply of an attempt that crashed can never stand in for the one that was committed.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fundusgen.errors import LedgerError
from fundusgen.storage import sync_folder, write_atomically

# Name of the folder, beside the ledger.
OUTBOX = "outbox"
_REQUEST_ID = re.compile(r"[0-9a-f]{8,128}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NAME = re.compile(r"[0-9a-f]{8,128}\.[0-9a-f]{64}", re.ASCII)
# What `storage.write_atomically` leaves when it is killed.
_PART = re.compile(r"\.[0-9a-f]{8,128}\.[0-9a-f]{64}\.[0-9a-f]+\.tmp", re.ASCII)


class Outbox:
    """The folder of one site's replies.

    Guarantee: `get` returns exactly the bytes that were `put` under that request and digest, or
    nothing, or raises; what `put` has returned from survives a power cut. Files are readable by
    the owner only. It decides nothing: whether a reply may go out is the ledger's to say.
    Edge cases: the folder is made, with its parents, at the first `put`; an absent folder is an
    empty outbox.

    Args:
        folder: `outbox/` of the site folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Remember the folder; nothing is touched yet."""
        self.folder = Path(folder)

    def put(self, request_id: str, payload: bytes) -> str:
        """Keep a reply and give its SHA-256 digest, in lower-case hex.

        Guarantee: on return the reply is on the disk under its digest. Atomic: a crash leaves
        all of it or none.
        Edge cases: the same bytes again are no error. Other bytes under the same request are
        kept beside the first: which of them counts is the ledger's committed digest. A damaged
        file under the same name is replaced by the right bytes.

        Raises:
            LedgerError: The request id is not hexadecimal, or the folder cannot be written.
        """
        check_request_id(request_id)
        digest = hashlib.sha256(payload).hexdigest()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self.folder / f"{request_id}.{digest}", payload, mode=0o600)
            sync_folder(self.folder.parent)
        except OSError as error:
            raise LedgerError(
                f"a reply could not be kept in the outbox: {error.strerror or error}",
                expected="a writable folder with room for the reply",
                remedy="Free space or repair the permissions; nothing was sent",
            ) from error
        return digest

    def require_room(self, size: int) -> None:
        """Make sure that a reply can be kept, before anything is spent on it.

        Guarantee: returns only if the folder could be written and the disk had room just now.
        Edge cases: leaves nothing behind; a crash in between leaves a part, which `sweep` removes.

        Args:
            size: Bytes of the reply, at least.

        Raises:
            LedgerError: The folder cannot be written, or the disk is full.
        """
        part = self.folder / f".{'0' * 8}.{'0' * 64}.{secrets.token_hex(6)}.tmp"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with part.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            part.unlink()
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise LedgerError(
                f"a reply could not be kept in the outbox: {error.strerror or error}",
                expected=f"a writable folder with room for {size:,} bytes",
                remedy="Free space or repair the permissions; nothing was spent",
            ) from error

    def get(self, request_id: str, expected_digest: str) -> bytes | None:
        """Give the reply that was put under this request and digest.

        Guarantee: the bytes have the expected digest.
        Edge cases: None where there is none.

        Raises:
            LedgerError: An argument is malformed, the file cannot be read, or its bytes have
                another digest.
        """
        check_request_id(request_id)
        check_digest("expected_digest", expected_digest)
        path = self.folder / f"{request_id}.{expected_digest}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as file:
                payload = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(
                f"a reply in the outbox cannot be read: {error.strerror or error}",
                remedy="Repair the permissions of the outbox, or restore it from a backup",
            ) from error
        found = hashlib.sha256(payload).hexdigest()
        if found != expected_digest:
            raise LedgerError(
                f"the reply to request {request_id} is damaged: its digest is {found}",
                expected=f"the digest {expected_digest}, as committed",
                remedy="Restore the outbox from a backup; the round is not trained again",
            )
        return payload

    def replies(self) -> frozenset[tuple[str, str]]:
        """Give `(request id, digest)` of every reply that is kept.

        Guarantee: names only what `put` kept, whether or not it was ever sent.
        Edge cases: an absent folder has none. Foreign files and parts left by crashes are none.

        Raises:
            LedgerError: The folder cannot be read.
        """
        try:
            names = os.listdir(self.folder) if self.folder.is_dir() else []  # noqa: PTH208
        except OSError as error:
            raise LedgerError(
                f"the outbox cannot be read: {error.strerror or error}",
                remedy="Repair the permissions of the outbox",
            ) from error
        split = (name.partition(".") for name in names if _NAME.fullmatch(name))
        return frozenset((request_id, digest) for request_id, _, digest in split)

    def requests(self) -> frozenset[str]:
        """Give the ids of all requests to which there is a reply.

        Guarantee: as `replies`.
        Edge cases: as `replies`.

        Raises:
            LedgerError: The folder cannot be read.
        """
        return frozenset(request_id for request_id, _ in self.replies())

    def sweep(self, keep: Collection[str]) -> int:
        """Delete replies whose digest is not in `keep`, and parts left by crashes.

        Guarantee: deletes only files that this class wrote, and none whose digest is kept. Call
        it with the digests of all answered rows of an open ledger; what remains uncommitted was
        never sent and never will be.
        Edge cases: an absent folder holds nothing to sweep. Foreign files stay.

        Returns:
            How many files were deleted.

        Raises:
            LedgerError: The folder cannot be read or written.
        """
        swept = 0
        try:
            for path in list(self.folder.iterdir()) if self.folder.is_dir() else []:
                reply = _NAME.fullmatch(path.name)
                unwanted = reply and path.name.partition(".")[2] not in keep
                if unwanted or _PART.fullmatch(path.name):
                    path.unlink()
                    swept += 1
        except OSError as error:
            raise LedgerError(
                f"the outbox cannot be swept: {error.strerror or error}",
                remedy="Repair the permissions of the outbox",
            ) from error
        return swept


def check_request_id(request_id: str) -> None:
    """Refuse a request id that is not 8 to 128 lower-case hexadecimal digits.

    Guarantee: what passes is safe as a file name and as a ledger entry.
    Edge cases: upper case is refused, so that one request has one name on any file system.

    Raises:
        LedgerError: The id is malformed.
    """
    if not isinstance(request_id, str) or not _REQUEST_ID.fullmatch(request_id):
        raise LedgerError(
            f"the request id {str(request_id)[:40]!r} is malformed",
            expected="8 to 128 lower-case hexadecimal digits",
        )


def check_digest(name: str, digest: str) -> None:
    """Refuse a digest that is not SHA-256 in lower-case hex.

    Guarantee: what passes has 64 hexadecimal digits.
    Edge cases: the empty string is refused.

    Raises:
        LedgerError: The digest is malformed.
    """
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise LedgerError(
            f"{name} is {str(digest)[:80]!r}", expected="a SHA-256 digest in lower-case hex"
        )
