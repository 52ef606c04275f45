"""Logs that go to a file of their own and nowhere else."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def log_to(path: Path, name: str) -> Iterator[logging.Logger]:
    """Send the logger `name`, from INFO up, to a file for the length of the block.

    A client's log tells of patients' data. It stays at the site: it is not passed on to other
    handlers, which in Flower would upload it to the server.
    """
    logger = logging.getLogger(name)
    handler = logging.FileHandler(path, encoding="utf-8")
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
        handler.close()
        logger.propagate, logger.level = before
