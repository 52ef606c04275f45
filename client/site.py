"""Which site folder this client answers for.

The operator says so, never the server: `--node-config 'site="DIR"'` of the SuperNode. Flower's
simulation runtime gives its nodes a number instead of a setting; the environment of the process
that started the simulation then names the folder whose sub-folders are numbered.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from fundusgen.errors import SiteError
from fundusgen.site import SiteFolder

SIMULATED_SITES = "FUNDUSGEN_SIMULATED_SITES"


def site_folder(node_config: Mapping[str, object]) -> SiteFolder:
    """The site folder of this node.

    Raises:
        SiteError: The operator named none, or it does not exist.
    """
    path = _named(node_config)
    if not (path / "site.yaml").is_file():
        raise SiteError(
            f"{path} is not a site folder",
            expected="a folder with site.yaml",
            remedy="Make one with `fundusgen site init DIR`",
        )
    return SiteFolder(path)


def _named(node_config: Mapping[str, object]) -> Path:
    site = node_config.get("site")
    if isinstance(site, str) and site:
        return Path(site).expanduser().resolve()
    simulated, number = os.environ.get(SIMULATED_SITES), node_config.get("partition-id")
    if simulated and isinstance(number, int):
        folders = sorted(path.parent for path in Path(simulated).glob("*/site.yaml"))
        if number < len(folders):
            return folders[number]
        raise SiteError(
            f"This is simulated site {number}, but {simulated} holds {len(folders)} site folders",
            expected="as many SuperNodes as site folders",
            remedy=f"Set num-supernodes to {len(folders)}",
        )
    raise SiteError(
        "This client was not told its site folder",
        expected="--node-config 'site=\"DIR\"' on the SuperNode",
        remedy="Restart the SuperNode with it",
    )
