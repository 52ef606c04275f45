"""What a round costs outside of training: a real study of four phantom sites on Flower.

Sites of equal size with the real study's model and stage train with one thread each, in as many
client slots as fit (two on two cores). If nothing but training took time, a round would take

    (sum over sites of seconds of training) / slots

That is set against the time from one round's checkpoint to the next one's, which holds all else:
messages, reading patients, ledgers, accounting, the server's averaging, pictures and checkpoint,
and slots that are idle while a last site trains. How long a site trained is known to its own
client.log only. The first round also starts processes and frames images, and is not counted.
"""

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from fundusgen.run_folder import RunFolder
from fundusgen.study import (
    FederationSettings,
    PhantomSite,
    SimulationSettings,
    Study,
    dump_study,
    load_study,
)
from simulations.benchmarks.child import Row, row
from simulations.benchmarks.generation import REAL_STUDY
from simulations.run import prepare, simulate

SITES, PATIENTS, ROUNDS, SLOTS = 4, 400, 8, 2
_ANSWERED = re.compile(r"round (\d+) of \S+ answered in ([\d.]+) s, ([\d.]+) s of it training")


def run() -> list[Row]:
    """Run the study in a temporary folder and take the times from what it leaves."""
    cores = os.cpu_count() or 1
    cpus_per_client = max(1, cores // SLOTS)
    with TemporaryDirectory() as name:
        study_file = Path(name) / "study.yaml"
        study_file.write_text(dump_study(bench_study()))
        folder, _, sites = prepare(study_file, Path(name) / "run", None, lambda _: None)
        simulate(folder, sites, cpus_per_client=cpus_per_client, on_tick=lambda: None)
        return _rows(folder, slots=min(SITES, cores // cpus_per_client))


def bench_study() -> Study:
    """The real study, shortened and for phantoms."""
    real = load_study(REAL_STUDY)
    mix = {name: 1.0 for name in real.conditions if name in ("normal", "dr2", "amd")}
    names = ("north", "south", "east", "west")
    return real.model_copy(
        update={
            "study_id": "bench",
            "federation": FederationSettings(rounds=ROUNDS, min_sites=SITES, quorum=SITES),
            "simulation": SimulationSettings(
                phantom_sites=tuple(
                    PhantomSite(name=name, patients=PATIENTS, camera="amber", mix=mix)
                    for name in names
                )
            ),
        }
    )


def _rows(run: RunFolder, slots: int) -> list[Row]:
    ended = {
        int(path.stem[-4:]): path.stat().st_mtime for path in run.checkpoints.glob("*.safetensors")
    }
    answered_s, trained_s = _seconds_at_sites(run)
    rounds = range(2, ROUNDS + 1)
    total = ended[ROUNDS] - ended[1]
    training = sum(trained_s[number] for number in rounds) / slots
    answering = sum(answered_s[number] for number in rounds) / slots
    return [
        row(
            f"round outside of training, {SITES} sites, 64 px, {slots} slots",
            100 * (1 - training / total), "%", 15.0,
        ),
        row("of which at the sites around training", 100 * (answering - training) / total, "%"),
        row("a round", total / len(rounds), "s"),
    ]  # fmt: skip


def _seconds_at_sites(run: RunFolder) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds that all sites together took to answer and to train, by round."""
    answered: dict[int, float] = {}
    trained: dict[int, float] = {}
    for log in run.sites.glob("*/client.log"):
        for found in _ANSWERED.finditer(log.read_text()):
            number = int(found[1])
            answered[number] = answered.get(number, 0.0) + float(found[2])
            trained[number] = trained.get(number, 0.0) + float(found[3])
    return answered, trained
