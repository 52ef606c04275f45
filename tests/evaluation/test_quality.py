"""The quality benchmark on small phantom hospitals: it measures, goes on, and renders."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fundusgen.errors import RunError
from fundusgen.evaluation.colour import ColourFeatures
from fundusgen.evaluation.real_images import load_real
from fundusgen.phantom.mix import DEFAULT_MIX
from fundusgen.phantom.site import write_site_folder
from fundusgen.site import SiteFolder
from simulations.benchmarks import quality, quality_hospitals, quality_page
from simulations.benchmarks.quality_context import Context, RowKind, mixed_labels
from simulations.benchmarks.quality_hospitals import Settings, load_hospitals
from simulations.benchmarks.quality_rows import (
    FROM_SCRATCH,
    GAN_IN_ONE_PLACE,
    GAN_ORDINARY,
    GAN_PRIOR,
    GAN_WITHOUT_NOISE,
    RAW_PHANTOMS,
    ROWS,
    phantoms,
)

SIZE_PX = 32
WEAK_MEDIAN = "have seen nobody, are nearer than the median two hospitals"
HOSPITALS = {"east": ("amber", 50), "west": ("dusk", 44), "tiny": ("rose", 12)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospitals")
    for seed, (name, (style, patients)) in enumerate(HOSPITALS.items()):
        write_site_folder(
            folder / name, patients=patients, seed=seed, size_px=SIZE_PX, camera_style=style
        )
    return folder


@pytest.fixture
def settings(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(quality_hospitals, "SPLIT_FROM_PATIENTS", 40)
    return Settings(data, tmp_path / "out", tmp_path / "cache", 30, SIZE_PX, 40)


def measure(settings: Settings, names: list[str], seeds: list[int]) -> None:
    quality.measure(settings, names, seeds, [1.0, 8.0], [ColourFeatures()])


def test_halves_are_disjoint_by_patient_and_small_hospitals_are_not_split(
    settings: Settings,
) -> None:
    hospitals = load_hospitals(settings)
    assert set(hospitals.whole) == set(HOSPITALS)
    assert set(hospitals.train) == {"east", "west"}
    train = {
        f"{name}/{patient}" for name, half in hospitals.train.items() for patient in half.patients_N
    }
    test = set(hospitals.test.patients_N or ())
    assert not train & test
    assert len(train | test) == 50 + 44
    assert len(hospitals.test.images_NSSC) == len(hospitals.test.patients_N or ())


def test_halves_as_site_folders_are_those_of_the_benchmark_and_hold_no_photograph(
    settings: Settings, tmp_path: Path
) -> None:
    hospitals = load_hospitals(settings)
    assert quality.main(["halves", "--data", str(settings.data), "--out", str(tmp_path)]) == 0
    assert not list(tmp_path.glob("t*/*/*.png"))
    train, test = (
        load_real([tmp_path / half / name for name in ("east", "west")], SIZE_PX, tmp_path / "seen")
        for half in ("train", "test")
    )
    trained = [half.pixels(np.arange(half.image_count)) for half in hospitals.train.values()]
    assert np.array_equal(train.images.images_NSSC, np.concatenate(trained))
    assert np.array_equal(test.images.images_NSSC, hospitals.test.images_NSSC)


def test_finished_rows_are_not_made_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float | None, int]] = []

    def made(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
        asked.append((epsilon, seed))
        return phantoms(context, epsilon, seed)

    monkeypatch.setitem(ROWS, "noisy", RowKind(made, private=True))
    measure(settings, ["noisy"], [0])
    assert asked == [(1.0, 0), (8.0, 0)]
    # What an interrupted run leaves behind.
    with (settings.out / quality.ROWS_FILE).open("a") as lines:
        lines.write('{"row": "noisy", "eps')
    measure(settings, ["noisy"], [0, 1])
    assert asked == [(1.0, 0), (8.0, 0), (1.0, 1), (8.0, 1)]
    setting = json.loads((settings.out / quality.YARDSTICK_FILE).read_text())["setting"]
    assert len(quality.read_rows(settings.out, setting)) == 4


def test_kept_images_can_be_measured_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(settings, [RAW_PHANTOMS], [0])
    rows = settings.out / quality.ROWS_FILE
    first = json.loads(rows.read_text())
    rows.unlink()
    monkeypatch.setitem(ROWS, RAW_PHANTOMS, RowKind(lambda *_: pytest.fail("made again")))
    quality.measure(settings, [RAW_PHANTOMS], [0], [], [ColourFeatures()], reuse=True)
    assert json.loads(rows.read_text()) == first


def test_rows_of_several_machines_make_one_page(settings: Settings, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    elsewhere = replace(settings, out=tmp_path / "elsewhere")
    for machine, seeds in ((settings, [0]), (elsewhere, [0, 1])):
        quality.measure(machine, [RAW_PHANTOMS], seeds, [], [ColourFeatures()], docs=docs)
        quality.main(["render", "--out", str(machine.out), "--docs", str(docs)])
    # What was published is not made again.
    setting = json.loads((settings.out / quality.YARDSTICK_FILE).read_text())["setting"]
    assert [record["seed"] for record in quality.read_rows(elsewhere.out, setting)] == [1]
    assert "| raw phantoms |  | 2 |" in (docs / quality_page.PAGE).read_text()


def test_a_row_of_another_shape_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROWS, "few", RowKind(lambda context, *_: phantoms(context, None, 0)[1:]))
    with pytest.raises(RunError, match="shape"):
        measure(settings, ["few"], [0])


def test_other_settings_are_measured_anew(settings: Settings) -> None:
    measure(settings, [RAW_PHANTOMS], [0])
    measure(replace(settings, images=25), [RAW_PHANTOMS], [0])
    setting = json.loads((settings.out / quality.YARDSTICK_FILE).read_text())["setting"]
    (record,) = quality.read_rows(settings.out, setting)
    assert record["images"] == 25


def test_halves_can_be_written_again_and_have_names_that_a_site_may_have(
    data: Path, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "named").mkdir()
    shutil.copytree(data / "east", tmp_path / "named" / "St Mary")
    arguments = ["halves", "--data", str(tmp_path / "named"), "--out", str(tmp_path / "halves")]
    for _ in range(2):
        assert quality.main(arguments) == 0
    assert SiteFolder(tmp_path / "halves" / "test" / "st-mary").settings().name == "st-mary"


def test_where_raw_phantoms_are_far_the_page_does_not_call_the_median_weak(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def black(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
        return np.zeros((len(context.labels_N), SIZE_PX, SIZE_PX, 3), np.uint8)

    monkeypatch.setitem(ROWS, RAW_PHANTOMS, RowKind(black))
    measure(settings, [RAW_PHANTOMS], [0])
    quality.render(settings.out, tmp_path / "docs")
    page = (tmp_path / "docs" / quality_page.PAGE).read_text()
    assert "| epsilon 1: nearer than the median two hospitals | not measured |" in page
    assert WEAK_MEDIAN not in page


def test_the_page_says_what_was_measured_and_which_targets_are_met(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def black(context: Context, epsilon: float | None, seed: int) -> NDArray[np.uint8]:
        return np.zeros((len(context.labels_N), SIZE_PX, SIZE_PX, 3), np.uint8)

    monkeypatch.setitem(ROWS, "good", RowKind(phantoms, private=True, title="good ones"))
    monkeypatch.setitem(ROWS, FROM_SCRATCH, RowKind(black))
    monkeypatch.setitem(ROWS, GAN_PRIOR, RowKind(black))
    monkeypatch.setitem(ROWS, "gan_votes", RowKind(phantoms, private=True, title="voted GAN"))
    monkeypatch.setitem(ROWS, GAN_WITHOUT_NOISE, RowKind(black, title="free GAN"))
    for name in (GAN_IN_ONE_PLACE, GAN_ORDINARY):
        monkeypatch.setitem(ROWS, name, RowKind(phantoms))
    measure(settings, [RAW_PHANTOMS, "good", FROM_SCRATCH], [0, 1])
    measure(settings, [GAN_PRIOR, "gan_votes", GAN_WITHOUT_NOISE], [0])
    measure(settings, [GAN_IN_ONE_PLACE, GAN_ORDINARY], [0])
    docs = tmp_path / "docs"
    assert quality.main(["render", "--out", str(settings.out), "--docs", str(docs)]) == 0
    page = (docs / quality_page.PAGE).read_text()
    assert "| raw phantoms |  | 2 |" in page
    assert "| good ones | 8 | 2 |" in page
    assert "| east and west |" in page
    assert "| epsilon 8: nearer than the same model from scratch without privacy | good" in page
    (scratch,) = (line for line in page.splitlines() if "without privacy | good" in line)
    assert "met by" in scratch
    assert "| not measured |" not in page
    assert "- good ones at epsilon 1, 8: 1 of 3 seeds" in page
    assert "- good ones at epsilon 3: not at all" in page
    assert "- raw phantoms: 1 of 3 seeds" in page
    assert WEAK_MEDIAN in page
    verdicts = {
        tuple(cell.strip() for cell in line.split("|")[1:3]): line.split("|")[3].split()[0]
        for line in page.splitlines()
        if line.startswith("| GAN ")
    }
    assert verdicts == {
        ("GAN at epsilon 8: nearer than its own prior", "voted GAN"): "met",
        ("GAN at epsilon 8: nearer than the median two hospitals", "voted GAN"): "met",
        ("GAN without noise: at most 1.5 times the distance of one place", "free GAN"):
            "**missed**",
        ("GAN without noise: at most 1.5 times the distance of ordinary training", "free GAN"):
            "**missed**",
    }  # fmt: skip
    # What is said of the VAE alone is not said of the GAN.
    assert "without privacy | voted GAN" not in page
    assert str(tmp_path) not in page
    pictures = {path.name for path in (docs / quality_page.PICTURES).iterdir()}
    assert pictures == {
        "phantoms.jpg", "good-epsilon-1.jpg", "good-epsilon-8.jpg", "from_scratch.jpg",
        "gan_prior.jpg", "gan_votes-epsilon-1.jpg", "gan_votes-epsilon-8.jpg", "gan_free.jpg",
        "gan_ordinary.jpg",
        "gan_central.jpg", quality.ROWS_FILE,
    }  # fmt: skip


def test_the_floor_is_under_every_row(settings: Settings) -> None:
    settings = replace(settings, images=90)
    measure(settings, [RAW_PHANTOMS], [0])
    yardstick = json.loads((settings.out / quality.YARDSTICK_FILE).read_text())
    (record,) = quality.read_rows(settings.out, yardstick["setting"])
    floor = yardstick["floor"]["metrics"]["colour"]["kid"]
    assert floor["value"] < record["metrics"]["colour"]["kid"]["value"]
    assert floor["low"] < floor["value"] < floor["high"]
    between = [pair["between"] for pair in yardstick["pairs"]]
    assert between == [["east", "tiny"], ["east", "west"], ["tiny", "west"]]


def test_the_average_over_seeds_varies_with_the_seeds_too() -> None:
    alike = [{"value": 1.0, "replicates": [1.0, 1.0, 1.0]}] * 3
    assert quality_page.averaged(alike).text() == "1.0 (1.0 to 1.0)"
    apart = [{"value": float(v), "replicates": [float(v)] * 200} for v in (1, 2, 6)]
    figure = quality_page.averaged(apart)
    assert figure.value == 3.0
    assert figure.replicates_B.std() > 0.5
    assert "in the interval" in figure.verdict(3.5)
    assert figure.verdict(30.0) == "met by 27.0"
    assert figure.verdict(-30.0) == "**missed** by 33.0"


def test_labels_follow_the_public_mix() -> None:
    labels = mixed_labels(1000)
    assert {name: labels.count(name) / 1000 for name in DEFAULT_MIX} == dict(DEFAULT_MIX)
    assert len(mixed_labels(7)) == 7


def test_phantoms_are_served_as_right_eyes() -> None:
    """The disc, the brightest part of a healthy eye, lies on the right."""
    context = Context({}, SIZE_PX, ("normal",) * 24, Path())
    light_NSS = phantoms(context, None, 0)[..., 1].astype(float)
    half = SIZE_PX // 2
    right = light_NSS[:, :, half:].max((1, 2)) >= light_NSS[:, :, :half].max((1, 2))
    assert right.mean() > 0.7


def test_without_photographs_it_says_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUNDUSGEN_REAL_DATA", raising=False)
    assert quality.run() == []
    with pytest.raises(RunError, match="holds no hospital"):
        load_hospitals(Settings(tmp_path))
    arguments = ["measure", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert quality.main(arguments) == 1
    assert "--data DIR" in capsys.readouterr().err
    assert quality.main(["render", "--out", str(tmp_path / "out")]) == 1


def test_a_row_that_is_not_known_is_refused() -> None:
    with pytest.raises(RunError, match="'magic'"):
        quality.wanted_rows(["magic"], [0], [])
