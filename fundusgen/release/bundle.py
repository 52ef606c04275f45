"""The release bundle: a folder that speaks for itself, with checksums and a signature.

generator.safetensors, model.json   what draws, and no more; `fundusgen generate BUNDLE`
README.md, card.html                the model card
evaluation.html, evaluation.json    what was measured
gate.json                           what was demanded, and what was found
study.yaml, receipts/, known-sites/ what was trained, and what it cost whom
release.pub                         the key that signed, for comparison; never to verify with
SHA256SUMS                          `sha256sum -c SHA256SUMS`
SHA256SUMS.sig                      signature over it: ECDSA on P-384 with SHA-384
"""

import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fundusgen.errors import RunError
from fundusgen.storage import sync_folder

CHECKSUMS, SIGNATURE, PUBLIC_KEY = "SHA256SUMS", "SHA256SUMS.sig", "release.pub"
_SIGNING = ec.ECDSA(hashes.SHA384())
# A name that means the same to every tool on every system: no `..`, no root, nothing to escape.
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_LINE = re.compile(rf"([0-9a-f]{{64}})  ({_NAME}(?:/{_NAME})*)", re.ASCII)
# Far above any bundle's list; what is not signed yet must not fill the memory.
_MOST_BYTES = 1 << 24


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
        ValueError: A path is none that means the same everywhere, or is written here anyway.
        OSError: It cannot be written.
    """
    require_free(out)
    own = {CHECKSUMS, SIGNATURE, PUBLIC_KEY}
    odd = [name for name in files if name in own or not _LINE.fullmatch(f"{'0' * 64}  {name}")]
    if odd:
        raise ValueError(f"{', '.join(odd)} cannot be paths in a bundle")
    files = {**files, PUBLIC_KEY: public_pem(key.public_key())}
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


def require_apart(out: Path, others: Iterable[Path]) -> None:
    """Refuse a bundle within a folder that is read, or around one that holds a key.

    What is written there would be taken for receipts later, or a key for a part of the bundle.

    Raises:
        RunError: It lies so.
    """
    place = out.resolve()
    for other in others:
        there = other.resolve()
        if place == there or there in place.parents or place in there.parents:
            raise RunError(
                f"--out {out} and {other} lie within each other",
                expected="a folder of its own for the bundle",
                remedy="Choose another --out",
            )


def verify_bundle(folder: Path, key: ec.EllipticCurvePublicKey) -> list[str]:
    """Check a bundle against the key of who released it.

    Guarantee: an empty list means that the holder of `key` signed the list of checksums, that
        every other file and folder of the bundle is in it, that each file is as it was, and that
        nothing else lies there.
    Edge cases: `release.pub` in the bundle is not believed, only compared. A link, a pipe or a
        device is a fault, and is not opened; so is what cannot be read.

    Args:
        folder: The bundle.
        key: Of who released it, from elsewhere.

    Returns:
        What is wrong; empty where nothing is.

    Raises:
        RunError: There is no bundle.
    """
    try:
        sums, signature = _small(folder / CHECKSUMS), _small(folder / SIGNATURE)
    except OSError as error:
        raise RunError(
            f"There is no release bundle in {folder}: {error.strerror or error}",
            expected=f"a folder with {CHECKSUMS} and {SIGNATURE}",
            remedy="Give the folder that `fundusgen release` wrote",
        ) from error
    try:
        key.verify(signature, sums, _SIGNING)
    except InvalidSignature:
        # What the list says is then worth nothing.
        return [f"{CHECKSUMS} is not signed by this key"]
    listed: dict[str, str] = {}
    for line in sums.decode("utf-8", "replace").removesuffix("\n").split("\n"):
        found = _LINE.fullmatch(line)
        if found is None or found[2] in listed:
            return [f"{CHECKSUMS} has a line that is no checksum of another file"]
        listed[found[2]] = found[1]
    if PUBLIC_KEY not in listed:
        return [f"{CHECKSUMS} does not list {PUBLIC_KEY}"]
    return _differences(folder, listed)


def _differences(folder: Path, listed: Mapping[str, str]) -> list[str]:
    """What a bundle has besides its list, lacks, or has otherwise."""
    faults = []
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    for name in sorted(listed):
        if name not in there:
            faults.append(f"{name} is missing")
        elif there[name].is_symlink():
            faults.append(f"{name} is a link")
        elif not _is_file(there[name]):
            faults.append(f"{name} is no file")
        else:
            try:
                if _digest(there[name]) != listed[name]:
                    faults.append(f"{name} was changed")
            except OSError as error:
                faults.append(f"{name} cannot be read: {error.strerror}")
    folders = {
        parent.as_posix()
        for name in listed
        for parent in PurePosixPath(name).parents
        if not there.get(parent.as_posix(), folder).is_symlink()
    }
    own = {name for name in (CHECKSUMS, SIGNATURE) if not there[name].is_symlink()}
    extra = there.keys() - listed.keys() - folders - own
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
        key = serialization.load_pem_public_key(_small(path))
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
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


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _small(path: Path) -> bytes:
    """Read what may be anything: a pipe would never end, and a huge file fill the memory."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path.name} is no file")
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise OSError(f"{path.name} has more than {_MOST_BYTES:,} bytes")
    return content


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
