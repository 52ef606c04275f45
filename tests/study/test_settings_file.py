"""What is written in a settings file is what is meant, or it is an error."""

import json
import math
import re
from typing import Any, Literal

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from fundusgen.settings_file import MAX_UNFOLDED, dump_settings, read_settings


class Anything(BaseModel):
    """Settings that show what was read as it was read."""

    model_config = ConfigDict(extra="forbid")

    content: Any = "nothing was given"


class Typed(BaseModel):
    """Settings of every type that a study, a site or a policy has; not strict by themselves."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    count: int = 1
    rate: float = 0.5
    flag: bool = False
    word: str = "word"
    size: Literal[32, 64] = 32
    kind: Literal["fast", "secure"] = "secure"
    names: tuple[str, ...] = ()
    maybe: int | None = None
    shares: dict[str, float] = {}


def content_of(text: str) -> Any:
    return read_settings(text, Anything).content


def value_of(written: str) -> Any:
    return content_of(f"content: {written}\n")


def error_of(text: str, model: type[BaseModel] = Anything) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what the reader promises
        read_settings(text, model)
    assert str(caught.value)
    return str(caught.value)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, and of equal types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


# YAML 1.2.2, 10.3.2: the tag resolution of the core schema.
CORE_NULL = re.compile(r"null|Null|NULL|~|")
CORE_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
CORE_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
CORE_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
CORE_NOT_FINITE = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN")
# What the core schema has beyond what people call a number: octal, hexadecimal, leading zeros.
OTHER_NOTATION = re.compile(r"0[ox].*|[-+]?0[0-9]+")


def by_the_core_schema(word: str) -> Any:
    """What a plain word means, slowly and obviously."""
    if CORE_NULL.fullmatch(word):
        return None
    if CORE_BOOL.fullmatch(word):
        return word.lower() == "true"
    if OTHER_NOTATION.fullmatch(word):
        return word
    if CORE_INT.fullmatch(word):
        return int(word)
    if CORE_FLOAT.fullmatch(word):
        return float(word)
    if CORE_NOT_FINITE.fullmatch(word):
        return float(word.replace(".", ""))
    return word


def is_text_for_every_reader(word: str) -> bool:
    """Whether neither YAML 1.1 nor 1.2 takes a plain word for anything but text."""
    core = CORE_NULL, CORE_BOOL, CORE_INT, CORE_FLOAT, CORE_NOT_FINITE
    old: Any = yaml.SafeLoader("")
    as_text = old.resolve(yaml.ScalarNode, word, (True, False)) == "tag:yaml.org,2002:str"
    return as_text and not any(kind.fullmatch(word) for kind in core)


# -- plain words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        "no", "No", "NO", "yes", "Yes", "on", "On", "off", "OFF", "y", "n", "Y", "N",
        "010", "-010", "00", "08", "09", "0o17", "0x1f", "0X1F", "0b11", "1_000", "1_0.5", "1,000",
        "1:30", "190:20:30", "1:30.5", "2026-01-01", "2026-01-01T10:00:00Z", "2026-1-1 1:00:00",
        "nUll", "none", "None", "tRue", "fALSE", "nan", "inf", "-inf", "Infinity", "NaN", ".Nan",
        ".iNf", "+.nan", "-.nan", "1e", "e5", "1e5.0", "1.2.3", "--1", "+-1", "1 000", "1-", ".",
        "+", "1f", "1l", "٣", "１２", "²", "½", "=", "/dev/null", "a#b", "a:b", "C:\\data", "--",
    ],
)  # fmt: skip
def test_a_word_that_is_no_plain_type_of_yaml_1_2_is_text(word: str) -> None:
    assert same(value_of(word), word)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("0", 0), ("-0", 0), ("+7", 7), ("-7", -7), ("8", 8), ("9007199254740993", 2**53 + 1),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("8.0", 8.0), ("-0.0", -0.0), ("1.", 1.0), (".5", 0.5), ("-.5", -0.5), ("+.5", 0.5),
        ("1e-5", 1e-5), ("1E5", 1e5), ("1e+5", 1e5), ("1.5e-3", 1.5e-3), (".5e2", 50.0),
        ("01.5", 1.5), ("5e-324", 5e-324), ("1.7976931348623157e308", 1.7976931348623157e308),
        (".inf", math.inf), ("-.INF", -math.inf), ("+.Inf", math.inf), ("1e999", math.inf),
        ("true", True), ("True", True), ("TRUE", True), ("false", False), ("FALSE", False),
        ("null", None), ("Null", None), ("NULL", None), ("~", None), ("", None), ("# none", None),
        ("''", ""), ('""', ""), ("'8'", "8"), ('"8"', "8"), ("'true'", "true"), ('"~"', "~"),
        ('"null"', "null"), ("'it''s'", "it's"), (r'"\t\"\\\x41\u00e9\/"', '\t"\\Aé/'),
        ("[]", []), ("{}", {}), ("[1, 1.0, '1', true, ~]", [1, 1.0, "1", True, None]),
        ("{a: 1, 'b c': [no]}", {"a": 1, "b c": ["no"]}), ("\n- 1\n- a: b", [1, {"a": "b"}]),
        ("|\n  8\n  9", "8\n9\n"), (">-\n  8\n  9", "8 9"), ("two words # no more", "two words"),
    ],
)  # fmt: skip
def test_a_value_is_what_yaml_1_2_says(word: str, value: object) -> None:
    assert same(value_of(word), value)


def test_what_is_not_a_number_is_none() -> None:
    for word in (".nan", ".NaN", ".NAN"):
        assert math.isnan(value_of(word))


@settings(deadline=None)
@given(st.text("0123456789+-.eExobnulltrfasINF_~", max_size=8))
def test_a_plain_word_is_what_the_core_schema_says_but_for_other_notations(word: str) -> None:
    assume(word not in ("-", "---"))
    read, expected = value_of(word), by_the_core_schema(word)
    assert same(read, expected) or (read != read and expected != expected)


@settings(deadline=None)
@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_to_the_last_bit(number: float) -> None:
    assert same(value_of(repr(number)), number)


# -- types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "written"),
    [
        *(("count", word) for word in ('"8"', "8.0", "8e0", "1.", "true", "null", "", "''", "[8]",
                                       "{}", "1_000", "0x8", "010", "1:30", "eight", ".inf")),
        *(("rate", word) for word in ('"0.5"', "true", "false", "null", "~", "", "0x1f", "0,5",
                                      "5%", "1/2", "1:30", "[0.5]", ".nan", ".inf", "-.inf",
                                      "1e999", "-1e999", "1" + "0" * 400)),
        *(("flag", word) for word in ("yes", "no", "on", "off", "y", "1", "0", "1.0", '"true"',
                                      "null", "", "'False'", "[]")),
        *(("word", word) for word in ("8", "1.5", "1e5", "true", "null", "~", "", "[]", "{}",
                                      "[word]", ".nan")),
        *(("size", word) for word in ('"64"', "64.5", "true", "33", "null", "0x40", "[64]")),
        *(("kind", word) for word in ("Fast", "null", "true", "1", "[fast]", "'fast '")),
        *(("names", word) for word in ("one", "[1]", "[null]", "[true]", "{a: b}", "null", "",
                                       "[[a]]", "[1e5]", "8")),
        *(("maybe", word) for word in ('"null"', "''", "none", "1.0", "false", "'1'")),
        *(("shares", word) for word in ("[]", "{a: '1'}", "{a: true}", "{a: null}", "{a}", "null")),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_an_error_that_names_its_key(key: str, written: str) -> None:
    assert key in error_of(f"{key}: {written}\n", Typed)


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("count", "8", 8), ("rate", "0.25", 0.25), ("rate", "1", 1.0), ("flag", "true", True),
        ("word", "no", "no"), ("word", "2026-01-01", "2026-01-01"), ("word", '"8"', "8"),
        ("word", "''", ""), ("size", "64", 64), ("kind", "fast", "fast"),
        ("names", "[no, '1', 1:30]", ("no", "1", "1:30")), ("maybe", "3", 3), ("maybe", "~", None),
        ("maybe", "", None), ("shares", "{a: 1, no: 2.5}", {"a": 1.0, "no": 2.5}),
    ],
)  # fmt: skip
def test_a_value_of_the_right_type_is_taken_and_all_else_keeps_its_default(
    key: str, written: str, value: object
) -> None:
    read = read_settings(f"{key}: {written}\n", Typed)
    assert read == Typed().model_copy(update={key: value})
    assert type(getattr(read, key)) is type(value)
    assert read.model_fields_set == {key}


def test_a_key_that_is_not_known_is_an_error() -> None:
    assert "cuont" in error_of("cuont: 1", Typed)


def test_a_number_with_more_digits_than_any_setting_is_an_error() -> None:
    assert "digits" in error_of(f"count: {'9' * 5000}", Typed)


def test_a_short_form_is_spelled_out_before_anything_is_checked() -> None:
    def spelled_out(content: dict[str, Any]) -> dict[str, Any]:
        return {"count": content["word"]} if content["word"] == 5 else content

    assert read_settings("word: 5", Typed, spelled_out).count == 5
    assert read_settings("word: five", Typed, spelled_out).word == "five"


# -- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "content: 1\ncontent: 1\n",
        "content: 1\n'content': 2\n",
        'content: 1\n"c\\x6fntent": 2\n',
        "content: {a: 1, b: 2, a: 3}\n",
        "content: {a: 1, ? a}\n",
        "content:\n- x:\n    a: 1\n    a: 1\n",
        "content: {&k a: 1, *k : 2}\n",
        '{"content": 1, "content": 2}',
        # JSON's two escapes for one character, and the character.
        'content: {"\\ud83d\\ude00": 1, "😀": 2}\n',
    ],
)
def test_a_key_that_is_given_twice_is_an_error(text: str) -> None:
    assert "given twice" in error_of(text)


def test_two_mappings_may_have_the_same_key() -> None:
    assert value_of("[{a: 1}, {a: 2, b: {a: 3}}]") == [{"a": 1}, {"a": 2, "b": {"a": 3}}]


@pytest.mark.parametrize(
    "text",
    [
        "1: 1", "1.5: 1", "true: 1", "null: 1", "~: 1", ".inf: 1", "? [a]\n: 1", "? {a: b}\n: 1",
        "? \n: 1", "[a]: 1", "{a: 1}: 1", "content: {1: 1}", "content: {? [a] : 1}",
        "content: [&a 1, {*a : 1}]", "content: [&a [], {*a : 1}]",
    ],
)  # fmt: skip
def test_a_key_that_is_no_text_is_an_error(text: str) -> None:
    assert "a key is no text" in error_of(text)


@pytest.mark.parametrize(
    ("key", "text"), [("'1'", "1"), ('"true"', "true"), ("no", "no"), ("2026-01-01", "2026-01-01"),
                      ("010", "010"), ("''", ""), ("'<<'", "<<"), ("=", "=")],
)  # fmt: skip
def test_a_key_is_text_where_its_word_is_or_in_quotes(key: str, text: str) -> None:
    assert value_of(f"{{{key}: 1}}") == {text: 1}


@pytest.mark.parametrize(
    "key",
    [
        "\\n",
        "\\r",
        "\\t",
        "\\x1b[31m",
        "\\0",
        "\\x85",
        "\\u2028",
        "\\u200b",
        "\\u202e",
        "\\xa0",
        "\\ufeff",
    ],
)
@pytest.mark.parametrize("text", ['"coun{}t": 1', '{{"names": [], "shares": {{"a{}": 1.0}}}}'])
def test_a_key_that_does_not_print_is_an_error_that_prints(text: str, key: str) -> None:
    """What a server sends is read too: an unknown key must not forge a line of the site's log."""
    first = error_of(text.format(key), Typed).splitlines()[0]
    assert "does not print" in first
    assert first.isprintable()


