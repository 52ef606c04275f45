import numpy as np
import pytest

from fundusgen.errors import FederationError
from fundusgen.federation.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from fundusgen.federation.weights import digest


def checkpoint(round_number: int, study: str = "s" * 64) -> Checkpoint:
    rng = np.random.default_rng(round_number)
    arrays = {"x.weight": rng.standard_normal((2, 3)).astype(np.float32)}
    return Checkpoint(round_number, study, arrays, arrays, {"first/x.weight": arrays["x.weight"]})


def test_what_is_saved_is_read_back_bit_for_bit(tmp_path) -> None:
    save_checkpoint(tmp_path, checkpoint(3))
    found = latest_checkpoint(tmp_path, "s" * 64)
    assert found is not None
    assert found.round_number == 3
    for part in ("weights", "average", "optimizer"):
        assert digest(getattr(found, part)) == digest(getattr(checkpoint(3), part))


def test_the_newest_checkpoint_is_found_past_ten_thousand_rounds(tmp_path) -> None:
    for number in (9, 10, 9999, 10000):
        save_checkpoint(tmp_path, checkpoint(number))
    found = latest_checkpoint(tmp_path, "s" * 64)
    assert found is not None
    assert found.round_number == 10000


@pytest.mark.parametrize("damage", ["arrays gone", "arrays cut", "arrays edited", "json cut"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage: str) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    path = save_checkpoint(tmp_path, checkpoint(2))
    data = path.read_bytes()
    if damage == "arrays gone":
        path.unlink()
    elif damage == "arrays cut":
        path.write_bytes(data[:-5])
    elif damage == "arrays edited":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.with_suffix(".json").write_text("{")
    found = latest_checkpoint(tmp_path, "s" * 64)
    assert found is not None
    assert found.round_number == 1


def test_a_folder_without_checkpoints_has_none(tmp_path) -> None:
    assert latest_checkpoint(tmp_path, "s" * 64) is None


def test_checkpoints_of_another_study_are_refused(tmp_path) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    with pytest.raises(FederationError, match="holds checkpoints of study"):
        latest_checkpoint(tmp_path, "t" * 64)


def test_nothing_unfinished_is_left_behind(tmp_path) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-0001.json",
        "round-0001.safetensors",
    ]
