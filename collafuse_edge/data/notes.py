"""What was done to images while they were read, said once per kind instead of once per image."""

from collections import Counter


class Notes:
    """A counter of conversions that keeps the order in which they first happened."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, what: str, count: int = 1) -> None:
        """Note that ``what`` (for example "colour made grey") happened to ``count`` more images."""
        self._counts[what] += count

    def lines(self) -> tuple[str, ...]:
        """ "colour made grey: 12 images", in the order of first notice."""
        return tuple(f"{what}: {count} image{'s' * (count != 1)}" for what, count in self._counts.items())