# -- what YAML has and a settings file does not --------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        "!!int '8'", "!!str 8", "!!float 8", "!!bool yes", "!!null ''", "! 8", "!x 8", "!!set {a}",
        "!!omap [a: 1]", "!!pairs [a: 1]", "!!binary aGk=", "!!timestamp 2026-01-01", "!!map {}",
        "!<tag:yaml.org,2002:int> 8", "[!!str 8]", "{!!str a: 8}", "!!python/none x",
        "!!python/object/apply:os.system ['true']", "!!python/name:os.system",
    ],
)  # fmt: skip
def test_a_tag_is_an_error(written: str) -> None:
    assert "tag" in error_of(f"content: {written}\n")


@pytest.mark.parametrize(
    "text",
    [
        "content: {<<: {a: 1}, b: 2}",
        "content:\n- &base {a: 1}\n- {<<: *base}\n",
        "content:\n- &base {a: 1}\n- {<<: [*base], a: 2}\n",
        "<<: {content: 1}",
    ],
)
def test_a_merged_mapping_is_an_error(text: str) -> None:
    assert "merged" in error_of(text)


def test_an_alias_stands_for_what_was_written_before() -> None:
    assert value_of("[&a no, *a, &b [1, *a], *b, {k: *b}]") == [
        "no", "no", [1, "no"], [1, "no"], {"k": [1, "no"]},
    ]  # fmt: skip


