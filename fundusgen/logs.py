"""Logs that go to a file of their own and nowhere else."""

import logging
import time
import unicodedata
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
    formatter = _OneLine("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
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


def harmless(line: str) -> str:
    """Spell out what would end a line, or move or hide what stands on a terminal.

    Texts from elsewhere, such as the names of arrays, reach logs within error messages.

    Args:
        line: A line, without its end.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _UNSEEN
        else character
        for character in line
    )


# Control and format characters, surrogates, separators of lines and paragraphs.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class _OneLine(logging.Formatter):
    """Begins a line with a time only where a record begins, whatever its message holds."""

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line, and a traceback indented below it."""
        first, *traceback = super().format(record).split("\n")
        return "\n".join([harmless(first), *(f"    {harmless(line)}" for line in traceback)])

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of the record itself."""
        record.message = harmless(record.message)
        return super().formatMessage(record)


class _QuietFileHandler(logging.FileHandler):
    """A file handler that loses what it cannot write.

    Python's own prints the record to the terminal instead, with all its arguments.
    """

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing."""
