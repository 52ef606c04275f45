"""Flower's entry on the server: find the run folder, run the study, say how it ended."""

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fundusgen.environment import write_environment
from fundusgen.errors import FundusgenError, RunError
from fundusgen.federation.messages import pack_arrays
from fundusgen.logs import log_to
from fundusgen.models.factory import reply_names
from fundusgen.privacy.keys import public_key
from fundusgen.run_folder import RunFolder
from fundusgen.storage import write_atomically
from fundusgen.study import Study, dump_study, load_study
from fundusgen.training.prior import default_cache_dir
from server.postprocess import Postprocess
from server.preparation import prepare_public
from server.receipts import ReceiptBook
from server.strategy import StudyStrategy

app = ServerApp()
log = logging.getLogger("fundusgen.server")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of the run folder that the run config names."""
    run = RunFolder(Path(str(context.run_config["run"])).resolve())
    run.path.mkdir(parents=True, exist_ok=True)
    with log_to(run.path / "server.log", "fundusgen.server"):
        try:
            study = _study(run, str(context.run_config["study"]))
            _learn_sites(run, str(context.run_config["sites"]))
            _run(grid, run, study)
        except FundusgenError as error:
            log.error("%s", error)
            run.write_status("failed", message=str(error))
            raise


def _study(run: RunFolder, study_file: str) -> Study:
    """The run's study; a study file is copied into a run folder that has none."""
    if not study_file:
        return run.study()
    study = load_study(Path(study_file))
    if run.study_file.is_file() and run.study().study_hash != study.study_hash:
        raise RunError(
            f"{run.path} holds another study than {study_file}",
            expected="a folder of its own for each study",
            remedy="Choose another run folder",
        )
    write_atomically(run.study_file, dump_study(study))
    return study


def _learn_sites(run: RunFolder, folder: str) -> None:
    """Copy the public keys of the sites into the run folder, which then tells the whole story."""
    if not folder:
        return
    found = sorted(Path(folder).glob("*.pub"))
    if not found:
        raise RunError(
            f"{folder} holds no public key",
            expected="NAME.pub of every hospital, NAME being that of its site.yaml",
            remedy="Ask each hospital for its keys/node.pub",
        )
    for path in found:
        public_key(path.read_bytes(), str(path))
        write_atomically(run.known_sites / path.name, path.read_bytes())


def _run(grid: Grid, run: RunFolder, study: Study) -> None:
    run.write_status("running")
    write_environment(run.environment_file)
    prepare_public(study, run, default_cache_dir())
    postprocess = Postprocess(study, run)
    strategy = StudyStrategy(
        study,
        reply_names(study),
        postprocess,
        ReceiptBook(run),
    )
    strategy.start(
        grid,
        pack_arrays(postprocess.request(postprocess.state.round_number + 1)),
        num_rounds=study.total_rounds,
        timeout=study.federation.timeout_s,
    )
    postprocess.finish_run()
    run.write_status("finished")
