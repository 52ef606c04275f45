"""The release bundle: a folder that speaks for itself, with checksums and a signature.

generator.safetensors, model.json   what draws; `fundusgen generate BUNDLE`
README.md, card.html                the model card
evaluation.html, evaluation.json    what was measured
gate.json                           what was demanded, and what was found
study.yaml, receipts/, known-sites/ what was trained, and what it cost whom
SHA256SUMS                          `sha256sum -c SHA256SUMS`
SHA256SUMS.sig, release.pub         signature over it: ECDSA on P-384 with SHA-384
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.errors import RunError
from fundusgen.storage import sync_folder

CHECKSUMS, SIGNATURE, PUBLIC_KEY = "SHA256SUMS", "SHA256SUMS.sig", "release.pub"
_SIGNING = ec.ECDSA(hashes.SHA384())
_LINE = re.compile(r"([0-9a-f]{64})  (.+)", re.ASCII)


def write_bundle(
    out: Path, files: Mapping[str, bytes | Path], key: ec.EllipticCurvePrivateKey
) -> None:
    """Write a bundle, whole or not at all.

    Args:
        out: Folder to make; must not be there, or be empty.
        files: Content, or file to copy, by path within the bundle, with slashes.
        key: Signs it.

    Raises:
        RunError: `out` is in use.
        OSError: It cannot be written.
    """
    require_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        half.chmod(0o755)
        for name, content in files.items():
            path = half / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_bytes(content)
        sums = "".join(f"{_digest(half / name)}  {name}\n" for name in sorted(files)).encode()
        (half / CHECKSUMS).write_bytes(sums)
        (half / SIGNATURE).write_bytes(key.sign(sums, _SIGNING))
        (half / PUBLIC_KEY).write_bytes(public_pem(key.public_key()))
        for path in half.rglob("*"):
            _sync(path)
        if out.is_dir():
            out.rmdir()
        half.rename(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def require_free(out: Path) -> None:
    """Refuse to write where something is.

    Raises:
        RunError: There is.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f"{out} is there already and not empty",
            expected="a new or empty folder",
            remedy="Choose another --out",
        )


def verify_bundle(folder: Path, key: ec.EllipticCurvePublicKey) -> list[str]:
    """Check a bundle against the key of who released it.

    Guarantee: an empty list means that the holder of `key` signed the list of checksums, that
        every file of the bundle is in it and as it was, and that nothing else lies there.
    Edge cases: `release.pub` in the bundle is not believed; a link is a fault.

    Args:
        folder: The bundle.
        key: Of who released it, from elsewhere.

    Returns:
        What is wrong; empty where nothing is.

    Raises:
        RunError: There is no bundle.
    """
    try:
        sums, signature = (folder / CHECKSUMS).read_bytes(), (folder / SIGNATURE).read_bytes()
    except OSError as error:
        raise RunError(
            f"There is no release bundle in {folder}: {error.strerror}",
            expected=f"a folder with {CHECKSUMS} and {SIGNATURE}",
            remedy="Give the folder that `fundusgen release` wrote",
        ) from error
    try:
        key.verify(signature, sums, _SIGNING)
    except InvalidSignature:
        # What the list says is then worth nothing.
        return [f"{CHECKSUMS} is not signed by this key"]
    listed: dict[str, str] = {}
    for line in sums.decode("utf-8", "replace").splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            return [f"{CHECKSUMS} has a line that is no checksum"]
        listed[found[2]] = found[1]
    faults = []
    there = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    for name in sorted(listed):
        path = folder / name
        if name not in there:
            faults.append(f"{name} is missing")
        elif path.is_symlink():
            faults.append(f"{name} is a link")
        elif _digest(path) != listed[name]:
            faults.append(f"{name} was changed")
    extra = there - set(listed) - {CHECKSUMS, SIGNATURE, PUBLIC_KEY}
    return faults + [f"{name} was added" for name in sorted(extra)]


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as openssl reads it."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def read_public_pem(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a key that `public_pem` wrote.

    Raises:
        RunError: It is no such key.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _no_key(path) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _no_key(path)
    return key


def _no_key(path: Path) -> RunError:
    return RunError(
        f"{path} is no public key of a release",
        expected=f"{PUBLIC_KEY}, as whoever released it gave it to you",
        remedy="Ask them for it, on another way than the bundle came",
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Bring a file or folder to the disk before the bundle gets its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
