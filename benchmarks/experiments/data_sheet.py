"""docs/data_sheet.png: drawn heads of four populations, as `inspect` shows them to a network of 32x32.

python benchmarks/experiments/data_sheet.py [OUT.png]
"""

import sys
import tempfile
from pathlib import Path

from collafuse_edge.data import load_images
from collafuse_edge.data.inspection import inspect_images
from collafuse_edge.data.phantom import POPULATION_TYPES, phantoms
from collafuse_runtimes.files.images import write_png

EACH, DRAWN, SEEN = 8, 48, (1, 32, 32)


def draw(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for population, name in enumerate(POPULATION_TYPES):
            (Path(folder) / name).mkdir()
            for index, image in enumerate(phantoms(population, EACH, 0, (1, DRAWN, DRAWN)).images):
                write_png(Path(folder) / name / f"{index}.png", image)
        inspect_images(load_images(folder, SEEN), out)
    out.chmod(0o644)


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "docs" / "data_sheet.png"))
