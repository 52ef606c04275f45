import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundusgen.data.conditions import CONDITIONS, condition_of
from fundusgen.data.manifest import (
    KNOWN_COLUMNS,
    ImageRow,
    ManifestReading,
    ManifestSettings,
    read_manifest,
    write_manifest,
)
from fundusgen.data.problems import left_out_count
from fundusgen.errors import ManifestError
from fundusgen.site import SiteData


def site(folder: Path, content: str | bytes, *files: str, **settings: object) -> ManifestSettings:
    for file in files or ("a.jpg", "b.jpg"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"an image")
    manifest = folder / "manifest.csv"
    manifest.write_bytes(content.encode() if isinstance(content, str) else content)
    return ManifestSettings(manifest, folder, **settings)


def only_problem(reading: ManifestReading) -> str:
    assert len(reading.problems) == 1
    problem = reading.problems[0]
    assert problem.found
    assert problem.expected
    assert problem.remedy
    return str(problem)


def test_every_known_column_is_read(tmp_path: Path) -> None:
    header = "file,patient_id,eye,dr_grade,dme_risk,diagnosis,sex,age\n"
    settings = site(tmp_path, header + "a.jpg,007,L,3,1,dr,F,69\nb.jpg,007,,,,,,\n")
    first, second = read_manifest(settings).rows
    path = (tmp_path / "a.jpg").resolve()
    assert first == ImageRow(2, "a.jpg", path, "007", "L", 3, 1, "dr", "F", 69)
    assert second.dr_grade is None
    assert second.age is None
    assert second.diagnosis == ""


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbffile,patient_id\na.jpg,1\nb.jpg,2\n",
        b"file,patient_id\r\na.jpg,1\r\nb.jpg,2\r\n",
        b"file;patient_id\na.jpg;1\nb.jpg;2\n",
        b"file\tpatient_id\na.jpg\t1\nb.jpg\t2\n",
        b'"file","patient_id"\n"a.jpg"," 1 "\n\nb.jpg,2\n,,\n'.replace(b",,\n", b",\n"),
    ],
    ids=["byte order mark", "carriage returns", "semicolons", "tabs", "quotes and blank lines"],
)
def test_files_of_common_programs_are_read_alike(tmp_path: Path, content: bytes) -> None:
    reading = read_manifest(site(tmp_path, content))
    assert [(row.file, row.patient_id) for row in reading.rows] == [("a.jpg", "1"), ("b.jpg", "2")]
    assert not reading.problems


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ("missing.jpg,1,,", ["line 2, file", "not there"]),
        ("../outside.jpg,1,,", ["leads out of the image folder"]),
        ("/etc/hostname,1,,", ["leads out of the image folder"]),
        ("link.jpg,1,,", ["leads out of the image folder"]),
        ("images\\a.jpg,1,,", ["Write `/` between folders"]),
        (".,1,,", ["not a regular file"]),
        (",1,,", ["line 2, file", "an empty cell"]),
        ("a\0.jpg,1,,", ["zero byte"]),
        ("a.jpg,,,", ["line 2, patient_id", "one_image_per_patient"]),
        ("a.jpg,1,5,", ["line 2, dr_grade", "'5'", "from 0 to 4"]),
        ("a.jpg,1,-1,", ["'-1'"]),
        ("a.jpg,1,1.5,", ["'1.5'"]),
        ("a.jpg,1,²,", ["'²'"]),
        ("a.jpg,1,99999999999999999999,", ["from 0 to 4"]),
        ("a.jpg,1,,glaucom", ["line 2, diagnosis", "Did you mean 'glaucoma'?"]),
        ("a.jpg,1,2", ["3 cells", "as many cells"]),
        ("a.jpg,1,2,dr,more", ["5 cells"]),
    ],
)
def test_a_bad_row_is_left_out_with_its_line_and_a_remedy(
    tmp_path: Path, cells: str, words: list[str]
) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (tmp_path / "outside.jpg").write_bytes(b"someone else's")
    settings = site(folder, f"file,patient_id,dr_grade,diagnosis\n{cells}\nb.jpg,2,,\n")
    (folder / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    reading = read_manifest(settings)
    assert [row.file for row in reading.rows] == ["b.jpg"]
    text = only_problem(reading)
    for word in words:
        assert word in text


def test_a_file_that_a_patient_names_twice_is_used_once(tmp_path: Path) -> None:
    reading = read_manifest(site(tmp_path, "file,patient_id\na.jpg,1\n./a.jpg,1\n"))
    assert [row.line for row in reading.rows] == [2]
    assert "same file as line 2" in only_problem(reading)
    assert left_out_count(reading.problems) == 1


def test_a_file_that_two_patients_name_is_used_for_both_with_a_warning(tmp_path: Path) -> None:
    content = "file,patient_id\na.jpg,1\n./a.jpg,2\n"
    reading = read_manifest(site(tmp_path, content))
    assert [row.patient_id for row in reading.rows] == ["1", "2"]
    text = only_problem(reading)
    for words in ("line 3", "same file as line 2, under another patient id", "epsilons add up"):
        assert words in text
    assert left_out_count(reading.problems) == 0
    with pytest.raises(ManifestError, match="1 row of"):
        read_manifest(site(tmp_path, content, strict=True))


def test_a_row_that_cannot_be_used_takes_no_other_rows_place(tmp_path: Path) -> None:
    reading = read_manifest(site(tmp_path, "file,patient_id,eye\na.jpg,1,X\na.jpg,1,L\n"))
    assert [row.line for row in reading.rows] == [3]
    assert "line 2, eye" in only_problem(reading)


def test_a_file_that_is_its_own_patient_is_one_patient_however_it_is_spelt(tmp_path: Path) -> None:
    content = "file\na.jpg\n./a.jpg\nb.jpg\n"
    reading = read_manifest(site(tmp_path, content, one_image_per_patient=True))
    assert [row.patient_id for row in reading.rows] == ["a.jpg", "b.jpg"]
    assert left_out_count(reading.problems) == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b'"a.jpg,1', "not CSV"),
        (b'"a.jpg,1\nb.jpg",2', "not CSV"),
        (b'"a.jpg\r",1', "not CSV"),
        (b'"a".jpg,1', "not CSV"),
        (b'"' + b"a" * 140_000 + b'",1', "not CSV"),
        (b"M\xfcller.jpg,1", "0xfc, which is not UTF-8"),
    ],
    ids=[
        "never closed",
        "closed in another row",
        "carriage return",
        "text after a quote",
        "a cell without end",
        "another encoding",
    ],
)
def test_a_row_that_cannot_be_read_takes_nobody_elses_rows_with_it(
    tmp_path: Path, row: bytes, words: str
) -> None:
    content = b"file,patient_id\nb.jpg,2\n" + row + b"\nc.jpg,3\n"
    reading = read_manifest(site(tmp_path, content, "b.jpg", "c.jpg"))
    assert [(row.file, row.patient_id) for row in reading.rows] == [("b.jpg", "2"), ("c.jpg", "3")]
    assert words in str(reading.problems[0])
    assert reading.problems[0].line == 3


