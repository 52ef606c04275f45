"""Thousands of broken settings files: each is refused in a sentence, or means what it says.

Every mutation comes from a seed, and a failure prints the text that it made. Whether a text was
taken as it is written is judged on YAML's nodes, where nothing has a type yet.
"""

import importlib
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from fundusgen.code import code_hash
from fundusgen.errors import FundusgenError, SiteError, StudyError
from fundusgen.federation.exchange import Answer, Refusal, Request
from fundusgen.privacy.policy import (
    Policy,
    RefusalReason,
    Release,
    load_policy,
    objections,
    over_budget,
    parse_policy,
)
from fundusgen.privacy.policy_file import dump_policy
from fundusgen.settings_file import dump_settings
from fundusgen.site import SiteFolder
from fundusgen.study import ModelSettings, Study, dump_study, load_study
from fundusgen.training import answering
from fundusgen.training.mechanisms import round_event

REPOSITORY = Path(__file__).parents[2]
STUDIES = REPOSITORY / "simulations" / "studies"
MUTATIONS = 250
PATIENTS = 12

POLICY = dump_policy(
    Policy(max_epsilon=8.0, delta=1e-5, studies=("a" * 64, "0b" * 32), code=("c0ffee00" * 8,))
)
SITE = """\
# Our hospital.
name: north
data:
  manifest: data/manifest.csv
  root: data
  columns: {patient_id: Patient, file: "Image file", age: no}
  ignored_columns: [yes, 010, 'comment']
  one_image_per_patient: false
  declared_patients: 120  # rounded
device: auto
threads: 2
batch_patients: 32
"""
BASES = {
    "policy": [
        POLICY,
        "max_epsilon: 8\ndelta: 1e-5\nstudies: []\ncode: any\nrelease: {max_bytes_per_round: 9}\n",
        json.dumps({"max_epsilon": 8, "delta": 1e-5, "noise": "fast", "composition": "adaptive"}),
    ],
    "study": [
        (STUDIES / "demo.yaml").read_text(encoding="utf-8"),
        (STUDIES / "real.yaml").read_text(encoding="utf-8"),
        (STUDIES / "real-scratch.yaml").read_text(encoding="utf-8"),
        dump_study(load_study(STUDIES / "demo.yaml")),
        load_study(STUDIES / "demo.yaml").agreed_json(),
        "study_id: a\nconditions: [amd]\nmodel: vae\nprivacy: {target_epsilon: 1}\n"
        "federation: {rounds: 1}\nsimulation: {partition: {no: {into: 2}}, max_epsilon: ~}\n",
    ],
    "site": [
        SITE,
        "name: a\ndata: {manifest: a.csv, root: ., declared_patients: 9}\nthreads: ~\n",
        json.dumps(
            {
                "name": "a-1",
                "data": {"manifest": "/a/é.csv", "root": "/a", "declared_patients": 9},
                "device": "cuda:1",
            }
        ),
    ],
}
ERRORS = {"policy": SiteError, "study": StudyError, "site": SiteError}


def read(kind: str, folder: Path) -> BaseModel | FundusgenError:
    path = folder / f"{kind}.yaml"
    try:
        if kind == "policy":
            return load_policy(path)
        return load_study(path) if kind == "study" else SiteFolder(folder).settings()
    except FundusgenError as error:
        return error
    except Exception as error:
        error.add_note(show(path.read_bytes()))
        raise


def show(text: bytes) -> str:
    return f"\n--- {len(text)} bytes: {text[:3000]!r}\n"


# -- what a text gives, judged without types -----------------------------------------------------

NULL = re.compile(r"|~|null|Null|NULL")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
OTHER = re.compile(r"0[0-9]+|[-+]0[0-9]+")


def not_as_written(text: str, read: BaseModel, folder: Path) -> list[str]:
    """Say everything that a text gives and that what was read from it does not have as given."""
    if re.search("[\x85\u2028\u2029]", text):
        return ["it has lines that end for some readers only"]
    events: list[Any] = list(yaml.parse(text, Loader=yaml.BaseLoader))
    if sum(isinstance(event, yaml.DocumentStartEvent) for event in events) != 1:
        return ["it has several documents"]
    top: Any = yaml.compose(text, Loader=yaml.BaseLoader)
    found = [f"a tag {event.tag}" for event in events if getattr(event, "tag", None)]
    return [*found, *_differences(top, read, folder, "")]


