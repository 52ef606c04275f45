"""Run a study on one machine: make the site folders, start Flower's simulation runtime, watch.

A simulation is the real thing on one machine: site folders with ledgers of their own, and the
same two apps. What was begun and not finished is gone on with.
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from client.site import SIMULATED_SITES
from fundusgen.environment import SHARE_CORES
from fundusgen.errors import RunError
from fundusgen.federation.checkpoint import latest_checkpoint
from fundusgen.privacy.keys import PUBLIC_KEY
from fundusgen.run_folder import RunFolder
from fundusgen.site import SiteFolder
from fundusgen.storage import write_atomically
from fundusgen.study import Study, dump_study, load_study
from simulations.bundle import own_app
from simulations.flower import LocalFlower
from simulations.sites import make_sites

_LOCK = ".simulate.lock"


def prepare(
    study_file: Path, out: Path, sources: Path | None, say: Callable[[str], None]
) -> tuple[RunFolder, Study, int]:
    """Make or find the run folder with its study and its site folders.

    Args:
        study_file: The study.
        out: The run folder, new or of an unfinished run of the same study.
        sources: Folder of site folders with real images, if any.
        say: Told what is being done.

    Returns:
        The run folder, the study, and the number of sites.

    Raises:
        StudyError: The study is wrong.
        RunError: The folder holds another study or a finished run.
    """
    study = load_study(study_file)
    run = RunFolder(out.resolve())
    if run.study_file.is_file():
        _require_unfinished(run, study)
        done = latest_checkpoint(run.checkpoints, study.study_hash)
        say(f"going on with {out} after round {done.round_number if done else 0}")
    else:
        _require_empty(run)
    run.path.mkdir(parents=True, exist_ok=True)
    sites = make_sites(study, run.sites, sources, say)
    if sites < study.federation.min_sites:
        raise RunError(
            f"The simulation has {sites} sites",
            expected=f"at least federation.min_sites, {study.federation.min_sites}",
            remedy="Add sites, or lower federation.min_sites",
        )
    for folder in sorted(path.parent for path in run.sites.glob("*/site.yaml")):
        site = SiteFolder(folder)
        write_atomically(
            run.known_sites / f"{site.settings().name}.pub", (site.keys / PUBLIC_KEY).read_bytes()
        )
    write_atomically(run.study_file, dump_study(study))
    return run, study, sites


def simulate(
    run: RunFolder, sites: int, *, cpus_per_client: int, on_tick: Callable[[], None]
) -> None:
    """Run a prepared study to its end on Flower's simulation runtime.

    Args:
        run: The prepared run folder.
        sites: Number of its sites.
        cpus_per_client: Cores that one site's training may use.
        on_tick: Called about twice a second.

    Raises:
        RunError: The run failed; says why.
    """
    # What an earlier attempt left says nothing of this one.
    run.write_status("prepared")
    environment = {SIMULATED_SITES: str(run.sites), **SHARE_CORES}
    log_file = run.path / "flower.log"
    with LocalFlower(run.path / "flower", log_file=log_file, environment=environment) as flower:
        try:
            flower.run(
                own_app(),
                run_config={"run": str(run.path), "study": "", "sites": ""},
                num_supernodes=sites,
                cpus_per_client=cpus_per_client,
                on_tick=on_tick,
            )
        except RunError as error:
            raise _explained(run) or error from error
    if run.status()["state"] != "finished":
        raise RunError(
            "Flower reports a completed run, but its server did not finish the study",
            remedy=f"See {log_file}",
        )


def _explained(run: RunFolder) -> RunError | None:
    """The server's own account of a failure, which is shorter than Flower's."""
    status = run.status()
    if status["state"] != "failed":
        return None
    return RunError(f"The run failed: {status['message']}")


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Hold a run folder for one simulation at a time.

    Raises:
        RunError: Another process has it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"Another simulation is running in {out}",
                expected="one at a time",
                remedy="Wait for it, or choose another --out",
            ) from error
        yield


def _require_empty(run: RunFolder) -> None:
    """Refuse a folder of something else; clear away sites whose making was cut short."""
    if not run.path.exists():
        return
    names = {path.name for path in run.path.iterdir()} - {_LOCK}
    if names - {run.sites.name} or list(run.sites.glob("*/ledger.db*")):
        raise RunError(
            f"{run.path} is there already and holds no run",
            expected="a new or empty folder, or one of an unfinished run",
            remedy="Choose another --out",
        )
    shutil.rmtree(run.sites, ignore_errors=True)


def _require_unfinished(run: RunFolder, study: Study) -> None:
    earlier = run.study()
    if earlier != study:
        raise RunError(
            f"{run.path} holds a run of another study, or of an earlier version of this one",
            expected="the same study",
            remedy="Choose another --out",
        )
    if run.status()["state"] == "finished":
        raise RunError(
            f"The run in {run.path} is finished",
            remedy=f"Look at {run.report}, or choose another --out",
        )