def test_grades_that_a_table_library_saved_as_fractions_are_read(tmp_path: Path) -> None:
    reading = read_manifest(site(tmp_path, "file,patient_id,dr_grade,age\na.jpg,1,3.0,69.0\n"))
    assert (reading.rows[0].dr_grade, reading.rows[0].age) == (3, 69)


def test_an_image_is_its_own_patient_only_where_the_site_says_so(tmp_path: Path) -> None:
    content = "file,patient_id\na.jpg,\nb.jpg,two\n"
    stated = read_manifest(site(tmp_path, content, one_image_per_patient=True))
    assert [row.patient_id for row in stated.rows] == ["a.jpg", "two"]
    assert "patient_id" in only_problem(read_manifest(site(tmp_path, content)))


def test_strict_reading_stops_with_the_first_problems_and_their_number(tmp_path: Path) -> None:
    rows = "".join(f"a{i}.jpg,1\n" for i in range(8))
    with pytest.raises(ManifestError) as caught:
        read_manifest(site(tmp_path, f"file,patient_id\n{rows}", strict=True))
    text = str(caught.value)
    assert "8 rows" in text
    assert "line 2, file" in text
    assert "and 3 more" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"file,patientid\na.jpg,1\n", ["'patientid'", "Did you mean 'patient_id'?"]),
        (b"file,eye\na.jpg,L\n", ["no column `patient_id`"]),
        (b"patient_id,eye\n1,L\n", ["no column `file`"]),
        (b"file,patient_id,file\na.jpg,1,b.jpg\n", ["twice"]),
        ("file,patient_id\n".encode("utf-16"), ["UTF-16", "CSV UTF-8"]),
        (b"file,M\xfcller\na.jpg,1\n", ["unknown column", "xfc"]),
    ],
)
def test_a_manifest_that_makes_no_sense_is_an_error(
    tmp_path: Path, content: bytes, words: list[str]
) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(site(tmp_path, content))
    for word in words:
        assert word in str(caught.value)