def _differences(node: yaml.Node, value: Any, folder: Path, place: str) -> Iterator[str]:
    if isinstance(value, ModelSettings) and isinstance(node, yaml.ScalarNode):
        # The short form of a model.
        if (node.value, value.model_fields_set) != (value.kind, {"kind"}):
            yield f"{place} is {node.value}, read as {value}"
    elif isinstance(value, BaseModel | dict):
        yield from _in_mapping(node, value, folder, place)
    elif isinstance(value, tuple):
        if not isinstance(node, yaml.SequenceNode) or len(node.value) != len(value):
            yield f"{place} is no list of {len(value)}"
            return
        for number, (inner, one) in enumerate(zip(node.value, value, strict=True)):
            yield from _differences(inner, one, folder, f"{place}.{number}")
    elif not isinstance(node, yaml.ScalarNode) or not _is_written(node, value, folder):
        yield f"{place} is {node.value!r} at {node.start_mark}, read as {value!r}"


def _in_mapping(node: yaml.Node, value: Any, folder: Path, place: str) -> Iterator[str]:
    if not isinstance(node, yaml.MappingNode):
        yield f"{place} is no mapping"
        return
    keys = [_text(key) for key, _ in node.value]
    given = value.keys() if isinstance(value, dict) else value.model_fields_set
    if sorted(keys) != sorted(given):
        yield f"{place} has the keys {keys}, read were {sorted(given)}"
        return
    for key, (_, inner) in zip(keys, node.value, strict=True):
        one = value[key] if isinstance(value, dict) else getattr(value, key)
        yield from _differences(inner, one, folder, f"{place}.{key}")


def _is_written(node: yaml.ScalarNode, value: Any, folder: Path) -> bool:
    text, plain = _text(node), node.style is None
    if isinstance(value, Path):
        return value == (Path(text) if Path(text).is_absolute() else (folder / text).resolve())
    if isinstance(value, str):
        kinds = NULL, BOOL, INT, FLOAT
        taken = plain and not OTHER.fullmatch(text) and any(kind.fullmatch(text) for kind in kinds)
        return text == value and not taken
    if value is None:
        return plain and NULL.fullmatch(text) is not None
    if isinstance(value, bool):
        return plain and BOOL.fullmatch(text) is not None and (text.lower() == "true") is value
    if isinstance(value, int):
        return plain and INT.fullmatch(text) is not None and int(text) == value
    return plain and FLOAT.fullmatch(text) is not None and float(text) == value


def _text(node: yaml.Node) -> str:
    return str(node.value.encode("utf-16", "surrogatepass").decode("utf-16"))


# -- mutations of the text -----------------------------------------------------------------------

TOKENS = [
    "\n", "\n\n", "  ", " ", "\t", "\r", "\r\n", "- ", "-", "? ", ": ", ":", ", ", "[", "]", "{",
    "}", "&a ", "*a", "!", "!!str ", "!!int ", "!x ", "|", ">", "|-\n", "%YAML 1.1\n", "---\n",
    "...\n", '"', "'", "\\", "#", " # ", "<<: ", "=", "~", "null", "true", "no", "yes", "0", "1",
    "-1", "8", "1e5", ".5", ".inf", ".nan", "0x1f", "010", "1_0", "1:30", "2026-01-01", "@", "`",
    "\x00", "\x07", "\x85", "\u2028", "\ufeff", "\u200b", "é", "😀", "\\n", "\\u0041", "\\ud83d",
    "\\UFFFFFFFF", "a", "max_epsilon: 80\n", "studies: []\n", "code: any\n", "seed: 7\n",
    "threads: 1\n", "noise: fast\n", "{a: 1}", "[1, 2]", "9" * 400, "9" * 5000, "x" * 3000,
    "[" * 60, "[" * 2000, "&a [*a]",
]  # fmt: skip
NUMBERS = [
    "0", "-1", "1", "2", "1.0", "8.0", "0.5", "1e-5", "1e5", "1e308", "1e309", "-1e309", "5e-324",
    "1e-400", ".inf", "-.inf", ".nan", "9223372036854775807", "9223372036854775808", "1" + "0" * 30,
    "1" + "0" * 400, "9" * 5000, "0x10", "0o17", "017", "1_000", "1:30", "+3", "-0", "-0.0", "''",
    "'3'", '"8"', "true", "no", "~", "", "[]", "{}", "[8]", "three", "8 8", "8,0", "8%", "٣",
]  # fmt: skip
NUMBER = re.compile(rb"(?<![\w.])[-+]?\d+(\.\d*)?([eE][-+]?\d+)?(?![\w.])")
Mutation = Callable[[random.Random, bytes], bytes]


