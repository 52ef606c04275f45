"""`make bench`: run the benchmarks, write bench.json and bench.md, print the table.

A target that is missed is named in the table and fails nothing; a benchmark that breaks does.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from fundusgen.environment import environment
from fundusgen.storage import write_atomically, write_json
from simulations.benchmarks.child import ONE_CORE, Row, at_least, rows_of_child

# Those that speak of one core get one thread; the others set their own.
BENCHMARKS: dict[str, Mapping[str, str]] = {
    "dp_step": {},
    "grad_sample": {},
    "data": ONE_CORE,
    "phantom": ONE_CORE,
    "generation": {},
    "federation_round": {},
    "client_memory": {},
    "budget": {},
    "evaluation": {},
    "quality": ONE_CORE,
}


def main() -> int:
    """Run what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="may be repeated")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder to write to")
    options = parser.parse_args()
    rows: list[Row] = []
    broken: list[str] = []
    for name in options.only or BENCHMARKS:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        # Other work on the machine is part of every figure that follows.
        load = round(os.getloadavg()[0], 2)
        try:
            found = rows_of_child(
                f"simulations.benchmarks.{name}", "run", environment=BENCHMARKS[name]
            )
        except subprocess.CalledProcessError:
            broken.append(name)
            continue
        rows += [{"benchmark": name, **entry, "load_before": load} for entry in found]
    record = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "broken": broken,
        "rows": rows,
    }
    table = markdown(rows, broken)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "bench.json", record)
    write_atomically(options.out / "bench.md", table)
    print(table)
    return 1 if broken else 0


def markdown(rows: list[Row], broken: list[str]) -> str:
    """Set the rows as a Markdown table with a line about the machine."""
    machine = environment()
    packages = machine["packages"]
    assert isinstance(packages, dict)  # noqa: S101 - for the type checker
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    lines = [
        f"{machine['cores']} cores, {machine['system']}, Python {machine['python']}, {versions}",
        "",
        "| benchmark | what | value | target | | load before |",
        "|---|---|---:|---:|---|---:|",
    ]
    for entry in rows:
        sign = "≥" if at_least(entry["unit"]) else "≤"
        target = "" if entry["target"] is None else f"{sign} {entry['target']:g} {entry['unit']}"
        met = {True: "met", False: "**missed**", None: ""}[entry["met"]]
        lines.append(
            f"| {entry['benchmark']} | {entry['name']} | {entry['value']:,.2f} {entry['unit']} "
            f"| {target} | {met} | {entry['load_before']:g} |"
        )
    lines += [f"| {name} | **broke** | | | | |" for name in broken]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
