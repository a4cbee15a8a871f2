"""What was done to images while they were read, said once per kind instead of once per image."""

from collections import Counter


class Notes:
    """Lines, and a counter of conversions, in the order in which they first came."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, what: str, count: int = 1) -> None:
        """Note that ``what`` (for example "colour made grey") happened to ``count`` more images."""
        self._counts[what] += count

    def say(self, line: str) -> None:
        """Note something that is not counted in images; said once however often it comes."""
        self._counts[line] += 0

    def merge(self, other: "Notes") -> None:
        """Take over what ``other`` noted."""
        for what, count in other._counts.items():
            self._counts[what] += count

    def lines(self) -> tuple[str, ...]:
        """ "colour made grey: 12 images", in the order of first notice."""
        return tuple(f"{what}: {images(count)}" if count else what for what, count in self._counts.items())


def one_line(text: str) -> str:
    """The text with a question mark for each character that would break a line or move the cursor."""
    return "".join(letter if letter.isprintable() or "\udc80" <= letter <= "\udcff" else "?" for letter in text)


def images(count: int) -> str:
    """ "1 image", "2 images"."""
    return f"{count} image{'s' * (count != 1)}"


def listed(names: list[str], most: int = 12) -> str:
    """Names in one line, those beyond ``most`` as a number."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