@pytest.mark.parametrize("written", ["*a", "[*a, &a 1]", "[&a 1, *b]", "[&a 1, &a 2]"])
def test_an_alias_to_nothing_or_to_two_things_is_an_error(written: str) -> None:
    assert "alias" in error_of(f"content: {written}") or "anchor" in error_of(f"content: {written}")


@pytest.mark.parametrize(
    "text",
    [
        "content: &a [*a]",
        "content: &a {b: *a}",
        "content: &a [[[[*a]]]]",
        "content: [&a [1, &b [2, *a], *b], *a]",
        "&a {content: *a}",
        "&a\ncontent:\n- *a\n",
    ],
)
def test_an_alias_within_what_it_stands_for_is_an_error(text: str) -> None:
    assert "within itself" in error_of(text)


def laughs(levels: int, times: int, pattern: str = "[{}]") -> str:
    lines = ["a0: &a0 ha"]
    for level in range(1, levels + 1):
        inner = [f"*a{level - 1}"] * times
        if pattern == "{{{}}}":
            inner = [f"k{number}: {alias}" for number, alias in enumerate(inner)]
        lines.append(f"a{level}: &a{level} {pattern.format(', '.join(inner))}")
    return "\n".join([*lines, f"content: *a{levels}"])


@pytest.mark.parametrize(
    "text",
    [
        laughs(9, 9),
        laughs(9, 9, "{{{}}}"),
        laughs(40, 2),
        laughs(400, 2),
        f"content: [&a {'x' * 20_000}{', *a' * 20_000}]",
    ],
)
def test_a_bomb_of_aliases_is_refused_before_it_is_unfolded(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json, "dumps", lambda _: pytest.fail("it was unfolded"))
    assert "unfolds" in error_of(text)