def on_lines(change: Callable[[random.Random, list[bytes]], None]) -> Mutation:
    def mutated(rng: random.Random, text: bytes) -> bytes:
        lines = text.splitlines(keepends=True)
        if lines:
            change(rng, lines)
        return b"".join(lines)

    return mutated


def delete_a_line(rng: random.Random, lines: list[bytes]) -> None:
    del lines[rng.randrange(len(lines))]


def repeat_a_line(rng: random.Random, lines: list[bytes]) -> None:
    lines.insert(rng.randint(0, len(lines)), rng.choice(lines))


def swap_lines(rng: random.Random, lines: list[bytes]) -> None:
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]


def indent_a_line(rng: random.Random, lines: list[bytes]) -> None:
    place = rng.randrange(len(lines))
    lines[place] = rng.choice(
        [b"  " + lines[place], lines[place].lstrip(b" "), b"\t" + lines[place]]
    )


def flip_a_byte(rng: random.Random, text: bytes) -> bytes:
    place = rng.randrange(len(text))
    return text[:place] + bytes([text[place] ^ 1 << rng.randrange(8)]) + text[place + 1 :]


def insert_a_token(rng: random.Random, text: bytes) -> bytes:
    place = rng.randint(0, len(text))
    return text[:place] + rng.choice(TOKENS).encode() + text[place:]


def cut_out(rng: random.Random, text: bytes) -> bytes:
    place = rng.randrange(len(text))
    return text[:place] + text[place + rng.randint(1, 8) :]


def cut_off(rng: random.Random, text: bytes) -> bytes:
    return text[: rng.randrange(len(text))]


def replace_a_number(rng: random.Random, text: bytes) -> bytes:
    found = list(NUMBER.finditer(text))
    if not found:
        return text
    place = rng.choice(found)
    return text[: place.start()] + rng.choice(NUMBERS).encode() + text[place.end() :]


TEXT_MUTATIONS: list[Mutation] = [
    *(on_lines(change) for change in (delete_a_line, repeat_a_line, swap_lines, indent_a_line)),
    flip_a_byte, insert_a_token, insert_a_token, cut_out, cut_off, replace_a_number,
    replace_a_number, replace_a_number,
]  # fmt: skip


def mutated_text(rng: random.Random, text: str) -> bytes:
    mutated = text.encode()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if mutated:
            mutated = rng.choice(TEXT_MUTATIONS)(rng, mutated)
    return mutated


# -- mutations of what it says -------------------------------------------------------------------

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 8, 64, 1.0, 8.0, 64.0, 0.5, 1e-5, 1e308, 5e-324, -0.0,
    float("inf"), float("nan"), 2**53 + 1, 2**63, 10**30, 10**400, "", " ", "8", "1e-5", "true",
    "null", "no", "any", "vae", "fast", "secure", "a" * 64, "A" * 64, "1" * 64, "x" * 3000, "../..",
    "a\nb", "é😀", "\x00", "\u2028", "~", "2026-01-01", [], {}, [[]], [None], ["a"], [1], {"a": 1},
    {"": None}, ["vae"], ["a" * 64], {"kind": "vae"}, ["normal"], ["normal", "normal"],
]  # fmt: skip


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a tree with every key or index in it."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from places(tree[key])


def of_another_type(rng: random.Random, value: Any) -> Any:
    ways: list[Any] = [str(value), [value], {"a": value}, None]
    if isinstance(value, bool):
        ways += [int(value), "yes" if value else "no", not value]
    elif isinstance(value, int | float):
        ways += [bool(value), -value, value + 1, f" {value}"]
        ways += [float(value), int(value)] if abs(value) < 1e300 else []
    elif isinstance(value, list):
        ways += [*value, dict.fromkeys(map(str, value)), value * 2, value[::-1]]
    elif isinstance(value, dict):
        ways += [list(value), list(value.items()), {key.upper(): one for key, one in value.items()}]
    elif isinstance(value, str):
        ways += [value.upper(), f"{value} ", value[:-1], list(value), value.encode().hex()]
    return rng.choice(ways)


