"""`fundusgen simulate`: a whole study on this machine."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fundusgen.cli.progress import progress
from fundusgen.run_folder import RunFolder
from fundusgen.site import SiteFolder
from fundusgen.study import Study
from fundusgen.training.forecast import (
    LEARN_MORE,
    WARN_NOISE_OVER_SIGNAL,
    forecast,
    noise_over_votes,
    votes_verdict,
)
from fundusgen.training.mechanisms import noise_for
from fundusgen.training.prior import default_cache_dir
from server.preparation import prepare_public
from simulations.run import only_one, prepare
from simulations.run import simulate as run_simulation


def simulate(
    study: Annotated[Path, typer.Argument(help="Study file; examples are in simulations/studies.")],
    out: Annotated[Path, typer.Option(help="Run folder; one that was cut short is gone on with.")],
    sites: Annotated[
        Path | None,
        typer.Option(help="Folder of site folders with real images; phantoms where absent."),
    ] = None,
    cpus_per_client: Annotated[
        int, typer.Option(min=1, help="Cores for one site; as many sites train at once as fit.")
    ] = 1,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Make the folders, then stop; for `flwr run`.")
    ] = False,
) -> None:
    """Run a study on this machine, with Flower's simulation runtime and a ledger a site."""
    console = Console(stderr=False, highlight=False)
    with only_one(out):
        run, settings, count = prepare(study, out, sites, console.print)
        _print_forecast(run, settings, console)
        if prepare_only:
            console.print(f"{count} sites are ready in {run.sites}")
            return
        _prepare_public(run, settings, console)
        rounds = _Rounds(run, console)
        run_simulation(run, count, cpus_per_client=cpus_per_client, on_tick=rounds.tick)
        rounds.tick()
    print_summary(run, console)


def _prepare_public(run: RunFolder, study: Study, console: Console) -> None:
    """Make prior and vote space here, where their progress can be shown."""
    if study.prior is None:
        return
    with progress(console) as show:
        prepare_public(
            study,
            run,
            default_cache_dir(),
            workers=os.cpu_count() or 1,
            on_progress=lambda what, done, total: show(what, done, total, ""),
        )
    console.print(f"the prior, learned from phantoms alone, is in {run.prior}", soft_wrap=True)


def _print_forecast(run: RunFolder, study: Study, console: Console) -> None:
    folders = [SiteFolder(path.parent) for path in sorted(run.sites.glob("*/site.yaml"))]
    patients = [site.settings().data.declared_patients for site in folders]
    if study.stages.votes:
        noise = noise_for(study, "votes")
        console.print(f"{len(folders)} sites, votes with noise multiplier {noise:.3f}")
        console.print(f"{votes_verdict(0.0, noise_over_votes(study, patients, noise))}")
    if study.stages.dpsgd is None:
        return
    expected = forecast(study, patients)
    console.print(
        f"{len(folders)} sites, {expected.private_parameters:,} private parameters, noise "
        f"multiplier {expected.noise_multiplier:.3f}, noise over signal of a step "
        f"{expected.noise_over_signal:.2f}"
    )
    if expected.noise_over_signal > WARN_NOISE_OVER_SIGNAL:
        console.print(
            f"warning: above {WARN_NOISE_OVER_SIGNAL:g} little is learned. {LEARN_MORE}",
            style="yellow",
        )


def print_summary(run: RunFolder, console: Console) -> None:
    """Show rounds, epsilons and where everything is."""
    rounds = run.metrics()
    table = Table("round", "sites", "loss on phantoms", "largest epsilon", "seconds")
    epsilons: dict[str, dict[str, object]] = {}
    for entry in rounds:
        accepted = [site for site in entry["sites"] if site["state"] == "accepted"]
        epsilons.update({site["site"]: site for site in accepted})
        loss = entry["public_loss"]
        worst = max((site["epsilon"] for site in accepted), default=0.0)
        table.add_row(
            str(entry["round"]), str(len(accepted)), "" if loss is None else f"{loss:.3f}",
            f"{worst:.3f}", f"{entry['seconds']:.1f}",
        )  # fmt: skip
    console.print(table)
    spent = Table("site", "declared patients", "epsilon", "delta", "noise")
    for name, site in sorted(epsilons.items()):
        spent.add_row(
            name, str(site["declared_patients"]), f"{site['epsilon']:.3f}",
            f"{site['delta']:g}", str(site["noise"]),
        )  # fmt: skip
    console.print(spent)
    console.print(f"pictures   {run.samples}", soft_wrap=True)
    console.print(f"generator  {run.generator}", soft_wrap=True)
    console.print(f"report     {run.report}", soft_wrap=True)


class _Rounds:
    """Prints a line for every round as it is finished, and what the server does in between."""

    def __init__(self, run: RunFolder, console: Console) -> None:
        self.run = run
        self.console = console
        self.rounds = run.study().total_rounds
        self.shown = len(run.metrics())
        self.said = ""
        console.print("starting Flower; the first round also prepares every site's images")

    def tick(self) -> None:
        """Print what is new."""
        metrics = self.run.metrics()
        for entry in metrics[self.shown :]:
            accepted = [site for site in entry["sites"] if site["state"] == "accepted"]
            worst = max((site["epsilon"] for site in accepted), default=0.0)
            self.console.print(
                f"round {entry['round']}/{self.rounds}: {len(accepted)} sites, largest epsilon "
                f"{worst:.3f}, {entry['seconds']:.1f} s"
            )
            for site in entry["sites"]:
                if site["state"] != "accepted":
                    self.console.print(f"  {site['site']} {site['state']}: {site['reason']}")
        self.shown = len(metrics)
        said = str(self.run.status()["message"])
        if said != self.said:
            self.said = said
            if said:
                self.console.print(said)
