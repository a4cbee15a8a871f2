"""What a server gains that sees one image more than once: levels, near-copies, sizes; and when `upload` warns.

    python benchmarks/experiments/second_looks.py  # a minute or two; writes benchmarks/results/second_looks.{json,md}

Every release is made by the product (`make_shard`, float16 as by default). The server combines releases by the best
linear unbiased weights, w = S^-1 1 / (1' S^-1 1), S the covariance of their errors, which it is told (so the figure is
an upper bound); PSNR over all pixels, peak 2. "Drawn apart" is the noise of earlier releases: independent for each
level, which a key per level gives.
Reads brain_mri_64.npz, brain_mri_128.npz, fashion_mnist and medmnist from COLLAFUSE_DATA.
"""

import argparse
import json
import os
import secrets
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_edge.data import Selection, load_images
from collafuse_edge.settings import UploadSettings
from collafuse_edge.upload import make_shard, upload_images
from collafuse_edge.upload.brownian import level_time, path_value, path_weights
from collafuse_edge.upload.key import image_digest
from collafuse_edge.upload.similarity import NEAR_BITS, OF_BITS, alike, perceptual_hashes
from collafuse_runtimes.diffusion.plan import SplitPlan

CUT_RATIO, SIDE, COUNT, CLASS = 0.2, 32, 120, "glioma_tumor"
SIXTEEN_CUTS = tuple(round(0.20 + 0.01 * i, 2) for i in range(16))
COPIES = (2, 16, 64)
THRESHOLDS = (8, 12, 16, 20, 24, 28)

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """One row: what the server got, what it makes of it, and what the site was told.

    Attributes:
        psnr: of the best combination, dB.
        gain: over the best single release, dB.
        gain_drawn_apart: the same with independent noise for each release.
        warned: findings of `upload` for the releases after the first, kind to images.
    """

    name: str
    releases: int
    psnr: float
    gain: float
    gain_drawn_apart: float
    warned: dict[str, int]


def released(images: Images, cut_ratio: float, key: bytes, dtype: str = "float16") -> Images:
    """x_n / sqrt(alpha_bar_n) in the order of ``images``, as a server reads it from a shard."""
    plan = SplitPlan(images.shape[1:], cut_ratio=cut_ratio)
    order = np.argsort([image_digest(key, x_0) for x_0 in images])
    x_n = np.empty_like(images)
    x_n[order] = make_shard(images, plan, key).images
    return x_n.astype(dtype).astype(np.float32) / np.float32(plan.alpha_bar_at(plan.handover_level) ** 0.5)


def combined_psnr(releases: Sequence[Images], x_0: Images) -> float:
    """PSNR of the best linear unbiased combination (generalised least squares; Aitken 1935), its covariance known."""
    errors = np.stack([(y - x_0).ravel() for y in releases]).astype(np.float64)
    covariance = errors @ errors.T / errors.shape[1]
    weights = np.linalg.lstsq(covariance, np.ones(len(errors)), rcond=None)[0]
    weights /= weights.sum()
    return float(10 * np.log10(4 / (weights @ covariance @ weights)))


def copies_of(images: Images, count: int) -> list[Images]:
    """The images and copies of them, each with another pixel changed by one grey level."""
    pixels = np.random.default_rng(0).permutation(images[0].size)[:count]
    copies = [images]
    for pixel in pixels[1:]:
        copy = images.copy().reshape(len(images), -1)
        copy[:, pixel] += np.where(copy[:, pixel] < 0, 1, -1).astype(np.float32) / np.float32(127.5)
        copies.append(copy.reshape(images.shape))
    return copies


def look(name: str, parts: Sequence[tuple[Images, float]], x_0: Images, *, together: bool = False) -> Look:
    """Releases of ``parts`` (images, cut_ratio) in that order; ``together`` in one upload."""
    key = secrets.token_bytes(32)
    ours = [released(images, cut_ratio, key) for images, cut_ratio in parts]
    key_of_level = {cut_ratio: secrets.token_bytes(32) for _, cut_ratio in parts}
    apart = [released(images, cut_ratio, key_of_level[cut_ratio]) for images, cut_ratio in parts]
    single = max(combined_psnr([y], x_0) for y in ours)
    single_apart = max(combined_psnr([y], x_0) for y in apart)
    psnr = combined_psnr(ours, x_0)
    return Look(
        name=name,
        releases=len(parts),
        psnr=psnr,
        gain=psnr - single,
        gain_drawn_apart=combined_psnr(apart, x_0) - single_apart,
        warned=findings(parts, together),
    )


