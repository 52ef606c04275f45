"""Files that are there whole or not at all.

Everything that the data package writes goes through here: into a temporary file in the same
folder, to the disk, and only then to its name. A crash leaves the earlier file or none.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY_PREFIX = ".unfinished-"


@contextmanager
def replace_file(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Write a file that takes its name only when it is complete and on the disk.

    Two processes may do this to one name at once: the last to finish wins, both are whole.

    Args:
        path: The name to take. Its folder must exist.
        mode: Permissions of the finished file; only its owner may read it unless told otherwise.

    Yields:
        A binary stream to write to; it may be read and sought as well.

    Raises:
        OSError: If the folder cannot be written or the disk is full; nothing is left behind.
    """
    descriptor, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Without this the new name itself may be lost in a power cut.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
