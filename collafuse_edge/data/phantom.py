"""MRI-like head phantoms: randomised modified Shepp-Logan ellipses, drawn with numpy alone.

Table: P. Toft, "The Radon Transform: Theory and Implementation", PhD thesis, DTU 1996, appendix B ("modified" contrast
of Shepp & Logan 1974). A sample is a function of (population, seed, index): Philox4x64 (Salmon et al. 2011) with the
key (seed, population) and the index in the counter, so it does not depend on how many are drawn.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.image_set import Float32Array, ImageSet, Int64Array, Source
from collafuse_runtimes.diffusion.noise import MAX_SEED
from collafuse_runtimes.errors import InputError

Float64Array = npt.NDArray[np.float64]

SPEC = "phantom:<population>[:<count>[:<seed>]]"
DEFAULT_COUNT = 512
MAX_COUNT = 10**7
POPULATION_TYPES = ("round_lesion", "ring_lesion", "large_ventricles", "paired_lesions")

TOFT = np.array(
    [  # A, a, b, x0, y0, phi (degrees): grey value added, half axes, centre, rotation
        [1.0, 0.69, 0.92, 0.0, 0.0, 0.0],
        [-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0],
        [-0.2, 0.11, 0.31, 0.22, 0.0, -18.0],
        [-0.2, 0.16, 0.41, -0.22, 0.0, 18.0],
        [0.1, 0.21, 0.25, 0.0, 0.35, 0.0],
        [0.1, 0.046, 0.046, 0.0, 0.1, 0.0],
        [0.1, 0.046, 0.046, 0.0, -0.1, 0.0],
        [0.1, 0.046, 0.023, -0.08, -0.605, 0.0],
        [0.1, 0.023, 0.023, 0.0, -0.606, 0.0],
        [0.1, 0.023, 0.046, 0.06, -0.605, 0.0],
    ]
)
_SKULL, _BRAIN, _VENTRICLES, _NUCLEI, _INNER = 0, 1, slice(2, 4), slice(4, 10), slice(2, 10)
_GREY, _AXES, _CENTRE, _ANGLE = 0, slice(1, 3), slice(3, 5), 5
_STYLES = 0x7374796C6573  # "styles": the key of what a population shares, apart from every (seed, population)
_WAVES = 5
_CHUNK = 64


@dataclass(frozen=True)
class _Style:
    """What the members of one population share; lengths in units of half the image's shorter side."""

    kind: str
    brain: float
    ventricles: float
    lesion: tuple[float, float]
    radius: float


@dataclass(frozen=True)
class _Heads:
    """Parameters of B phantoms.

    Attributes:
        anatomy: (B, 10, 6) ellipses whose grey values add up, columns as in ``TOFT``.
        lesions: (B, L, 6) ellipses painted over the anatomy in order.
        pose: (B, 4) rotation in radians, scale, shift x, shift y.
        field: (B, 2) slope of the coil's sensitivity along x and y.
        waves: (B, W, 3) texture: frequency x, frequency y, phase in radians.
    """

    anatomy: Float64Array
    lesions: Float64Array
    pose: Float64Array
    field: Float64Array
    waves: Float64Array


def phantoms(population: int, count: int, seed: int, image_shape: tuple[int, int, int]) -> ImageSet:
    """Draw ``count`` heads of one population; the label is the population's type.

    Populations 0 to 3 are the types of ``POPULATION_TYPES``; higher ones repeat the types in turn with a brightness,
    lesion place and lesion size of their own.

    Raises:
        InputError: a number is out of range.
    """
    _check_numbers(population, count, seed)
    channels, height, width = image_shape
    images = np.empty((count, channels, height, width), np.float32)
    for row, plane in enumerate(_planes(population, seed, np.arange(count), height, width)):
        images[row] = 2 * plane - 1
    source = f"phantom:{population}:{count}:{seed}"
    return ImageSet(images, _labels(population, count), POPULATION_TYPES, source)


