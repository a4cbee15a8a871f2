"""Labels that come as an array: whole numbers, texts, one-hot rows; what is no class is told apart."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.image_set import Int64Array
from collafuse_edge.data.labels.class_names import ClassNames
from collafuse_edge.data.notes import Notes
from collafuse_runtimes.errors import InputError

_WHOLE = re.compile(r"([0-9]{1,18})(?:\.0*)?")


@dataclass(frozen=True)
class Labels:
    """Classes of a source.

    Attributes:
        numbers: (N,) int64, or None.
        names: of every number from 0, or None.
        why_none: why ``numbers`` is None although the source has labels; "" where it has none.
    """

    numbers: Int64Array | None
    names: tuple[str, ...] | None = None
    why_none: str = ""


def array_labels(
    name: str, labels: npt.NDArray[Any] | None, count: int, names: tuple[str, ...] | None, notes: Notes
) -> Labels:
    """Classes from an array of labels.

    Understood are (N,) and (N, 1) whole numbers from 0 (of any dtype, floats and bools too), (N,) texts, and (N, K)
    one-hot rows. Rows with several labels, or none, are no classes.

    Args:
        names: of the source, or None.

    Raises:
        InputError: shape, dtype or a value is none of these, or beyond the names.
    """
    if labels is None:
        return Labels(None)
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise InputError(f"{name} has {count} images but labels of shape {labels.shape}; valid: one label per image")
    if labels.dtype.kind in "US":
        return _texts(name, labels, count, names, notes)
    if labels.dtype.kind not in "iufb":
        raise InputError(f"{name} has labels of dtype {labels.dtype}; valid: whole numbers from 0, texts, or one-hot")
    if labels.ndim == 2 and labels.shape[1] != 1:
        return _one_hot(labels, names, notes)
    _require_whole(name, labels)
    numbers = labels.reshape(count).astype(np.int64)
    last = len(names) - 1 if names else np.iinfo(np.int64).max
    wrong = numbers[(numbers < 0) | (numbers > last)]
    if wrong.size:
        raise InputError(f"{name} has label {wrong[0]}; valid: 0 to {last}")
    return Labels(numbers, names)


def text_labels(texts: list[str], notes: Notes) -> Labels:
    """Classes from texts; where all are whole numbers, they are the numbers themselves."""
    whole = [_whole(text) for text in texts]
    if None not in whole:
        return Labels(np.array(whole, np.int64))
    classes = ClassNames(texts, notes)
    return Labels(np.array([classes.number(text) for text in texts], np.int64), classes.names)


def names_of_texts(arrays: list[npt.NDArray[Any]], notes: Notes) -> tuple[str, ...] | None:
    """The classes of the labels of all splits, so that each split numbers them alike; None where they are no texts.

    Bytes that are no ASCII are refused with the split they belong to, by ``array_labels``.
    """
    texts = [
        text.decode("ascii", "replace").strip() if isinstance(text, bytes) else text.strip()
        for array in arrays
        if array.dtype.kind in "US"
        for text in array.ravel().tolist()
    ]
    return ClassNames(texts, notes).names if texts and None in map(_whole, texts) else None


def _texts(name: str, labels: npt.NDArray[Any], count: int, names: tuple[str, ...] | None, notes: Notes) -> Labels:
    if labels.ndim == 2 and labels.shape[1] != 1:
        return Labels(None, why_none=f"its labels are {labels.shape[1]} texts for each image")
    try:
        flat = labels.reshape(count).astype(str)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} has labels that are no ASCII texts ({error.reason}); save them as numpy str"
        ) from None
    texts = [text.strip() for text in flat.tolist()]
    if "" in texts:
        raise InputError(f"{name} has an empty label, of image {texts.index('')}; valid: one text for each image")
    if names is None:
        return text_labels(texts, notes)
    unknown = sorted(set(texts) - set(names))
    if unknown:
        raise InputError(f"{name} has label {unknown[0]!r}, which its label_names lack: {', '.join(names)}")
    return Labels(np.array([names.index(text) for text in texts], np.int64), names)


def _one_hot(labels: npt.NDArray[Any], names: tuple[str, ...] | None, notes: Notes) -> Labels:
    columns = labels.shape[1]
    if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
        return Labels(None, why_none=f"its labels are several for an image ({columns} columns, not one-hot)")
    if names is not None and len(names) != columns:
        return Labels(None, why_none=f"its labels have {columns} columns, but {len(names)} names")
    notes.say(f"labels read as one-hot, {columns} classes")
    return Labels(labels.argmax(axis=1).astype(np.int64), names)


def _require_whole(name: str, labels: npt.NDArray[Any]) -> None:
    if labels.dtype.kind != "f":
        return
    wrong = labels[~(np.isfinite(labels) & (labels == np.floor(labels)))]
    if wrong.size:
        raise InputError(f"{name} has label {wrong.flat[0]}, no whole number; valid: whole numbers from 0, or texts")


def _whole(text: str) -> int | None:
    found = _WHOLE.fullmatch(text)
    return int(found[1]) if found else None
