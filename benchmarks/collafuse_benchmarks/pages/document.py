"""A report's page, written once and rendered twice: Markdown, and one HTML file that loads nothing."""

import base64
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Template

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Heading:
    """A section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells as text; every row as long as the header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plot:
    """A picture with its caption; ``svg`` draws it when a page needs it (matplotlib)."""

    caption: str
    svg: Callable[[], str]


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption; in the HTML page alone."""

    caption: str
    png: bytes


Block = Heading | Paragraph | Table | Plot | Picture


@dataclass(frozen=True)
class Document:
    """A report's page.

    Attributes:
        title: its heading.
        blocks: what a person reads.
        answer: what was found, in a few lines: first on a terminal, and below the title on a page.
        appendix: what only a page has, and no terminal: the state of the machine.
        is_private: its HTML page is for its owner alone (mode 0600).
    """

    title: str
    blocks: tuple[Block, ...]
    answer: tuple[Block, ...] = ()
    appendix: tuple[Block, ...] = ()
    is_private: bool = False

    @property
    def every_block(self) -> tuple[Block, ...]:
        """All of the page below its title, in order."""
        return (*self.answer, *self.blocks, *self.appendix)

    @property
    def has_plots(self) -> bool:
        """Whether the HTML page needs matplotlib."""
        return any(isinstance(block, Plot) for block in self.every_block)


def figure(value: float | None, digits: int = 3, unit: str = "") -> str:
    """A number with that many significant digits (never an exponent below 1e6), or "not measured"."""
    if value is None:
        return NOT_MEASURED
    rounded = float(f"{value:.{digits}g}")
    decimals = max(0, digits - 1 - int(f"{rounded:e}".split("e")[1])) if rounded else 0
    text = f"{rounded:.{min(decimals, 9)}f}" if abs(rounded) < 1e6 else f"{rounded:.{digits - 1}e}"
    return f"{text} {unit}".rstrip()


def megabytes(value: int | None) -> str:
    """Bytes as "12.3 MB"."""
    return NOT_MEASURED if value is None else f"{value / 1e6:.1f} MB"


def to_markdown(document: Document) -> str:
    """Plots and pictures are left out: they are in the HTML page."""
    return "\n\n".join([f"# {document.title}", *_parts(document.every_block)]) + "\n"


def to_brief(document: Document) -> str:
    """For a terminal: the answer first, then the page without its appendix."""
    return "\n\n".join([*_parts(document.answer), f"# {document.title}", *_parts(document.blocks)]) + "\n"


def _parts(blocks: Sequence[Block]) -> list[str]:
    """A section that has plots or pictures alone is left out with them."""
    parts = []
    texts = [block for block in blocks if not isinstance(block, Plot | Picture)]
    for block, following in zip(texts, (*texts, None)[1:], strict=True):
        match block:
            case Heading(text):
                parts += [] if following is None or isinstance(following, Heading) else [f"## {text}"]
            case Paragraph(text):
                parts.append(text)
            case Table(header, rows):
                lines = [_markdown_row(header), "|---" * len(header) + "|", *map(_markdown_row, rows)]
                parts.append("\n".join(lines))
    return parts


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def to_html(document: Document) -> str:
    """One page: style and pictures inside, no script, no link to anything outside.

    Raises:
        ModuleNotFoundError: there are plots and matplotlib is not installed.
    """
    body = "\n".join(_html_block(block) for block in document.every_block)
    title = html.escape(document.title)
    return _PAGE.substitute(title=title, body=body)


def _html_block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Table(header, rows):
            lines = [_html_row(header, "th"), *(_html_row(row, "td") for row in rows)]
            return "<table>\n" + "\n".join(lines) + "\n</table>"
        case Plot(caption, svg):
            return f"<figure>{svg()}<figcaption>{html.escape(caption)}</figcaption></figure>"
        case Picture(caption, png):
            inside = f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
            return f"<figure>{inside}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .7rem; text-align: left; vertical-align: top; }
th { background: #f3f3f3; }
figure { margin: 1.5rem 0; } figure svg, figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .9rem; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")