@pytest.mark.parametrize("unit", [1_000, 50_000])
def test_aliases_unfold_to_a_limit_and_no_further(unit: int) -> None:
    times = MAX_UNFOLDED // (unit + 1)
    text = f"content: [&a {'x' * unit}{{}}]"
    assert len(value_of(text.format(", *a" * (times - 2)).removeprefix("content: "))) == times - 1
    assert "unfolds" in error_of(text.format(", *a" * (times + 1)))


def test_a_text_without_aliases_is_held_to_the_same_limit() -> None:
    assert "unfolds" in error_of(f"content: {'x' * MAX_UNFOLDED}")


@pytest.mark.parametrize("depth", [300, 1_000, 5_000, 100_000])
@pytest.mark.parametrize(
    ("opened", "closed"),
    [("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", ""), ("[{a: ", "}]"), ("{? ", "}")],
)
def test_what_is_nested_too_deep_is_an_error_of_the_same_kind(
    opened: str, closed: str, depth: int
) -> None:
    error_of("content:\n  " + opened * depth + "1" + closed * depth)


def test_what_is_never_closed_is_an_error_of_the_same_kind() -> None:
    for opened in ("[", "{a: ", "{", "' ", '" '):
        error_of("content: " + opened * 9_999)


def test_an_alias_nested_too_deep_is_an_error_of_the_same_kind() -> None:
    lines = [f"a{level}: &a{level} [*a{level - 1}]" for level in range(1, 1000)]
    error_of("\n".join(["a0: &a0 x", *lines, "content: *a999"]))


def test_a_few_dozen_levels_are_read() -> None:
    nested = value_of("[" * 60 + "]" * 60)
    for _ in range(59):
        (nested,) = nested
    assert nested == []


