"""What the server makes before it asks any site: the public prior and the vote space.

Public, of phantoms alone, and the same for every run of a study: both are looked for in the run
folder, then in the user's cache, and made where they are in neither.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import save

from fundusgen.errors import ModelError
from fundusgen.run_folder import RunFolder
from fundusgen.storage import write_atomically
from fundusgen.study import Study
from fundusgen.training.prior import Prior, PriorProgress, load_prior, pretrained
from fundusgen.training.prior_file import save_prior
from fundusgen.training.vote_space import vote_space

log = logging.getLogger("fundusgen.server")

# Called with what is being made, how far it is, and how far it will go.
Progress = Callable[[str, int, int], None]
ENCODER_FILE = "encoder.safetensors"


def prepare_public(
    study: Study,
    run: RunFolder,
    cache_dir: Path,
    *,
    workers: int = 1,
    on_progress: Progress = lambda what, done, total: None,
) -> None:
    """Put prior and vote space into the run folder, as far as the study has them.

    Args:
        study: The study.
        run: Its run folder; what lies there whole is kept.
        cache_dir: Folder of what earlier studies made.
        workers: Processes that draw phantoms.
        on_progress: Called while something is made.
    """
    if study.prior is not None and _kept_prior(study, run) is None:
        log.info("making the prior, or finding it in %s", cache_dir)
        prior = pretrained(
            study,
            cache_dir,
            workers=workers,
            on_progress=lambda progress: on_progress(*_said(progress)),
        )
        save_prior(run.prior, study, prior)
    encoder = run.votes / ENCODER_FILE
    if study.stages.votes is not None and not encoder.is_file():
        log.info("making the vote space, or finding it in %s", cache_dir)
        weights = vote_space(
            study,
            cache_dir,
            workers=workers,
            on_progress=lambda done, total: on_progress("vote space", done, total),
        )
        write_atomically(encoder, save(weights))


def _kept_prior(study: Study, run: RunFolder) -> Prior | None:
    try:
        return load_prior(run.prior, study)
    except ModelError:
        return None


def _said(progress: PriorProgress) -> tuple[str, int, int]:
    what = "phantoms for the prior" if progress.stage == "phantoms" else "prior"
    return what, progress.done, progress.total
