"""Phantom hospitals on disk, and the command that writes them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import fundusgen.phantom.site as site_module
from fundusgen.cli.phantom import phantom_app
from fundusgen.data.conditions import condition_of
from fundusgen.data.manifest import ManifestSettings, read_manifest
from fundusgen.errors import DataError
from fundusgen.phantom.mix import DEFAULT_MIX, mixed_places
from fundusgen.phantom.patients import draw_patient
from fundusgen.phantom.render import lesion_masks, render
from fundusgen.phantom.site import write_site_folder


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_site_is_complete_and_says_what_was_drawn(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    seen: list[tuple[int, int]] = []
    count = write_site_folder(
        folder,
        patients=12,
        seed=1,
        size_px=32,
        camera_style="dusk",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    reading = read_manifest(ManifestSettings(folder / "manifest.csv", folder))
    assert len(reading.rows) == count
    assert seen == [(k, 12) for k in range(1, 13)]
    assert len({row.patient_id for row in reading.rows}) == 12
    for row in reading.rows:
        number = int(row.patient_id.removeprefix("phantom"))
        phantom = draw_patient(1, number, DEFAULT_MIX, "dusk").eyes[row.eye]
        assert condition_of(row) == phantom.condition
        pixels = np.asarray(Image.open(folder / "images" / f"{row.patient_id}_{row.eye}.png"))
        assert (pixels == render(phantom, 32)).all()


def test_most_patients_have_both_eyes(tmp_path: Path) -> None:
    mix = {"normal": 1.0}
    for rate, low, high in ((1.0, 60, 60), (0.0, 30, 30), (0.5, 36, 54)):
        folder = tmp_path / str(rate)
        count = write_site_folder(
            folder, patients=30, seed=2, size_px=16, conditions_mix=mix, both_eyes_rate=rate
        )
        assert low <= count <= high


def test_workers_and_repetition_give_the_same_bytes(tmp_path: Path) -> None:
    for name, workers in (("a", 1), ("b", 2)):
        write_site_folder(tmp_path / name, patients=5, seed=3, size_px=24, workers=workers)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        write_site_folder(tmp_path, patients=1, seed=1)
    assert _files(tmp_path) == {"notes.txt": b"keep"}


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    write_site_folder(folder, patients=1, seed=1, size_px=16)
    assert (folder / "manifest.csv").is_file()


def test_a_site_cut_short_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_site_folder(tmp_path / "site", patients=4, seed=1, size_px=16, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"patients": 0},
        {"workers": 0},
        {"both_eyes_rate": 1.5},
        {"size_px": 4},
        {"seed": -1},
        {"camera_style": "sepia"},
        {"conditions_mix": {"flu": 1.0}},
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, object]
) -> None:
    with pytest.raises(DataError):
        write_site_folder(tmp_path / "site", **{"patients": 2, "seed": 1, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_site_and_says_where(tmp_path: Path) -> None:
    out = tmp_path / "site"
    result = CliRunner().invoke(
        phantom_app,
        [
            *("--out", str(out), "--patients", "3", "--seed", "4", "--size-px", "16"),
            *("--camera", "ember", "--condition", "dr2=3", "--condition", "normal=1"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "of 3 patients" in result.output
    assert (out / "manifest.csv").is_file()


def test_masks_lie_beside_the_images_they_belong_to(tmp_path: Path) -> None:
    out = tmp_path / "site"
    result = CliRunner().invoke(
        phantom_app,
        [
            *("--out", str(out), "--patients", "4", "--seed", "4", "--size-px", "64", "--masks"),
            *("--condition", "dr3"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "masks" in result.output
    expected = {}
    for image in (out / "images").iterdir():
        number, eye = image.stem.removeprefix("phantom").split("_")
        phantom = draw_patient(4, int(number), {"dr3": 1.0}, "amber").eyes[eye]  # type: ignore[index]
        for kind, mask in lesion_masks(phantom, 64).items():
            expected[f"{image.stem}_{kind}.png"] = mask
    assert {path.name for path in (out / "masks").iterdir()} == set(expected)
    assert any(name.endswith("_new_vessels.png") for name in expected)
    for name, mask in expected.items():
        assert (np.asarray(Image.open(out / "masks" / name)) == mask).all()


def test_masks_change_nothing_else_and_are_written_only_if_asked_for(tmp_path: Path) -> None:
    for name, masks in (("with", True), ("without", False)):
        write_site_folder(
            tmp_path / name, patients=3, seed=3, size_px=24, conditions_mix={"dr2": 1}, masks=masks
        )
    files = _files(tmp_path / "with")
    kept = {name: content for name, content in files.items() if not name.startswith("masks/")}
    assert _files(tmp_path / "without") == kept
    assert len(files) > len(kept)


def test_a_site_with_masks_cut_short_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(phantom: object, size_px: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(site_module, "lesion_masks", stop)
    with pytest.raises(KeyboardInterrupt):
        write_site_folder(tmp_path / "site", patients=2, seed=1, size_px=16, masks=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["dr2=much", "dr2=-1", "dr2=1 dr2=2"])
def test_the_command_refuses_weights_that_are_none(tmp_path: Path, value: str) -> None:
    options = [part for text in value.split() for part in ("--condition", text)]
    result = CliRunner().invoke(phantom_app, ["--out", str(tmp_path / "site"), *options])
    assert isinstance(result.exception, DataError)
    assert "--condition" in str(result.exception)


def test_the_command_without_a_folder_says_how_to_call_it() -> None:
    result = CliRunner().invoke(phantom_app, ["--patients", "3"])
    assert isinstance(result.exception, DataError)
    assert "--out DIR" in str(result.exception)


def test_the_sheet_has_a_row_a_condition_and_a_column_a_camera(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    result = CliRunner().invoke(phantom_app, ["sheet", "--out", str(out), "--size-px", "16"])
    assert result.exit_code == 0, result.output
    with Image.open(out) as picture:
        assert picture.size == (16 * 6, 16 * 10)


def test_the_mix_of_a_site_covers_all_conditions() -> None:
    assert sum(DEFAULT_MIX.values()) == pytest.approx(1.0)
    assert site_module.DEFAULT_MIX["normal"] == 0.5


def test_a_mix_gives_each_condition_its_share_and_leaves_out_what_it_does_not_have() -> None:
    conditions = ["unknown", "amd", "normal", "dr2"]
    places = mixed_places(conditions, 690)
    assert [int((places == place).sum()) for place in range(4)] == [0, 60, 500, 130]
    assert mixed_places(["other", "unknown"], 4).tolist() == [0, 0, 1, 1]
