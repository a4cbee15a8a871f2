"""What an extra brings, wanted by name: one wording where it is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from collafuse_runtimes.errors import EngineUnavailable


def missing(library: str | None, extra: str) -> EngineUnavailable:
    """The error to raise for a library that is not here."""
    return EngineUnavailable(f"{library} is not installed; pip install 'collafuse-edge[{extra}]'")


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """For the imports of what an extra brings.

    Raises:
        EngineUnavailable: names the library that is missing and the extra.
    """
    try:
        yield
    except ImportError as error:
        raise missing(error.name, extra) from None