def mutate_tree(rng: random.Random, tree: Any) -> None:
    found = list(places(tree))
    if not found:
        return
    inside, key = rng.choice(found)
    other, other_key = rng.choice(found)
    way = rng.randrange(6)
    if way == 0:
        inside[key] = deepcopy(rng.choice(VALUES))
    elif way == 1:
        inside[key] = of_another_type(rng, inside[key])
    elif way == 2:
        del inside[key]
    elif way == 3:
        inside[key] = deepcopy(other[other_key])
    elif isinstance(inside, dict):
        # A key that is nearly the same, or that belongs elsewhere.
        name = str(other_key) if way == 4 else key[:-1] + rng.choice(["", "s", "e", " ", "_"])
        inside[name] = inside.pop(key)
    else:
        inside.append(deepcopy(rng.choice(VALUES)))


def mutated_tree(rng: random.Random, settings: BaseModel) -> bytes:
    tree = settings.model_dump(mode="json", exclude_unset=True)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        mutate_tree(rng, tree)
    way = rng.randrange(4)
    if way == 0:
        written = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    elif way == 1:
        written = dump_settings(tree)
    else:
        written = yaml.safe_dump(tree, default_flow_style=way == 2, allow_unicode=True)
    return written.encode()


# -- reading -------------------------------------------------------------------------------------


def taken(kind: str, text: bytes, folder: Path) -> BaseModel | None:
    """Read a text, and fail unless it is refused in a sentence or taken as it is written."""
    path = folder / f"{kind}.yaml"
    path.write_bytes(text)
    result = read(kind, folder)
    if isinstance(result, FundusgenError):
        said = str(result)
        assert type(result) is ERRORS[kind], show(text)
        assert said.strip() == said, show(text)
        assert said.endswith((".", "!", "?")), show(text)
        assert len(said.splitlines()) == 1, said + show(text)
        assert str(path) in said, said + show(text)
        return None
    differences = not_as_written(path.read_text(encoding="utf-8"), result, folder)
    assert not differences, "; ".join(differences) + show(text)
    return result


@pytest.mark.parametrize("kind", BASES)
def test_a_text_that_nobody_changed_is_taken_as_it_is_written(tmp_path: Path, kind: str) -> None:
    for text in BASES[kind]:
        assert taken(kind, text.encode(), tmp_path) is not None