def open_phantoms(spec: str, image_shape: tuple[int, int, int]) -> Source:
    """Phantoms as a source; ``spec`` is ``phantom:<population>[:<count>[:<seed>]]``, count 512 and seed 0 by default.

    Raises:
        InputError: ``spec`` has another form or a number out of range.
    """
    fields = spec.split(":")[1:]
    if not 1 <= len(fields) <= 3 or not all(field.isascii() and field.isdigit() for field in fields):
        raise InputError(f"{spec!r} is no phantom source; valid: {SPEC} in whole numbers, such as phantom:0:512")
    population, count, seed = (*(int(field) for field in fields), *(DEFAULT_COUNT, 0)[len(fields) - 1 :])
    _check_numbers(population, count, seed)
    _, height, width = image_shape

    def read(rows: Int64Array) -> Iterator[Float32Array]:
        return _planes(population, seed, rows, height, width)

    return Source(count, read, _labels(population, count), POPULATION_TYPES)


def draw(heads: _Heads, height: int, width: int) -> Float32Array:
    """(B, height, width) float32 in [0, 1]; edges cover their pixels in part, so there is no aliasing."""
    angle, scale, shift_x, shift_y = (column[:, None, None] for column in heads.pose.astype(np.float32).T)
    pixel = np.float32(2 / min(height, width))
    column = (np.arange(width, dtype=np.float32) - (width - 1) / 2) * pixel - shift_x  # (B, 1, W)
    upward = (height - 1) / 2 - np.arange(height, dtype=np.float32)
    row = upward[:, None] * pixel - shift_y  # (B, H, 1)
    x = (np.cos(angle) * column + np.sin(angle) * row) / scale  # (B, H, W)
    y = (np.cos(angle) * row - np.sin(angle) * column) / scale
    image = np.zeros(x.shape, np.float32)
    for index in range(heads.anatomy.shape[1]):
        ellipse = heads.anatomy[:, index]
        image += _weight(ellipse) * _coverage(ellipse, x, y, pixel / scale)
    brain = _coverage(heads.anatomy[:, _BRAIN], x, y, pixel / scale)
    image = np.clip(image, 0, 1) + brain * _texture(heads.waves, x, y)
    for index in range(heads.lesions.shape[1]):
        ellipse = heads.lesions[:, index]
        image += (_weight(ellipse) - image) * brain * _coverage(ellipse, x, y, pixel / scale)
    slope_x, slope_y = (slope[:, None, None] for slope in heads.field.astype(np.float32).T)
    shaded: Float32Array = image * (1 + slope_x * x + slope_y * y)
    return shaded.clip(0, 1)


def _coverage(ellipse: Float64Array, x: Float32Array, y: Float32Array, pixel: Float32Array) -> Float32Array:
    """Share of each pixel inside the ellipse: signed distance to first order, (1 - f) / |grad f|, in pixels."""
    a, b, x0, y0, phi = (column[:, None, None] for column in ellipse[:, 1:].astype(np.float32).T)
    cos, sin = np.cos(np.radians(phi)), np.sin(np.radians(phi))
    u = ((x - x0) * cos + (y - y0) * sin) / a
    v = ((y - y0) * cos - (x - x0) * sin) / b
    f = np.sqrt(u * u + v * v) + np.float32(1e-6)
    slope = np.sqrt((u / a) ** 2 + (v / b) ** 2) / f + np.float32(1e-6)
    inside: Float32Array = 0.5 + (1 - f) / (slope * pixel)
    return inside.clip(0, 1)


def _texture(waves: Float64Array, x: Float32Array, y: Float32Array) -> Float32Array:
    total: Float32Array = np.zeros(x.shape, np.float32)
    for index in range(waves.shape[1]):
        frequency_x, frequency_y, phase = (column[:, None, None] for column in waves[:, index].astype(np.float32).T)
        total += np.float32(0.012) * np.cos(frequency_x * x + frequency_y * y + phase)
    return total


def _weight(ellipse: Float64Array) -> Float32Array:
    return ellipse[:, _GREY, None, None].astype(np.float32)


def _planes(population: int, seed: int, rows: Int64Array, height: int, width: int) -> Iterator[Float32Array]:
    style = _style(population)
    for start in range(0, len(rows), _CHUNK):
        samples = [_head(_generator(seed, population, int(row)), style) for row in rows[start : start + _CHUNK]]
        yield from draw(_Heads(*(np.stack(parts) for parts in zip(*samples, strict=True))), height, width)


