"""Checkpoints of the server: safetensors with a JSON beside them, whole or absent.

The JSON is written last and holds the digest of the arrays, so that a checkpoint without it, or
with another digest, is no checkpoint. Nothing is ever unpickled.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fundusgen.errors import FederationError
from fundusgen.federation.weights import Weights, digest
from fundusgen.storage import write_atomically, write_json

_NAME = re.compile(r"round-(\d{4,})\.json")
_PARTS = ("weights", "average", "optimizer", "kept")


@dataclass(frozen=True)
class Checkpoint:
    """All that a server needs to go on after a round.

    Attributes:
        round_number: The round that was finished; 0 before the first.
        study_hash: The study it belongs to.
        weights: Of the model, as the sites would receive them next.
        average: Moving average of the weights, from which is drawn.
        optimizer: Arrays of the server's optimizers; empty for plain averaging.
        kept: The last average that drew well, where the newest does not; else empty.
    """

    round_number: int
    study_hash: str
    weights: Weights
    average: Weights
    optimizer: Weights
    kept: Weights = field(default_factory=dict)

    @property
    def drawn_from(self) -> Weights:
        """The weights to draw from."""
        return self.kept or self.average


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint; returns the path of its arrays."""
    arrays = {
        f"{part}/{name}": array
        for part in _PARTS
        for name, array in getattr(checkpoint, part).items()
    }
    path = folder / f"round-{checkpoint.round_number:04d}.safetensors"
    write_atomically(path, save(arrays))
    write_json(
        path.with_suffix(".json"),
        {
            "round": checkpoint.round_number,
            "study_hash": checkpoint.study_hash,
            "digest": digest(arrays),
        },
    )
    return path


def latest_checkpoint(folder: Path, study_hash: str) -> Checkpoint | None:
    """Read the newest whole checkpoint of a study, passing over damaged ones.

    Raises:
        FederationError: The folder holds checkpoints of another study.
    """
    found = ((int(match[1]), path) for path in folder.glob("round-*.json")
             if (match := _NAME.fullmatch(path.name)))  # fmt: skip
    for _, path in sorted(found, reverse=True):
        checkpoint = _read(path, study_hash)
        if checkpoint is not None:
            return checkpoint
    return None


def _read(path: Path, study_hash: str) -> Checkpoint | None:
    try:
        header = json.loads(path.read_text())
        arrays: Weights = load_file(path.with_suffix(".safetensors"))
        whole = header["digest"] == digest(arrays)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    if not whole:
        return None
    if header["study_hash"] != study_hash:
        raise FederationError(
            f"{path.parent} holds checkpoints of study {header['study_hash'][:12]}",
            expected=f"study {study_hash[:12]}",
            remedy="Choose another run folder; one folder holds one study",
        )
    parts: dict[str, Weights] = {part: {} for part in _PARTS}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = array
    return Checkpoint(round_number=int(header["round"]), study_hash=study_hash, **parts)
