"""Frozen dataclasses as JSON and back: one writer, and one strict reader that goes by the types of the fields."""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, cached_property
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from collafuse_runtimes.errors import InputError
from collafuse_runtimes.text import one_line

Facts = Mapping[str, Any]
"""Kept as it was found: what a machine says of itself, what another command printed."""
R = TypeVar("R", bound="Record")
_MOST = 1e15
"""No time, energy or score is larger; a picture's axis has room for it."""


class Record:
    """Base of the frozen dataclasses that a report is made of.

    ``derived`` names the properties that are written beside the fields; a reader computes them anew.
    """

    derived: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return _written(self, type(self)) | {name: to_json(getattr(self, name)) for name in self.derived}

    @classmethod
    def from_dict(cls: type[R], value: object) -> R:
        """Inverse of ``to_dict``; what has a default may be missing, as in reports of earlier releases.

        Raises:
            InputError: names the field that is missing, unknown, of another type or of an odd value.
        """
        try:
            found: R = _read(cls, value)
        except _Odd as odd:
            raise InputError(f"{odd.path.removeprefix('.') or 'it'}{odd.text}") from None
        return found


def to_json(value: Any) -> Any:
    """Dataclasses inside ``value`` as objects."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return _written(value, type(value))
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return type(value)(map(to_json, value)) if isinstance(value, list | tuple) else value


def _written(record: Any, kind: Any) -> dict[str, Any]:
    return {name: to_json(getattr(record, name)) for name in _fields(kind)}


class _Odd(Exception):
    """``path`` leads to the value, as in ".series[1].batch"."""

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text)
        self.text, self.path = text, path


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_MOST <= value <= _MOST


_PLAIN: dict[Any, tuple[Callable[[object], bool], str]] = {
    NoneType: (lambda value: value is None, "null"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (_is_integer, "an integer"),
    float: (_is_number, f"a number from {-_MOST:g} to {_MOST:g}"),
    str: (lambda value: isinstance(value, str), "a text"),
}
"""Type to (what holds of its JSON, the same in words)."""


def _read(hint: Any, value: Any) -> Any:
    if hint is Any:
        return value
    holds, valid = _rule(hint)
    if not holds(value):
        raise _Odd(f" is {one_line(reprlib.repr(value), 80)}; valid: {valid}")
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _read_member(args, value)
    if origin is tuple:
        hints = args[:1] * len(value) if args[1:] == (...,) else args
        return tuple(_inside(f"[{i}]", *pair) for i, pair in enumerate(zip(hints, value, strict=True)))
    if isinstance(value, dict):
        return _read_record(hint, value) if origin is None else _read_mapping(args[1], value)
    return float(value) if hint is float else value


@cache
def _rule(hint: Any) -> tuple[Callable[[Any], bool], str]:
    """(what holds of the JSON of a type at first sight, the same in words)."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in args, ", ".join(args)
    if origin in (Union, UnionType):
        rules = [_rule(member) for member in args]
        return lambda value: any(holds(value) for holds, _ in rules), " or ".join(dict.fromkeys(v for _, v in rules))
    if origin is tuple:
        count = None if args[1:] == (...,) else len(args)
        valid = "a list" if count is None else f"a list of {count}"
        return lambda value: isinstance(value, list | tuple) and count in (None, len(value)), valid
    return lambda value: isinstance(value, dict), "an object"


def _read_member(members: tuple[Any, ...], value: Any) -> Any:
    """Of the types that the value may have at first sight, the first that it has; else what is odd by the first."""
    odd: _Odd | None = None
    for member in members:
        if _rule(member)[0](value):
            try:
                return _read(member, value)
            except _Odd as found:
                odd = odd or found
    assert odd is not None
    raise odd


def _read_mapping(hint: Any, value: dict[str, Any]) -> dict[str, Any]:
    return {key: _inside(f".{one_line(key, 40)}", hint, item) for key, item in value.items()}


def _read_record(kind: Any, value: dict[str, Any]) -> Any:
    try:
        return kind.from_dict(value) if "from_dict" in vars(kind) else kind(**_read_fields(kind, value))
    except InputError as error:
        raise _Odd(f": {error}") from None


def _read_fields(kind: Any, value: dict[str, Any]) -> dict[str, Any]:
    known, hints = _fields(kind), _hints(kind)
    if missing := [name for name, is_needed in known.items() if is_needed and name not in value]:
        raise _Odd(f" lacks {', '.join(missing)}")
    if unknown := sorted(value.keys() - known.keys() - _properties(kind)):
        raise _Odd(f" has the unknown field {one_line(unknown[0], 80)!r}")
    return {name: _inside(f".{name}", hints[name], value[name]) for name in known if name in value}


def _inside(place: str, hint: Any, value: Any) -> Any:
    try:
        return _read(hint, value)
    except _Odd as odd:
        raise _Odd(odd.text, place + odd.path) from None


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _fields(kind: Any) -> dict[str, bool]:
    """Name of each field -> whether it has no default."""
    return {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}


@cache
def _properties(kind: Any) -> frozenset[str]:
    own = [item for base in kind.__mro__ for item in vars(base).items()]
    return frozenset(name for name, item in own if isinstance(item, property | cached_property))
