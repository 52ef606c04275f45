"""A site's keys: the pair that signs its receipts, and the secret under its data's fingerprint.

keys/node         EC P-384, OpenSSH, for its owner only; Flower's SuperNode uses it too
keys/node.pub     its public half, which the study lead gets
keys/fingerprint  32 secret bytes, never shown to anyone
"""

import base64
import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from itertools import count
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.errors import SiteError
from fundusgen.storage import write_atomically

PRIVATE_KEY, PUBLIC_KEY, FINGERPRINT_KEY = "node", "node.pub", "fingerprint"
_FINGERPRINT_BYTES = 32


def make_keys(folder: Path) -> tuple[str, ...]:
    """Make those of a site's keys that are missing.

    Guarantee: private files are readable by their owner only; each file is whole or absent. No
    key that is there is changed or lost: what it has signed stays checkable.
    Edge cases: a public half that is missing is computed from the private one. If it is the
    private one that is missing, there is a new pair, and the old public half is kept as
    `node.pub.1`, or the next number. A link that leads nowhere counts as a key that is there.

    Returns:
        Names of the files that were made.

    Raises:
        SiteError: The public half is missing, and the private one cannot be used.
        OSError: The folder cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = []
    if not os.path.lexists(folder / PRIVATE_KEY):
        _set_aside(folder / PUBLIC_KEY)
        private = ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        write_atomically(folder / PRIVATE_KEY, private, mode=0o600)
        made.append(PRIVATE_KEY)
    if not os.path.lexists(folder / PUBLIC_KEY):
        public = public_text(signing_key(folder).public_key())
        write_atomically(folder / PUBLIC_KEY, public + "\n")
        made.append(PUBLIC_KEY)
    if not os.path.lexists(folder / FINGERPRINT_KEY):
        secret = secrets.token_bytes(_FINGERPRINT_BYTES)
        write_atomically(folder / FINGERPRINT_KEY, secret, mode=0o600)
        made.append(FINGERPRINT_KEY)
    return tuple(made)


def _set_aside(path: Path) -> None:
    """Keep a file under the next free name, if it is there."""
    if os.path.lexists(path):
        names = (path.with_name(f"{path.name}.{number}") for number in count(1))
        path.rename(next(name for name in names if not os.path.lexists(name)))


def public_keys(folder: Path) -> list[ec.EllipticCurvePublicKey]:
    """Read every public key that a folder holds: the present one, then those set aside.

    Guarantee: only keys on P-384.
    Edge cases: an absent folder has none. A file that is no key is passed over: what it has
    signed cannot be checked with it anyway.
    """
    keys = []
    for path in sorted(folder.glob(f"{PUBLIC_KEY}*"), key=lambda path: (len(path.name), path.name)):
        with suppress(SiteError, OSError):
            keys.append(public_key(path.read_bytes(), str(path)))
    return keys


def site_public_key(folder: Path) -> ec.EllipticCurvePublicKey:
    """Read a site's public key, after making sure that all of its keys can be used.

    Guarantee: the key is the other half of the one that signs, and is what `node.pub` says.
    Edge cases: none.

    Raises:
        SiteError: A key is missing or of another kind, or the two halves are not of one pair.
    """
    own = signing_key(folder).public_key()
    path = folder / PUBLIC_KEY
    try:
        stated = public_key(path.read_bytes(), str(path))
    except OSError as error:
        raise _unusable(path, error.strerror or "an error of the disk") from error
    if public_text(stated) != public_text(own):
        raise _unusable(path, f"it is not the other half of {PRIVATE_KEY}")
    data_fingerprint(folder, "")
    return own


def signing_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """Read the site's private key.

    Guarantee: a key on P-384, or an error that does not show it.
    Edge cases: a key with a password is refused: nobody is there to type it.

    Raises:
        SiteError: There is none, or it is of another kind.
    """
    path = folder / PRIVATE_KEY
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable(path, type(error).__name__) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _unusable(path, "another kind of key")
    return key


def public_key(text: str | bytes, source: str) -> ec.EllipticCurvePublicKey:
    """Read a public key from a line such as `node.pub` holds.

    Guarantee: a key on P-384.
    Edge cases: a comment after the key is ignored.

    Args:
        text: `ecdsa-sha2-nistp384 AAAA...`.
        source: Names the key in errors.

    Raises:
        SiteError: The text is no such key.
    """
    data = text.encode() if isinstance(text, str) else text
    try:
        key = serialization.load_ssh_public_key(data.strip())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unusable(Path(source), type(error).__name__) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _unusable(Path(source), "another kind of key")
    return key


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a public key from a file.

    Guarantee: as `public_key`.
    Edge cases: as `public_key`.

    Raises:
        SiteError: The file cannot be read, or is no such key.
    """
    try:
        return public_key(path.read_bytes(), str(path))
    except OSError as error:
        raise SiteError(
            f"The key {path} cannot be read: {error.strerror or error}",
            expected="a node.pub",
            remedy="Check the path",
        ) from error


def public_text(key: ec.EllipticCurvePublicKey) -> str:
    """Write a public key as one line in OpenSSH's format.

    Guarantee: `public_key` reads it back.
    Edge cases: no comment, no end of line.
    """
    return key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Name a public key as `ssh-keygen -lf` does: `SHA256:` and 43 characters.

    Guarantee: other keys have other names.
    Edge cases: none.
    """
    blob = base64.b64decode(public_text(key).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def data_fingerprint(folder: Path, content_digest: str) -> str:
    """Name the data that a mechanism used, without saying anything about it.

    Guarantee: HMAC-SHA256 under the site's secret: to who does not have that, a random text that
    is equal for equal data. It is for the site's own ledger and is never sent.
    Edge cases: another secret gives other names to the same data.

    Raises:
        SiteError: The secret is missing or too short.
    """
    path = folder / FINGERPRINT_KEY
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise _unusable(path, error.strerror or "an error of the disk") from error
    if len(secret) != _FINGERPRINT_BYTES:
        raise _unusable(path, f"{len(secret)} bytes")
    return hmac.new(secret, content_digest.encode(), hashlib.sha256).hexdigest()


def _unusable(path: Path, found: str) -> SiteError:
    return SiteError(
        f"The key {path} cannot be used ({found})",
        expected="keys as `fundusgen site init` makes them (EC P-384, OpenSSH, no password)",
        remedy="Restore the site's keys from a backup, or make missing ones with "
        "`fundusgen site keys DIR`, and give the study lead the new node.pub",
    )
