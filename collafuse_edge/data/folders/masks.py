"""Masks and segmentations told from images by their names, as public data sets name them."""

import re
from pathlib import PurePath

_FOLDER = re.compile(
    r"(masks?|segmentations?|segs?|annotations?|labels?|ground[-_ ]?truths?|gt|labels?(tr|ts|val))", re.IGNORECASE
)
"""Whole names of folders; labelsTr and its like are those of the Medical Segmentation Decathlon and nnU-Net."""
_ENDING = re.compile(
    r".*[-_. ]((mask|seg|segmentation|dseg)s?([-_. ]?\d+)?|labels?|label[-_]?maps?|gt|ground[-_]?truth|annotations?)",
    re.IGNORECASE,
)
"""Of the stem: BUSI's ``_mask_1``, ISIC's ``_segmentation``, BraTS' ``_seg``, BIDS' ``_dseg``."""
_BEGINNING = re.compile(r"(mask|seg|segmentation)s?[-_. ].*", re.IGNORECASE)


def is_mask(path: PurePath) -> bool:
    """Whether a file's name, or that of a folder on its way, is one that masks have; ``path`` is below the root."""
    stem = path.name.removesuffix(".gz")
    stem = stem[: stem.rfind(".")] if "." in stem else stem
    in_folder = any(_FOLDER.fullmatch(part) for part in path.parts[:-1])
    return in_folder or bool(_ENDING.fullmatch(stem) or _BEGINNING.fullmatch(stem))