def findings(parts: Sequence[tuple[Images, float]], together: bool) -> dict[str, int]:
    """What `upload` says of them, on a site of its own: the most images of each kind."""
    found: dict[str, int] = {}
    if together:
        parts = [(np.concatenate([images for images, _ in parts]), parts[0][1])]
    with tempfile.TemporaryDirectory() as folder:
        for images, cut_ratio in parts:
            plan = SplitPlan(images.shape[1:], cut_ratio=cut_ratio)
            done = upload_images(Path(folder) / "shard", images, plan, UploadSettings(key=Path(folder) / "key"))
            for finding in (*done.warnings, *done.notes):
                if finding.count:
                    found[finding.kind] = max(finding.count, found.get(finding.kind, 0))
    return found


def all_looks(images: Images, resized: Images, copies: Sequence[int] = COPIES) -> list[Look]:
    """The table. ``resized``: the same scans from another size."""
    c = CUT_RATIO
    rows = [
        look(f"c = {c}", [(images, c)], images),
        look("the same shard again", [(images, c), (images, c)], images),
        look("c = 0.2 and 0.4", [(images, c), (images, 0.4)], images),
        look("c = 0.20 and 0.21", [(images, c), (images, 0.21)], images),
        look("c = 0.21, then 0.20", [(images, 0.21), (images, c)], images),
        look("16 cuts from 0.20 to 0.35", [(images, cut_ratio) for cut_ratio in SIXTEEN_CUTS], images),
    ]
    for count in copies:
        parts = [(copy, c) for copy in copies_of(images, count)]
        rows.append(look(f"{count} copies, one pixel changed by one grey level", parts, images, together=True))
    return [*rows, look("resized from 64 and from 128 px", [(images, c), (resized, c)], images)]


def rounding_gain(images: Images) -> dict[str, float]:
    """dB that 16 levels give over one, as stored in float16 and in float32: what rounding adds to a second look."""
    key, gains = secrets.token_bytes(32), {}
    for dtype in ("float16", "float32"):
        ours = [released(images, cut_ratio, key, dtype) for cut_ratio in SIXTEEN_CUTS]
        gains[dtype] = combined_psnr(ours, images) - combined_psnr(ours[:1], images)
    return gains


def distances(a: Images, b: Images) -> npt.NDArray[np.int64]:
    """Differing bits of every pair of hashes, (len(a), len(b))."""
    x, y = (np.unpackbits(perceptual_hashes(images), axis=1).astype(np.float32) for images in (a, b))
    return np.rint(x.sum(1)[:, None] + y.sum(1)[None] - 2 * x @ y.T).astype(np.int64)


