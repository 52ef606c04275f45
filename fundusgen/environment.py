"""What a run was made with, and how the processes that we start are set up."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from fundusgen import __version__
from fundusgen.storage import write_json

_PACKAGES = ("flwr", "torch", "opacus", "numpy", "pillow", "torchmetrics")

# glibc gives memory back to the system after every step and faults it in again at the next; kept,
# a DP-SGD step on two cores takes about two thirds of the time.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30)}

# The server's threads and the sites' share the cores: waiting ones must not spin on them. On two
# cores with other work, the loss on phantoms takes a fifth of the time.
SHARE_CORES = {"OMP_WAIT_POLICY": "passive"}


def environment() -> dict[str, object]:
    """Versions and machine, as plain JSON; holds no names of users, hosts or folders."""
    return {
        "fundusgen": __version__,
        "packages": {name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "byte_order": sys.byteorder,
    }


def write_environment(path: Path) -> None:
    """Write `environment` to a file."""
    write_json(path, environment())
