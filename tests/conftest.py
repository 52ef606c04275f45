"""Fixtures that several test areas share."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fundusgen.cli.main import main
from fundusgen.site import GradSampleMode
from fundusgen.study import Study
from fundusgen.training import places

REPOSITORY = Path(__file__).parent.parent


def pytest_configure() -> None:
    """Hear Ctrl-C, as tests of it do, also where a shell has started us in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def places_are_tried_once() -> Iterator[None]:
    """Let sites of many tests share what one has found of batches; it takes seconds."""
    tried, found = places.equal_at_all_places, dict[object, bool]()

    def known(study: Study, size: int, mode: GradSampleMode, device: torch.device) -> bool:
        key = (places._digest(study, size, mode, device), size)
        if key not in found:
            found[key] = tried(study, size, mode, device)
        return found[key]

    places.equal_at_all_places = known
    yield
    places.equal_at_all_places = tried


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photographs, one site a sub-folder; skips where there is none."""
    folder = Path(os.environ.get("FUNDUSGEN_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "odir_china" / "manifest.csv").is_file():
        pytest.skip("no real photographs here: set FUNDUSGEN_REAL_DATA to a folder of sites")
    return folder


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `fundusgen` with arguments; gives its exit status, output and errors."""
    # Help is set to the width of the terminal.
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fundusgen", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run