# -- the text as a whole -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "nothing"), ("\n\n", "nothing"), ("# a comment\n", "nothing"), ("---\n", "nothing"),
        ("---\n...\n", "nothing"), ("null", "nothing"), ("~", "nothing"), ("- a: 1", "a list"),
        ("[]", "a list"), ("word", "a str"), ("content", "a str"), ("'content: 1'", "a str"),
        ("8", "a int"), ("true", "a bool"), ("1e-5", "a float"),
    ],
)  # fmt: skip
def test_a_text_without_keys_at_its_top_is_an_error_that_says_what_it_is(
    text: str, found: str
) -> None:
    assert found in error_of(text)


def test_an_empty_mapping_leaves_every_default() -> None:
    assert content_of("{}") == "nothing was given"


@pytest.mark.parametrize(
    "text",
    [
        "content: 1\n---\ncontent: 2\n",
        "content: 1\n---\n",
        "---\n---\ncontent: 1\n",
        "content: 1\n...\ncontent: 2\n",
        "content: 1\n...\n---\n",
        "content: 1\n...\n# no more\n...\ncontent: 1\n",
    ],
)
def test_several_documents_are_an_error_and_not_the_first_or_the_last(text: str) -> None:
    error_of(text)


@pytest.mark.parametrize(
    "text", ["---\ncontent: 1\n", "content: 1\n...\n", "%YAML 1.2\n---\ncontent: 1\n...\n# end\n"]
)
def test_the_marks_around_one_document_say_nothing(text: str) -> None:
    assert same(content_of(text), 1)


@pytest.mark.parametrize("text", ["content: no", "content: 010", "content: 1:30"])
def test_a_text_that_says_it_is_yaml_1_1_is_read_as_any_other(text: str) -> None:
    assert content_of(f"%YAML 1.1\n---\n{text}\n") == text.removeprefix("content: ")


@pytest.mark.parametrize(
    "character",
    [chr(code) for code in range(160) if not chr(code).isprintable() and code not in b"\t\n\r\x85"]
    + ["\ud800", "\udfff", "\ufffe", "\uffff"],
)
@pytest.mark.parametrize("text", ["content: a{}b", "content: '{}'", "content: 1 # {}", "{}"])
def test_a_control_character_is_an_error_wherever_it_is(text: str, character: str) -> None:
    error_of(text.format(character))


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize(
    "text",
    [
        "content: 1 # an approved value{}content: 2",
        "# a note{}content: 2",
        "# a note\ncontent: 1{}",
        "content: a{}b",
        "content: 'a{}b'",
        'content: "a {} b"',
        '{{"content": "a{}b"}}',
        "content: |\n  a{}  b\n",
    ],
)
def test_a_line_that_ends_for_some_readers_only_is_an_error_that_says_how_to_write_it(
    text: str, character: str
) -> None:
    assert f"\\u{ord(character):04x}" in error_of(text.format(character))


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029", "\x00", "\x7f", "\ufeff"])
def test_any_character_may_be_written_as_an_escape(character: str) -> None:
    assert value_of(f'"a\\u{ord(character):04x} b"') == f"a{character} b"


def test_a_character_of_two_escapes_is_one_character() -> None:
    assert value_of('"\\ud83d\\ude00"') == value_of('"\\U0001F600"') == value_of("😀") == "😀"


@pytest.mark.parametrize(
    "escape",
    ["\\ud800", "\\udc00", "\\ude00\\ud83d", "\\U00110000", "\\UFFFFFFFF", "\\xg0", "\\q", "\\u12"],
)
def test_an_escape_for_no_character_is_an_error(escape: str) -> None:
    error_of(f'content: "a{escape}b"')


def test_a_byte_order_mark_at_the_start_says_nothing_and_anywhere_else_is_text() -> None:
    assert same(content_of("\ufeffcontent: 1\n"), 1)
    assert value_of("\ufeff1") == "\ufeff1"
    assert "\\ufeff" in error_of("rate: 1\n\ufeffcount: 2\n", Typed)


FOLDED = "# note\ncontent:\n- a\n- |\n  b\n\n  c\n- 'd\n  e'\n- {k: no}  # last\n"


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_the_ends_of_lines_say_nothing(end: str) -> None:
    assert content_of(FOLDED.replace("\n", end)) == content_of(FOLDED)
    assert content_of(FOLDED) == ["a", "b\n\nc\n", "d e", {"k": "no"}]