def _generator(seed: int, population: int, index: int) -> np.random.Generator:
    key = np.array([seed, population], np.uint64)  # a list of large integers would be rounded to float64
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))


def _style(population: int) -> _Style:
    kind = POPULATION_TYPES[population % len(POPULATION_TYPES)]
    ventricles = 1.75 if kind == "large_ventricles" else 1.0
    if population < len(POPULATION_TYPES):
        return _Style(kind, brain=0.34, ventricles=ventricles, lesion=(-0.36, 0.2), radius=0.17)
    random = _generator(_STYLES, population, 0)
    x, y = random.uniform((-0.42, -0.45), (-0.2, 0.45)).tolist()
    return _Style(
        kind,
        brain=random.uniform(0.24, 0.5),
        ventricles=ventricles * random.uniform(0.8, 1.1),
        lesion=(x * random.choice((-1, 1)), y),
        radius=random.uniform(0.13, 0.2),
    )


def _head(random: np.random.Generator, style: _Style) -> tuple[Float64Array, ...]:
    """One row of every field of ``_Heads``."""
    pose = random.uniform((-0.25, 0.84, -0.05, -0.04), (0.25, 1.0, 0.05, 0.04))
    field = random.uniform(-0.15, 0.15, 2)
    waves = np.concatenate([random.normal(0, 9, (_WAVES, 2)), random.uniform(0, 2 * np.pi, (_WAVES, 1))], axis=1)
    return _anatomy(random, style), _lesions(random, style), pose, field, waves


def _anatomy(random: np.random.Generator, style: _Style) -> Float64Array:
    ellipses: Float64Array = TOFT.copy()
    skull, brain = random.uniform(0.75, 1.0), style.brain * random.uniform(0.85, 1.15)
    ellipses[_SKULL, _GREY] = skull
    ellipses[_BRAIN, _GREY] = brain - skull
    ellipses[_VENTRICLES, _GREY] = -brain * random.uniform(0.75, 1.0)
    ellipses[_NUCLEI, _GREY] *= random.uniform(0.8, 2.0)
    ellipses[: _BRAIN + 1, _AXES] *= random.uniform((0.93, 0.97), (1.1, 1.0))  # narrow to broad heads
    ellipses[_BRAIN, _AXES] *= random.uniform(0.96, 1.0)
    ellipses[_INNER, _AXES] *= random.uniform(0.88, 1.12, (8, 2))
    ellipses[_INNER, _CENTRE] += random.uniform(-0.025, 0.025, (8, 2))
    ellipses[_INNER, _ANGLE] += random.uniform(-6, 6, 8)
    ellipses[_VENTRICLES, _AXES] *= (
        style.ventricles * random.uniform(0.8, 1.15) * np.array([1.0, style.ventricles**-0.5])
    )
    return ellipses


def _lesions(random: np.random.Generator, style: _Style) -> Float64Array:
    """(L, 6): none, a disc, a disc with a darker core, or two small discs left and right."""
    x, y = np.array(style.lesion) + random.uniform(-0.1, 0.1, 2)
    outer = style.radius * random.uniform(0.8, 1.25)
    a, b = outer * random.uniform(0.88, 1.12, 2)
    phi, grey = random.uniform(0, 180), random.uniform(0.8, 1.0)
    discs = {
        "round_lesion": [[grey, a, b, x, y, phi]],
        "ring_lesion": [[grey, a, b, x, y, phi], [0.15 * grey, 0.55 * a, 0.55 * b, x, y, phi]],
        "large_ventricles": [],
        "paired_lesions": [[grey, 0.7 * a, 0.7 * b, x, y, phi], [grey, 0.7 * b, 0.7 * a, -x, y, phi]],
    }
    return np.array(discs[style.kind]).reshape(-1, 6)


def _labels(population: int, count: int) -> Int64Array:
    return np.full(count, population % len(POPULATION_TYPES), np.int64)


def _check_numbers(population: int, count: int, seed: int) -> None:
    for name, value in (("population", population), ("seed", seed)):
        if not 0 <= value <= MAX_SEED:
            raise InputError(f"phantom {name} {value} out of range: must be 0 to {MAX_SEED}")
    if not 1 <= count <= MAX_COUNT:
        raise InputError(f"phantom count {count} out of range: must be 1 to {MAX_COUNT}")
