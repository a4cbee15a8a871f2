"""Any text, whoever wrote it, as something a terminal can show on one line."""

import re
from typing import Any

LINE_LIMIT = 1000
"""Characters of an error line."""

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (escape sequences begin with one), marks that turn the direction of text, lone surrogates."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` with every control character and lone surrogate spelt out, as in ``\\x1b``; line feeds too."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: object, limit: int = LINE_LIMIT) -> str:
    """``text`` on one line of at most ``limit`` (at least 5) characters; of a longer one both ends are kept.

    An error without words gives the name of its class.
    """
    line = printable(" ".join(str(text).split()))
    if not line and isinstance(text, BaseException):
        line = type(text).__name__
    if len(line) <= limit:
        return line
    head = (limit - 5) // 2
    return f"{line[:head]} ... {line[len(line) - (limit - 5 - head) :]}"


def without_surrogates(value: Any) -> Any:
    """JSON-like ``value`` whose texts are Unicode: a lone surrogate, which no UTF-8 file can hold, is spelt out.

    Raises:
        RecursionError: nested too deeply.
    """
    if isinstance(value, str):
        return _SURROGATE.sub(lambda found: ascii(found[0])[1:-1], value)
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_surrogates(item) for item in value]
    return value
