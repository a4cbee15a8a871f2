"""docs/data_sheet.png: drawn heads of four populations, as `inspect` shows them to a network of 32x32.

python benchmarks/experiments/data_sheet.py [OUT.png]
"""

import sys
import tempfile
from pathlib import Path

from collafuse_benchmarks.commands import run
from collafuse_edge import load_images
from collafuse_runtimes.files.images import write_png

POPULATIONS, EACH, DRAWN, SEEN = 4, 8, 48, 32


def draw(out: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        data, sheet = Path(work) / "data", Path(work) / "sheet.png"
        for population in range(POPULATIONS):
            drawn = load_images(f"phantom:{population}:{EACH}:0", (1, DRAWN, DRAWN))
            folder = data / drawn.label_names[population]
            folder.mkdir(parents=True)
            for index, image in enumerate(drawn.images):
                write_png(folder / f"{index}.png", image)
        run(Path(work), "inspect", data, "--size", SEEN, "--out", sheet)
        out.write_bytes(sheet.read_bytes())


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "docs" / "data_sheet.png"))
