"""Settings files as they are written: a study, a site's settings, its policy.

Every file that a person writes is read here, and means what it says or is an error. YAML 1.1, which
Python's reader speaks, turns `no` into a boolean, `010` into eight and `1:30` into ninety, and
takes `1e-5` for text; here plain words are the few types of YAML 1.2's core schema, without its
other notations of a number, and whatever else stays text. Nothing is then turned into another
type: `"8"` is no number, 8.0 no count. An alias may stand for what was written before; a tag, a
merged mapping, a key given twice or a key that is no text that prints is an error.
"""

import json
import re
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

Settings = TypeVar("Settings", bound=BaseModel)

# YAML 1.1 ends a line at these, and with it a comment; YAML 1.2, JSON and most editors do not.
_OTHER_BREAKS = re.compile("[\x85\u2028\u2029]")
# Far above any settings file. A few lines with aliases can unfold to gigabytes.
MAX_UNFOLDED = 1 << 21
_INTEGER = r"[-+]?(?:0|[1-9][0-9]*)"
_FLOAT = (
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, held to what a settings file needs."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - how the base class declares it

    def __init__(self, text: str) -> None:
        super().__init__(text)
        if (found := _OTHER_BREAKS.search(text)) is not None:
            escape = f"\\u{ord(found.group()):04x}"
            line = text.count("\n", 0, found.start()) + 1
            raise ValueError(
                f"the character {escape} on line {line} ends a line for some readers of YAML only; "
                f"leave it out, or write {escape} in double quotes"
            )
        self._unfolded = 0
        self._unfolded_of: dict[str, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        """Make a node of what comes next, and count what it unfolds to."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self._unfolded_of:
                raise _fault(f"'*{event.anchor}' lies within itself", event.start_mark)
            self._count(self._unfolded_of.get(str(event.anchor), 0), event.start_mark)
            return super().compose_node(parent, index)  # type: ignore[arg-type]
        if event.tag is not None:
            raise _fault(f"the tag {event.tag!a} has no meaning here", event.start_mark)
        if isinstance(event, yaml.ScalarEvent):
            event.value = _whole(event.value, event.start_mark)
        before = self._unfolded
        self._count(1 + len(getattr(event, "value", "")), event.start_mark)
        node = super().compose_node(parent, index)  # type: ignore[arg-type]
        if event.anchor is not None:
            self._unfolded_of[event.anchor] = self._unfolded - before
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Make a dictionary of a mapping whose keys are texts and differ."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != self.DEFAULT_SCALAR_TAG:
                raise _fault("a key is no text; put it in quotes", key.start_mark)
            # Errors name keys, in logs and on terminals, where a line break would forge a line.
            if not key.value.isprintable():
                raise _fault(f"the key {key.value!a} holds what does not print", key.start_mark)
            if key.value == "<<" and key.style is None:
                raise _fault("mappings are not merged here; write it out", key.start_mark)
            if key.value in seen:
                raise _fault(f"the key '{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def _count(self, unfolded: int, mark: object) -> None:
        self._unfolded += unfolded
        if self._unfolded > MAX_UNFOLDED:
            raise _fault(f"it unfolds to more than {MAX_UNFOLDED:,} characters", mark)


def _plain(kind: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})\\Z", re.ASCII), list(first)
    )


_plain("null", "~|null|Null|NULL", "~nN")
# A value that is not there.
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"\Z"), [""])
_plain("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_plain("int", _INTEGER, "-+0123456789")
_plain("float", _FLOAT, "-+.0123456789")


def read_settings(
    text: str,
    model: type[Settings],
    spell_out: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Settings:
    """Read settings from YAML or JSON text.

    Every value that the text gives is in the result as it was written, and what it does not give
    has its default; there is nothing in between.

    Args:
        text: The file's text.
        model: What it must be; forbids keys that it does not know.
        spell_out: Replaces what may be written in a short form by its long one. A validator of
            the model cannot do it: pydantic then takes what is in it for Python's own types.

    Raises:
        pydantic.ValidationError: The text is YAML and no such settings.
        ValueError: It is not even that; says why.
    """
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - derives from SafeLoader
        if not isinstance(content, dict):
            raise ValueError(f"{_kind(content)} at its top instead of keys and values")
        # Through JSON, where a list may become a tuple and nothing else becomes anything else.
        # What is not a number reaches the model, which names the key that it is given for.
        plain = json.dumps(spell_out(content))
    # OverflowError: an escape for a character far beyond the last one.
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error
    return model.model_validate_json(plain, strict=True)


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper, which also quotes what only YAML 1.2 takes for a number or for text."""

    def ignore_aliases(self, data: object) -> bool:
        """Write everything out."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    style = '"' if _OTHER_BREAKS.search(text) else None
    return dumper.represent_scalar(_Dumper.DEFAULT_SCALAR_TAG, text, style)


_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(f"(?:{_FLOAT})\\Z"), list("-+.0123456789")
)
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    list("-+0123456789"),
)


def dump_settings(content: dict[str, Any]) -> str:
    """Write settings as YAML that `read_settings`, and any other reader, reads back equal."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _kind(content: object) -> str:
    return "nothing" if content is None else f"a {type(content).__name__}"


def _whole(text: str, mark: object) -> str:
    """Make one character of the two escapes that JSON writes for what lies beyond U+FFFF."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise _fault("an escape stands for half a character", mark) from error


def _fault(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