@pytest.mark.parametrize("way", ["text", "tree"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", BASES)
def test_a_settings_file_is_refused_in_a_sentence_or_means_what_it_says(
    tmp_path: Path, kind: str, seed: int, way: str
) -> None:
    rng = random.Random(f"{kind} {way} {seed}")
    settings: list[Any] = [taken(kind, text.encode(), tmp_path) for text in BASES[kind]]
    refused = 0
    for _ in range(MUTATIONS):
        number = rng.randrange(len(settings))
        if way == "text":
            text = mutated_text(rng, BASES[kind][number])
        else:
            text = mutated_tree(rng, settings[number])
        refused += taken(kind, text, tmp_path) is None
    # Neither all of them nor none, or nothing was tried.
    assert MUTATIONS * 0.1 < refused < MUTATIONS * 0.95


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"max_epsilon": 80.0}, ".max_epsilon"),
        ({"delta": 1e-4}, ".delta"),
        ({"studies": ()}, ".studies"),
        ({"studies": ("0b" * 32, "a" * 64)}, ".studies."),
        ({"code": "any"}, ".code"),
        ({"noise": "fast"}, ".noise"),
        ({"min_patients": 2}, ".min_patients"),
        ({"min_patients": None}, ".min_patients"),
        ({"release": Release(max_bytes_per_round=1)}, ".release"),
    ],
)
def test_the_judge_sees_a_value_that_was_not_taken_as_it_is_written(
    tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    read = parse_policy(POLICY, source="policy").model_copy(update=change)
    found = not_as_written(POLICY, read, tmp_path)
    assert found
    assert all(said.startswith(name) for said in found)


def test_the_judge_sees_a_key_that_was_not_read(tmp_path: Path) -> None:
    read = Policy(max_epsilon=8.0, delta=1e-5)
    assert not not_as_written("max_epsilon: 8\ndelta: 1e-5\n", read, tmp_path)
    for text in (
        "max_epsilon: 8\ndelta: 1e-5\nmin_patients: 1\n",
        "max_epsilon: 8\nmax_epsilon: 8\ndelta: 1e-5\n",
        "max_epsilon: !!float 8\ndelta: 1e-5\n",
        "max_epsilon: '8'\ndelta: 1e-5\n",
        "max_epsilon: 8\n",
        "max_epsilon: 8\ndelta: 1e-5\n---\nmax_epsilon: 8\ndelta: 1e-5\n",
        "max_epsilon: 8\ndelta: 1e-5 # \u2028noise: secure\n",
    ):
        assert not_as_written(text, read, tmp_path), text


def test_a_picture_size_with_a_decimal_point_is_no_whole_number(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(BASES["study"][0].replace("size: 64", "size: 64.0"))
    assert isinstance(read("study", tmp_path), StudyError)


# -- answering -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_study() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "tests" / "training")
        yield importlib.import_module("small_study")


@pytest.fixture(scope="module")
def untouched(small_study: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> SiteFolder:
    site: SiteFolder = small_study.phantom_site(tmp_path_factory.mktemp("site") / "untouched")
    assert site.settings().data.declared_patients == PATIENTS
    return site


def changed_policies(
    rng: random.Random, site: SiteFolder, folder: Path
) -> Iterator[tuple[bytes, Policy | None]]:
    """Changed texts of a site's policy until a dozen are policies; a few that are none first."""
    base, settings = site.policy_file.read_text(encoding="utf-8"), site.policy()
    left = {True: 12, False: 6}
    while left[True]:
        text = mutated_text(rng, base) if rng.random() < 0.5 else mutated_tree(rng, settings)
        policy = taken("policy", text, folder)
        assert policy is None or isinstance(policy, Policy)
        if left[policy is not None] and policy != settings:
            left[policy is not None] -= 1
            yield text, policy


def first_reason(policy: Policy, request: Request, study: Study) -> RefusalReason | None:
    """The word with which a policy refuses a site's first round, or None."""
    event = round_event(study, "dpsgd", ())
    found = objections(
        policy,
        study,
        noise_multiplier=event.noise_multiplier,
        declared_patients=PATIENTS,
        reply_bytes=sum(array.nbytes for array in request.weights.values()),
        code_hash=code_hash(),
    )
    over = over_budget(policy, [], event)
    return next((refused.reason for refused in [*found, over] if refused), None)


def answered(site: SiteFolder, request: Request) -> Answer | Refusal:
    try:
        return answering.answer(site, request)
    except Exception as error:
        error.add_note(show(site.policy_file.read_bytes()))
        raise


def beyond(policy: Policy, answer: Answer, study: Study) -> list[str]:
    """Everything about an answer that its policy does not allow, setting by setting."""
    receipt = answer.receipt
    within = {
        "max_epsilon": receipt.epsilon_total <= policy.max_epsilon,
        "delta": receipt.delta == policy.delta,
        "studies": study.study_hash in policy.studies,
        "code": policy.code == "any" or receipt.code_hash in policy.code,
        "models": study.model.kind in policy.models,
        "max_rounds_per_study": study.federation.rounds <= policy.max_rounds_per_study,
        "min_noise_multiplier": receipt.event.noise_multiplier >= policy.min_noise_multiplier,
        "min_patients": receipt.declared_patients >= policy.min_patients,
        "noise": receipt.noise in ("secure", policy.noise),
        "release": sum(array.nbytes for array in answer.weights.values())
        <= policy.release.max_bytes_per_round,
        "policy": receipt.policy_hash == policy.policy_hash,
    }
    return [name for name, is_within in within.items() if not is_within]


@pytest.mark.parametrize("seed", range(3))
def test_a_site_whose_policy_was_changed_answers_within_it_or_refuses_in_a_word(
    tmp_path: Path, small_study: ModuleType, untouched: SiteFolder, seed: int
) -> None:
    study = small_study.small_study()
    request = small_study.request_for(study)
    small_study.approve_asked(untouched, request)
    words = set()
    for number, (text, policy) in enumerate(
        changed_policies(random.Random(f"answers {seed}"), untouched, tmp_path)
    ):
        folder = tmp_path / str(number)
        shutil.copytree(untouched.path, folder)
        (folder / "policy.yaml").write_bytes(text)
        reply = answered(SiteFolder(folder), request)
        if policy is None:
            assert reply == Refusal(RefusalReason.POLICY_UNREADABLE), show(text)
        elif isinstance(reply, Answer):
            assert not beyond(policy, reply, study), show(text)
        else:
            assert type(reply.reason) is RefusalReason
            assert reply.reason is first_reason(policy, request, study), show(text)
            words.add(reply.reason)
    assert len(words) > 1, words