def test_what_is_wrong_is_told_with_its_line() -> None:
    assert "line 3" in error_of("# one\n# two\ncontent: !x 1\n")
    assert "line 2" in error_of("content: 1\ncontent: 2\n")
    assert "line 2" in error_of("content: 1 #\n# \u2028\n")


# -- there and back ------------------------------------------------------------------------------

numbers = st.integers() | st.floats(allow_nan=False)
# Ordinary text, and text made of what means something to some reader of YAML.
texts = st.text() | st.text(
    " \t\r\n\x85\u2028\u2029'\"\\:#-?,[]{}&*!|>%@`<=~0189oxeE.+_yYnN\ufeff\xa0é😀\x7f\x00",
    max_size=12,
)
# Short enough for JSON: YAML takes no key of more than 1024 characters, as they are written.
keys = texts.map(lambda text: "".join(filter(str.isprintable, text))[:60])
plain_content = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(plain_content)
def test_what_is_dumped_is_read_back_equal_here_and_by_any_other_reader(content: Any) -> None:
    dumped = dump_settings({"content": content})
    assert same(content_of(dumped), content)
    assert same(yaml.safe_load(dumped), {"content": content})


@settings(deadline=None)
@given(texts)
def test_a_text_is_dumped_in_quotes_where_any_reader_takes_its_word_for_something_else(
    text: str,
) -> None:
    node: Any = yaml.compose(dump_settings({"content": text}), Loader=yaml.BaseLoader)
    written = node.value[0][1]
    assert written.value == text
    assert written.style is not None or is_text_for_every_reader(text)


@pytest.mark.parametrize(
    "text",
    [
        "no", "y", "08", "-09", "0o17", "0x1F", "1_000", "1:30", "2026-01-01", "1e5", "12E3", ".5",
        "1.", "~", "", "null", "true", ".inf", ".NaN", "<<", "=", "a\x85b", "\u2028", "# no", "a: b"
    ],
)  # fmt: skip
def test_a_text_that_looks_like_something_else_is_dumped_so_that_it_stays_text(text: str) -> None:
    dumped = dump_settings({"content": text, "key": {text: 1}})
    if text.isprintable():
        assert read_settings(dumped, Loose).key == {text: 1}
    assert same(content_of(dump_settings({"content": text})), text)
    assert yaml.safe_load(dumped) == {"content": text, "key": {text: 1}}
    assert ("'" in dumped or '"' in dumped) or text == "y"


class Loose(Anything):
    key: Any = None


def test_what_is_dumped_keeps_its_order_and_is_written_out() -> None:
    shared = [1, 2]
    dumped = dump_settings({"z": shared, "a": shared, "m": {"é": shared}})
    assert dumped == "z:\n- 1\n- 2\na:\n- 1\n- 2\nm:\n  é:\n  - 1\n  - 2\n"


json_texts = st.text(
    st.characters(
        exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\ufffe\uffff\U0010ffff"
    )
)
json_content = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(json_content | texts, st.sampled_from([None, 0, 2]))
def test_json_text_is_read_as_json_says(content: Any, indent: int | None) -> None:
    assert same(content_of(json.dumps({"content": content}, indent=indent)), content)
    compact = json.dumps({"content": content}, separators=(",", ":"))
    assert same(content_of(compact), content)


@settings(deadline=None)
@given(json_texts)
def test_json_text_need_not_be_ascii(text: str) -> None:
    key = "".join(filter(str.isprintable, text))[:60]
    written = json.dumps({"content": {key: text}}, ensure_ascii=False)
    assert content_of(written) == {key: text}


def test_json_that_yaml_does_not_take_is_an_error_and_not_another_value() -> None:
    error_of('{\n\t"content": 1\n}')
    error_of(json.dumps({"content": {"k" * 1100: 1}}))
    assert content_of('{"content": [NaN, Infinity]}') == ["NaN", "Infinity"]


@settings(deadline=None)
@given(plain_content.filter(lambda content: content == content))
def test_json_and_yaml_of_the_same_settings_are_read_the_same(content: Any) -> None:
    try:
        as_json = json.dumps({"content": content}, allow_nan=False)
    except ValueError:
        return
    assert same(content_of(as_json), content_of(dump_settings({"content": content})))


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_settings_or_one_kind_of_error(text: str) -> None:
    try:
        read = read_settings(text, Anything)
    except ValueError:
        return
    assert isinstance(read, Anything)