def test_a_missing_manifest_or_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(ManifestSettings(tmp_path / "manifest.csv", tmp_path))
    with pytest.raises(ManifestError, match="does not exist"):
        read_manifest(ManifestSettings(tmp_path / "manifest.csv", tmp_path / "images"))


def test_other_names_are_mapped_and_others_ignored_only_by_name(tmp_path: Path) -> None:
    content = "image,pid,grade,scanner\na.jpg,1,2,x\n"
    columns = {"file": "image", "patient_id": "pid", "dr_grade": "grade"}
    with pytest.raises(ManifestError, match="'scanner'"):
        read_manifest(site(tmp_path, content, columns=columns))
    settings = site(tmp_path, content, columns=columns, ignored_columns=("scanner",))
    assert read_manifest(settings).rows[0].dr_grade == 2


def test_a_sites_settings_say_how_its_manifest_is_read(tmp_path: Path) -> None:
    source = SiteData(
        manifest=tmp_path / "images.csv",
        root=tmp_path,
        columns={"file": "image"},
        ignored_columns=("scanner",),
        one_image_per_patient=True,
        declared_patients=1,
    )
    read = asdict(ManifestSettings.of(source, strict=True))
    assert read.pop("strict")
    assert read == source.model_dump(exclude={"declared_patients"})


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"patient": "pid"}, "Did you mean 'patient_id'?"),
        ({"patient_id": "pidd"}, "Did you mean 'pid'?"),
        ({"patient_id": "file"}, "same name"),
    ],
)
def test_a_wrong_mapping_is_an_error(tmp_path: Path, columns: dict[str, str], words: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(
            site(tmp_path, "file,pid\na.jpg,1\n", columns=columns, ignored_columns=("pid",))
        )
    assert words in str(caught.value)


words = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), max_size=12
)


@given(patient=words.filter(bool), grade=st.integers(0, 4) | st.none())
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, patient: str, grade: int | None
) -> None:
    folder = tmp_path_factory.mktemp("site")
    (folder / "a.jpg").write_bytes(b"an image")
    manifest = folder / "manifest.csv"
    write_manifest(manifest, [{"file": "a.jpg", "patient_id": patient, "dr_grade": grade}])
    (row,) = read_manifest(ManifestSettings(manifest, folder)).rows
    assert (row.patient_id, row.dr_grade) == (patient.strip(), grade)
    assert manifest.read_text(encoding="utf-8").startswith(",".join(KNOWN_COLUMNS) + "\n")


def test_a_manifest_is_streamed_to_its_file(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, str | int | None]]:
        for i in range(50_000):
            yield {"file": f"{i}.png", "patient_id": f"p{i}", "dr_grade": 1}

    tracemalloc.start()
    write_manifest(tmp_path / "manifest.csv", rows())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_manifest_that_breaks_off_leaves_the_earlier_one(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    write_manifest(manifest, [{"file": "a.png"}])
    before = manifest.read_bytes()
    with pytest.raises(ManifestError, match="scanner"):
        write_manifest(manifest, [{"file": "b.png"}, {"scanner": "x"}])
    assert manifest.read_bytes() == before
    assert list(tmp_path.iterdir()) == [manifest]


@pytest.mark.parametrize(
    ("diagnosis", "grade", "condition"),
    [
        ("", None, "unknown"),
        ("unknown", None, "unknown"),
        ("normal", None, "normal"),
        ("", 0, "normal"),
        ("dr", 0, "normal"),
        ("dr", 3, "dr3"),
        ("normal", 2, "dr2"),
        ("unknown", 4, "dr4"),
        ("dr", None, "other"),
        ("glaucoma", 2, "glaucoma"),
        ("other", 0, "other"),
    ],
)
def test_the_condition_follows_from_diagnosis_and_grade(
    diagnosis: str, grade: int | None, condition: str
) -> None:
    row = ImageRow(2, "a.jpg", Path("a.jpg"), "1", "", grade, None, diagnosis, "", None)
    assert condition_of(row) == condition
    assert condition in CONDITIONS
