"""The project's own apps on the deployment runtime: two rounds on two real site folders."""

from pathlib import Path

import pytest
import yaml
from deployed_sites import known_sites
from federation_processes import Federation
from typer.testing import CliRunner

from fundusgen.cli.main import app as command_line
from fundusgen.privacy.keys import PUBLIC_KEY
from fundusgen.privacy.ledger import Ledger
from fundusgen.privacy.policy_file import add_to_list
from fundusgen.run_folder import RunFolder
from fundusgen.site import SiteFolder
from fundusgen.study import load_study

pytestmark = [pytest.mark.xdist_group("flower"), pytest.mark.slow, pytest.mark.real_data]
REPOSITORY = Path(__file__).parents[2]
SITES = {"drive_netherlands": 40, "chase_uk": 10}
STUDY = {
    "study_id": "deployed",
    "seed": 1,
    "conditions": ["unknown"],
    "image_size": 32,
    "model": {"kind": "vae", "width": 8, "latent": 8},
    "stages": {"dpsgd": {"steps_per_round": 2, "sample_rate": 0.25, "max_grad_norm": 1.0}},
    "privacy": {"unit": "patient", "target_epsilon": 8, "target_delta": 1e-3},
    "federation": {"rounds": 2, "min_sites": 2, "quorum": 2, "timeout_s": 180},
}


def test_two_hospitals_train_two_rounds_and_their_ledgers_hold_them(
    tmp_path: Path, real_data: Path
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(STUDY))
    sites = [SiteFolder(tmp_path / name) for name in SITES]
    with Federation(tmp_path / "federation") as federation:
        for site, (name, patients) in zip(sites, SITES.items(), strict=True):
            manifest = real_data / name / "manifest.csv"
            options = {"--name": name, "--manifest": str(manifest), "--delta": "1e-3"}
            options["--declared-patients"] = str(patients)
            arguments = [word for option in options.items() for word in option]
            made = CliRunner().invoke(command_line, ["site", "init", str(site.path), *arguments])
            assert made.exit_code == 0, made.output
            add_to_list(site.policy_file, "studies", load_study(study).study_hash, "deployed")
            federation.register(site.keys / PUBLIC_KEY, name)
            federation.join_site(name, site.path)
        keys = known_sites(tmp_path / "keys", *sites)
        run = RunFolder(tmp_path / "run")
        run_config = f'run="{run.path}" study="{study}" sites="{keys}"'
        run_id = federation.run(REPOSITORY, run_config)
        record = federation.wait_finished(run_id, limit_s=300)
        assert record["status"] == "finished:completed", (record, run.status())
    assert run.status()["state"] == "finished"
    for site in sites:
        with Ledger.open(site.ledger_file) as ledger:
            assert [row.round_number for row in ledger.rows()] == [1, 2]
            assert 0 < ledger.epsilon(1e-3) <= 8.01
