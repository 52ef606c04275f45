"""Fixtures that several test areas share."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photographs, one site a sub-folder; skips where there is none."""
    folder = Path(os.environ.get("FUNDUSGEN_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "odir_china" / "manifest.csv").is_file():
        pytest.skip("no real photographs here: set FUNDUSGEN_REAL_DATA to a folder of sites")
    return folder
