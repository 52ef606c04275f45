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
    StageSettings,
    Study,
    dump_study,
    load_study,
)
from simulations.benchmarks.child import Row, row
from simulations.benchmarks.generation import REAL_STUDY
from simulations.run import prepare, simulate

SITES, PATIENTS, ROUNDS, SLOTS = 4, 400, 8, 2
_ANSWERED = re.compile(r"round (\d+) of \S+ answered in ([\d.]+) s, ([\d.]+) s of it computing")


def run() -> list[Row]:
    """Measure with as many steps a round as the real study has, and with four."""
    return [*run_with(None), *run_with(4)]


def run_with(steps: int | None) -> list[Row]:
    """Run the study in a temporary folder and take the times from what it leaves.

    Args:
        steps: DP-SGD steps a round; None for the real study's.
    """
    cores = os.cpu_count() or 1
    cpus_per_client = max(1, cores // SLOTS)
    with TemporaryDirectory() as name:
        study_file = Path(name) / "study.yaml"
        study = bench_study(steps)
        study_file.write_text(dump_study(study))
        folder, _, sites = prepare(study_file, Path(name) / "run", None, lambda _: None)
        simulate(folder, sites, cpus_per_client=cpus_per_client, on_tick=lambda: None)
        steps = study.dpsgd.steps_per_round
        return _rows(folder, steps, slots=min(SITES, cores // cpus_per_client))


def bench_study(steps: int | None) -> Study:
    """The real study, shortened and for phantoms, with other steps a round if wanted."""
    real = load_study(REAL_STUDY)
    mix = {name: 1.0 for name in real.conditions if name in ("normal", "dr2", "amd")}
    stage = real.dpsgd
    stage = stage.model_copy(update={"steps_per_round": steps or stage.steps_per_round})
    names = ("north", "south", "east", "west")
    return real.model_copy(
        update={
            "study_id": "bench",
            "prior": None,
            "stages": StageSettings(dpsgd=stage),
            "federation": FederationSettings(rounds=ROUNDS, min_sites=SITES, quorum=SITES),
            "simulation": SimulationSettings(
                phantom_sites=tuple(
                    PhantomSite(name=name, patients=PATIENTS, camera="amber", mix=mix)
                    for name in names
                )
            ),
        }
    )


def _rows(run: RunFolder, steps: int, slots: int) -> list[Row]:
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
            f"round outside of training, {SITES} sites, 64 px, {slots} slots, {steps} steps",
            100 * (1 - training / total), "%", 15.0,
        ),
        row(
            f"of which at the sites around training, {steps} steps",
            100 * (answering - training) / total, "%",
        ),
        row(f"a round, {steps} steps", total / len(rounds), "s"),
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
