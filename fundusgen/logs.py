"""Logs that go to a file of their own and nowhere else."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def log_to(path: Path, name: str) -> Iterator[logging.Logger]:
    """Send the logger `name`, from INFO up, to a file for the length of the block.

    A client's log tells of patients' data. It stays at the site, readable by its owner only: it
    is not passed on to other handlers, nor to the terminal, which Flower's simulation runtime
    uploads.
    """
    logger = logging.getLogger(name)
    path.touch(mode=0o600)
    handler = _QuietFileHandler(path, encoding="utf-8")
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    before = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        logger.propagate, logger.level = before
        # What is still buffered may not fit on the disk; an answer does not fail for its log.
        with suppress(OSError):
            handler.close()


class _QuietFileHandler(logging.FileHandler):
    """A file handler that loses what it cannot write.

    Python's own prints the record to the terminal instead, with all its arguments.
    """

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing."""