def threshold_row(name: str, images: Images, known: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """Share of images that look like another one, by threshold; pairs ``known`` to be copies left out."""
    between = distances(images, images)
    np.fill_diagonal(between, OF_BITS + 1)
    if known is not None:
        between[known] = OF_BITS + 1
    return {"data": name, "images": len(images), **{str(t): float((between.min(1) <= t).mean()) for t in THRESHOLDS}}


def found_row(name: str, images: Images, others: Images) -> dict[str, Any]:
    """Share of copies that are recognised, by threshold."""
    own = np.array([distances(x[None], y[None])[0, 0] for x, y in zip(images, others, strict=True)])
    return {"copies": name, "images": len(images), **{str(t): float((own <= t).mean()) for t in THRESHOLDS}}


def thresholds(shared: Path) -> dict[str, Any]:
    shape, source = (1, SIDE, SIDE), shared / "brain_mri_64.npz"
    with np.load(source) as arrays:
        group, split = arrays["near_dup_group"], arrays["split"]
    group = np.concatenate([group[split == name] for name in ("train", "test")])
    mri, mri_128 = (
        np.concatenate([load_images(str(shared / name), shape, Selection(part)).images for part in ("train", "test")])
        for name in ("brain_mri_64.npz", "brain_mri_128.npz")
    )
    fashion = load_images(str(shared / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"), (1, 28, 28)).images
    pneumonia = load_images(str(shared / "medmnist" / "pneumoniamnist_train3882.npz"), (1, 28, 28)).images
    known = (group[:, None] == group[None]) & (group[:, None] >= 0)
    noise = np.random.default_rng(0).normal(size=mri.shape).astype(np.float32) / np.float32(127.5)
    return {
        "chosen": NEAR_BITS,
        "of": OF_BITS,
        "looks_like_another": [
            threshold_row("brain MRI, 32 px, listed near-copies left out", mri, known),
            threshold_row("Fashion-MNIST test, 28 px", fashion),
            threshold_row("PneumoniaMNIST train subset, 28 px (17 exact repeats in it)", pneumonia),
        ],
        "recognised": [
            found_row("brain MRI resized from 64 and from 128 px", mri, mri_128),
            found_row("one pixel changed by one grey level", mri, copies_of(mri, 2)[1]),
            found_row("noise of 2 grey levels", mri, np.clip(mri + 2 * noise, -1, 1)),
            found_row("noise of 5 grey levels", mri, np.clip(mri + 5 * noise, -1, 1)),
        ],
    }


def costs() -> dict[str, float]:
    """Processor seconds: noise of one image, and the search of 10,000 images among 10,000 released."""
    weights, digest, result = path_weights(level_time(0.8987059206)), secrets.token_bytes(32), {}
    for shape in ((1, 32, 32), (1, 64, 64), (3, 256, 256)):
        begun = time.process_time()
        for _ in range(20):
            path_value(digest, weights, shape)
        result["noise of one image of " + "x".join(map(str, shape))] = (time.process_time() - begun) / 20
    new, old = np.random.default_rng(0).integers(0, 256, (2, 10_000, 32), np.uint8)
    begun = time.process_time()
    for _ in alike(new, (SIDE, SIDE), old, (SIDE, SIDE)):
        pass
    return {**result, "10,000 images among 10,000 released": time.process_time() - begun}


def scans(shared: Path) -> tuple[Images, Images]:
    """COUNT glioma slices, one of each near-copy group, resized to SIDE from 64 and from 128 px."""
    with np.load(shared / "brain_mri_64.npz") as arrays:
        label = list(arrays["label_names"]).index(CLASS)
        group = arrays["near_dup_group"][(arrays["split"] == "train") & (arrays["labels"] == label)]
    first = [i for i, g in enumerate(group) if g < 0 or g not in group[:i]][:COUNT]
    a, b = (
        load_images(str(shared / f"brain_mri_{side}.npz"), (1, SIDE, SIDE), Selection(classes=(CLASS,))).images[first]
        for side in (64, 128)
    )
    return a, b


def markdown(record: dict[str, Any]) -> str:
    lines = [
        "# Second looks",
        "",
        f"{record['data']}. {record['method']}",
        "",
        "| what the server gets | releases | PSNR | gain, one path | gain, noise drawn apart | `upload` says |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["looks"]:
        said = ", ".join(f"{kind}: {count}" for kind, count in row["warned"].items()) or "nothing"
        gains = f"{row['gain']:.1f} dB | {row['gain_drawn_apart']:.1f} dB"
        lines.append(f"| {row['name']} | {row['releases']} | {row['psnr']:.1f} dB | {gains} | {said} |")
    rounding = record["rounding_gain"]
    lines += ["", f"16 levels over one, unrounded figures: {rounding['float32']:.5f} dB from float32 shards, "
              f"{rounding['float16']:.5f} dB from float16 ones: rounding adds nothing that shows.", ""]  # fmt: skip
    head = " | ".join(map(str, THRESHOLDS))
    for kind, title in (("looks_like_another", "look like another image"), ("recognised", "copies found")):
        lines += [
            f"| {title}, by differing bits of {OF_BITS} | images | {head} |",
            "|---" * (2 + len(THRESHOLDS)) + "|",
        ]
        for row in record["thresholds"][kind]:
            shares = " | ".join(f"{100 * row[str(t)]:.2f} %" for t in THRESHOLDS)
            lines.append(f"| {row.get('data') or row['copies']} | {row['images']} | {shares} |")
        lines.append("")
    lines += [f"Chosen: {NEAR_BITS}. Slices of one head are alike without being listed as near-copies.", ""]
    lines += ["| cost | processor seconds |", "|---|---|"]
    lines += [f"| {name} | {seconds:.4f} |" for name, seconds in record["seconds"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where the record goes")
    results: Path = parser.parse_args().results
    shared = Path(os.environ.get("COLLAFUSE_DATA", "../shared/data"))
    images, resized = scans(shared)
    record = {
        "data": f"{len(images)} slices of brain_mri_64.npz ({CLASS}, train, one of a near-copy group), {SIDE} px",
        "method": "T = 100, cosine; keys are random, changed pixels and added noise from seed 0; float16 shards; best "
        "linear unbiased combination with its covariance known, over all pixels; peak 2.",
        "looks": [asdict(row) for row in all_looks(images, resized)],
        "rounding_gain": rounding_gain(images),
        "thresholds": thresholds(shared),
        "seconds": costs(),
    }
    (results / "second_looks.json").write_text(json.dumps(record, indent=2) + "\n")
    (results / "second_looks.md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
