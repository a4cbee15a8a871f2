"""Folders of one-coloured pictures for the tests of folder rules: the grey value tells which file was taken."""

from pathlib import Path

from PIL import Image

from collafuse_edge.data import ImageSet, Selection, load_images

SHAPE = (1, 4, 4)


def tree(root: Path, *names: str) -> Path:
    """Files of these names below ``root``; the grey value of each is 10 times its place, from 1."""
    for place, name in enumerate(names, start=1):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.new("L", (4, 4), 10 * place).save(path)
        else:
            path.write_bytes(b"x")
    return root


def taken(loaded: ImageSet) -> list[int]:
    """Places (from 1) of the files that were read, in order."""
    return [round((float(image[0, 0, 0]) + 1) * 12.75) for image in loaded.images]


def load(root: Path, **selection: object) -> ImageSet:
    return load_images(str(root), SHAPE, Selection(**selection))  # type: ignore[arg-type]


def notes(loaded: ImageSet) -> str:
    return "\n".join(loaded.notes)
