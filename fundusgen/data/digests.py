"""What each image file holds, as a digest, without reading unchanged files again.

The cache is keyed by content. Reading every file at every start would cost minutes at a large
site, so digests are kept with the file's size, times and inode, as version control does. The
time of the last status change cannot be set by a user, so an edit that restores the old
modification time is noticed too.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from fundusgen.data.intake import read_image_file
from fundusgen.errors import ImageError
from fundusgen.storage import write_atomically

INDEX_NAME = "digests.json"
# What stands in place of a digest starts with this; it names no content.
UNREADABLE = "unreadable: "
# A file changed twice within the clock's step may look the same; younger files are read again.
SETTLED_NS = 2_000_000_000


def digest_of(content: bytes) -> str:
    """Name a file's content: SHA-256, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digests_of(paths: Sequence[Path], cache_dir: Path) -> list[str]:
    """Digest each file; one that cannot be read gives the reason instead of a digest.

    Args:
        paths: Image files.
        cache_dir: Folder that keeps what is known from earlier calls; must exist.

    Returns:
        One text for each path: 64 hexadecimal digits, or the reason after `unreadable: `.
    """
    index = cache_dir / INDEX_NAME
    known = _load(index)
    digests: list[str] = []
    entries: dict[str, list[object]] = {}
    for path in paths:
        state = _state(path)
        entry = known.get(str(path))
        if state is not None and entry is not None and entry[0] == state:
            digests.append(str(entry[1]))
            entries[str(path)] = entry
            continue
        try:
            digest = digest_of(read_image_file(path))
        except ImageError as error:
            digests.append(UNREADABLE + error.found)
            continue
        digests.append(digest)
        # A file that was written to while it was read has another state now.
        if state is not None and state == _state(path) and _settled(state):
            entries[str(path)] = [state, digest]
    if entries != known:
        write_atomically(index, json.dumps(entries), mode=0o600)
    return digests


def _state(path: Path) -> list[int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _settled(state: list[int]) -> bool:
    return max(state[1], state[2]) < time.time_ns() - SETTLED_NS


def _load(index: Path) -> dict[str, list[object]]:
    """Read what is kept; anything but what was written counts as nothing known."""
    try:
        content = json.loads(index.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        path: entry
        for path, entry in content.items()
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
    }
