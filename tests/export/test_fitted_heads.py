"""A fitted head: its rows are in manifest, graph and golden trajectories alike; every engine runs it; others are
refused."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import done, refusal, run_cli
from heads import CLASSES, PLAN, calibration, checkpoint, copy_of, exported, inputs, second_order_head

from collafuse_export import ExportSettings, Fit, export_head
from collafuse_runtimes.diffusion.fitted import FREE_COLUMNS
from collafuse_runtimes.engines import DEFAULTS, EngineOptions, open_engine
from collafuse_runtimes.errors import ArtefactError, CheckFailed, InputError
from collafuse_runtimes.files.bundle import FORMAT, MANIFEST, MODEL, HeadBundle, read_bundle
from collafuse_runtimes.files.bundle_text import describe_bundle
from collafuse_runtimes.files.handover import write_handover
from collafuse_runtimes.files.sealed import read_json, write_json
from collafuse_runtimes.infer import run_inference
from collafuse_runtimes.verify import verify_bundle

Manifest = dict[str, Any]


def source() -> Path:
    return checkpoint(levels=1)


@lru_cache
def fitted_head(precision: str = "fp32", opset: int = 20) -> HeadBundle:
    """Step counts 3 (default) and 2, fitted to hand-over tensors of 24; int8 is calibrated on six."""
    return exported(
        f"fitted-{precision}-{opset}.head",
        source(),
        ExportSettings(
            step_counts=(3, 2),
            precision=precision,
            opset=opset,
            calibration=calibration(PLAN, 6) if precision.startswith("int8") else None,
        ),
        Fit(to=calibration(PLAN, 24)),
        force=precision != "fp32",
    )


@pytest.fixture
def bundle_dir(tmp_path: Path) -> Path:
    return copy_of(fitted_head(), tmp_path)


def reseal(folder: Path, change: Callable[[Manifest], object]) -> None:
    manifest = read_json(folder / MANIFEST, FORMAT)
    change(manifest)
    manifest["files"][MODEL] = hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()
    write_json(folder / MANIFEST, FORMAT, manifest)


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino", "torch"])
def test_every_engine_runs_the_fitted_rows(engine: str) -> None:
    bundle = fitted_head()
    options = EngineOptions(checkpoint=source()) if engine == "torch" else DEFAULTS
    report = verify_bundle(bundle, engine, options)
    assert report.passed
    assert [r.steps for r in report.ranges] == [3, 2]
    x_tc, _ = inputs(bundle, 3)
    with open_engine(bundle, engine, options) as runs:
        x, x_0 = x_tc, None
        for row in range(3):
            x, x_0 = runs.step_with_x_0(x, row, x_0_old=x_0)
        np.testing.assert_allclose(runs.denoise(x_tc), x, atol=1e-4)


def test_the_engine_without_a_network_steps_by_the_fitted_rows() -> None:
    bundle = fitted_head()
    x_tc, _ = inputs(bundle, 1)
    fitted, unfitted = fake_steps(bundle, x_tc), fake_steps(without_its_fit(bundle), x_tc)
    assert min(np.abs(a - b).max() for a, b in zip(fitted, unfitted, strict=True)) > 1e-3


def without_its_fit(bundle: HeadBundle) -> HeadBundle:
    return replace(bundle, sampler=replace(bundle.sampler, fitted=False), fitted=None)


def fake_steps(bundle: HeadBundle, x: np.ndarray) -> list[np.ndarray]:
    with open_engine(bundle, "fake") as fake:
        return [fake.step(x, row) for row in range(3)]


@pytest.mark.parametrize(("precision", "opset"), [("fp16", 20), ("int8-cpu", 20), ("int8-trt", 17)])
def test_lower_precisions_have_the_same_rows(precision: str, opset: int) -> None:
    bundle = fitted_head(precision, opset)
    np.testing.assert_array_equal(bundle.table, fitted_head().table)
    assert bundle.fitted == fitted_head().fitted
    assert verify_bundle(bundle).passed


def test_a_fitted_head_says_so() -> None:
    bundle = fitted_head()
    assert read_bundle(bundle.path) == bundle
    assert bundle.sampler.text == "dpm++2m (fitted) on karras levels"
    assert bundle.fitted is not None
    report = bundle.fitted.report
    assert (report.source, report.tensors, report.held_out, report.teacher_steps) == ("hand-over", 8, 16, 20)
    lines = [line for line in describe_bundle(bundle) if line.startswith("fitted")]
    assert lines[0].startswith("fitted    3 steps to 20 on 8 hand-over tensors; on 16 others RMSE 0.0")
    for entry in report.ranges:
        assert entry.rmse < entry.rmse_unfitted
        assert 0.5 < entry.sharpness < 1.5
    changed = np.abs(bundle.table - bundle.solver_table) > 0
    assert changed[:, FREE_COLUMNS[:2]].all()
    assert not changed[:, [0, 1, 4, 5]].any()
    assert (bundle.table[[0, 3], 6] == 0).all()


def test_unfitted_bundles_have_no_word_of_it() -> None:
    """So releases that know no fits read them."""
    manifest = json.loads((second_order_head().path / MANIFEST).read_text())
    assert {"rows", "fit"} & manifest.keys() == set()
    assert manifest["sampler"] == {"name": "dpm++2m", "eta": 0.0, "levels": "karras"}


def test_images_say_that_their_head_was_fitted(tmp_path: Path) -> None:
    run_inference(fitted_head(), calibration(PLAN, 2), tmp_path / "images")
    record = json.loads((tmp_path / "images" / "images.json").read_text())
    assert record["head"]["sampler"] == {"name": "dpm++2m", "eta": 0.0, "levels": "karras", "fitted": True}


def test_nothing_of_the_tensors_but_coefficients_is_in_a_bundle() -> None:
    """Three numbers a step and five figures a step count; graph and golden trajectories are as without a fit, but for
    the rows."""
    manifest = json.loads((fitted_head().path / MANIFEST).read_text())
    assert [len(row) for row in manifest["rows"]] == [7] * 5
    assert set(manifest["fit"]) == {"source", "tensors", "held_out", "teacher_steps", "ranges"}
    assert sorted(file.name for file in fitted_head().path.iterdir()) == sorted(
        file.name for file in second_order_head().path.iterdir()
    )


def scaled(column: int) -> Callable[[Manifest], object]:
    def change(manifest: Manifest) -> None:
        manifest["rows"][1][column] = float(np.float32(1.5 * manifest["rows"][1][column] + 0.25))

    return change


def unfit(manifest: Manifest) -> None:
    del manifest["sampler"]["fitted"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scaled(2), "rows has c_x0 that are not those of the graph"),
        (scaled(3), "rows has c_xt that are not those of the graph"),
        (scaled(6), "rows has c_old that are not those of the graph"),
        (scaled(0), "rows differs from the plan's in more than c_x0, c_xt, c_old"),
        (scaled(5), "rows differs from the plan's in more than c_x0, c_xt, c_old"),
        (lambda m: m["rows"][1].__setitem__(2, 0.1), "rows holds a number that is no float32"),
        (lambda m: m["rows"][1].__setitem__(2, 1e300), "rows holds a number that is no float32"),
        (lambda m: m["rows"][3].__setitem__(6, 0.5), "rows gives a first step a step before it"),
        (lambda m: m["rows"].pop(), r"rows has the shape (4, 7), its row ranges need (5, 7)"),
        (lambda m: m["rows"][0].pop(), "rows is [["),
        (lambda m: m["rows"][0].__setitem__(2, True), "rows is [["),
        (lambda m: m.update(rows=[]), "rows is []"),
        (lambda m: m.update(rows=None), "rows is None"),
        (lambda m: m.pop("rows"), "rows, fit and the sampler's fitted come together"),
        (lambda m: m.pop("fit"), "rows, fit and the sampler's fitted come together"),
        (unfit, "rows, fit and the sampler's fitted come together"),
        (lambda m: m["sampler"].update(fitted=1), "sampler is {"),
        (lambda m: m["sampler"].update(name="ddim"), "sampler ddim cannot be fitted"),
        (lambda m: m["fit"].update(images=["secret"]), "fit is {"),
        (lambda m: m["fit"].update(source="/home"), "fit is {"),
        (lambda m: m["fit"]["ranges"].pop(), "fit reports other step counts than row_ranges"),
        (lambda m: m["fit"]["ranges"][0].update(rmse=None), "fit is {"),
    ],
)
def test_tampered_rows_are_refused(bundle_dir: Path, change: Callable[[Manifest], object], message: str) -> None:
    reseal(bundle_dir, change)
    with pytest.raises(ArtefactError) as error:
        read_bundle(bundle_dir)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_changed_in_the_graph_too_do_not_verify(bundle_dir: Path, tmp_path: Path) -> None:
    """The golden trajectories are still those of the fitted rows."""
    before = read_json(bundle_dir / MANIFEST, FORMAT)["rows"]
    column = np.array(before, "<f4")[:, 2]
    after = column.copy()
    after[1] *= np.float32(1.05)
    model = (bundle_dir / MODEL).read_bytes()
    assert model.count(column.tobytes()) == 1
    (bundle_dir / MODEL).write_bytes(model.replace(column.tobytes(), after.tobytes()))
    reseal(bundle_dir, lambda manifest: manifest["rows"][1].__setitem__(2, float(after[1])))
    result = run_cli("verify", bundle_dir)
    assert (result.code, "differs from the torch network after step 3 of 3" in result.err) == (1, True)


@pytest.fixture
def handover_file(tmp_path: Path) -> Path:
    write_handover(tmp_path / "x.tc.safetensors", calibration(PLAN, 24))
    return tmp_path / "x.tc.safetensors"


def test_export_fit_on_the_command_line(handover_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.head"
    said = json.loads(done("export", source(), "--fit", handover_file, "--steps", "3,2", "--out", out, "--json"))
    assert said["fit"]["ranges"] == [vars(r) for r in fitted_head().fitted.report.ranges]  # type: ignore[union-attr]
    np.testing.assert_array_equal(read_bundle(out).table, fitted_head().table)
    assert "to 20 steps on 8 tensors (hand-over)" in done("inspect", out)
    assert "passed" in done("verify", out)


def test_fitted_steps_are_judged_on_a_servers_tensors_too(handover_file: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "data.npz", tmp_path / "a.head"
    low = np.random.default_rng(0).integers(0, 256, (30, 4, 4), np.uint8)
    np.savez(images, images=low.repeat(4, 1).repeat(4, 2))
    words = ("export", source(), "--fit", images, "--steps", "3,2")
    text = done(*words, "--judge-on", handover_file, "--out", out)
    bundle = read_bundle(out)
    assert bundle.fitted is not None and bundle.fitted.report.server is not None
    server = bundle.fitted.report.server
    assert server.tensors == 24
    assert [r.steps for r in server.ranges] == [3, 2]
    assert all(r.rmse < r.rmse_unfitted for r in server.ranges)
    assert f"server    3 steps on 24 of its tensors: RMSE {server.ranges[0].rmse:.4f}" in text
    assert "server    not judged on a server's tensors" in done(*words, "--out", tmp_path / "b.head")
    assert "--judge-on means nothing without --fit; give --fit" in refusal(
        "export", source(), "--judge-on", handover_file, "--out", tmp_path / "c"
    )


def test_steps_fitted_to_images_that_are_fragile_on_a_servers_tensors_are_refused(tmp_path: Path) -> None:
    """A server whose tensors are nothing like the images: of white alone, with hardly any noise."""
    strange = calibration(PLAN, 24)
    images = np.random.default_rng(0).uniform(-1, 1, (30, *PLAN.image_shape)).astype(np.float32)
    far = replace(strange, x_tc=(strange.x_tc * 6).astype(np.float32))
    with pytest.raises(CheckFailed, match=r"fitted steps are no better .* 24 tensors of the server"):
        export_head(
            source(), tmp_path / "x.head", ExportSettings(step_counts=(3,)), Fit(to=0.05 * images, judge_on=far)
        )
    assert list(tmp_path.iterdir()) == []


def test_a_report_on_a_server_of_other_steps_is_refused(bundle_dir: Path) -> None:
    def add(manifest: Manifest) -> None:
        manifest["fit"]["server"] = {"tensors": 24, "ranges": manifest["fit"]["ranges"][:1]}

    reseal(bundle_dir, add)
    with pytest.raises(ArtefactError, match="fit reports other step counts than row_ranges"):
        read_bundle(bundle_dir)


def test_conditional_heads_are_fitted_to_images_of_a_folder(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    low = random.integers(0, 256, (30, 4, 4), np.uint8)
    np.savez(tmp_path / "data.npz", images=low.repeat(4, 1).repeat(4, 2), labels=np.arange(30) % CLASSES)
    out = tmp_path / "b.head"
    options = ("--steps", 3, "--teacher-steps", 12, "--limit", 24, "--levels", "log-snr")
    text = done(
        "export", checkpoint(conditional=True, levels=1), "--fit", tmp_path / "data.npz", *options, "--out", out
    )
    bundle = read_bundle(out)
    assert bundle.fitted is not None
    report = bundle.fitted.report
    assert (report.source, report.tensors, report.held_out) == ("images", 8, 16)
    assert 12 <= report.teacher_steps <= 15
    assert "note      24 of 30 images" in text
    assert "on 8 images; on 16 others" in text
    assert bundle.sampler.levels == "log-snr"
    assert math.isfinite(report.ranges[0].sharpness)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sampler", "ddpm"), "sampler ddpm cannot be fitted; valid: dpm++2m"),
        (("--sampler", "ddim", "--eta", 1), "sampler ddim cannot be fitted; valid: dpm++2m"),
        (("--steps", 20), "20 steps cannot be fitted to a teacher of 20"),
        (("--limit", 3), "no images are read without --fit DATA; leave out --limit"),
        (("--class", 1), "no images are read without --fit DATA; leave out --class"),
        (("--cut-ratio", 0.2), "plans disagree on cut_ratio"),
    ],
)
def test_fits_that_cannot_be_are_refused(
    handover_file: Path, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    steps = () if "--steps" in words else ("--steps", 3)
    before = sorted(tmp_path.iterdir())
    said = refusal("export", source(), "--fit", handover_file, *steps, *words, "--out", tmp_path / "c.head")
    assert message in said
    assert sorted(tmp_path.iterdir()) == before


def test_options_without_a_fit_are_refused(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "d.head")
    assert "without --fit; give --fit" in refusal("export", source(), "--teacher-steps", 9, *out)
    assert "leave out --fit" in refusal("export", tmp_path, "--engine", "tensorrt", "--fit", "phantom:0")
    with pytest.raises(InputError, match="--teacher-steps 9 means nothing without --fit"):
        export_head(source(), tmp_path / "d.head", fit=Fit(teacher_steps=9))
    assert list(tmp_path.iterdir()) == []


def test_a_worse_fit_is_refused_and_force_does_not_help(tmp_path: Path) -> None:
    """What is fitted to has nothing in common with what judges."""
    x_tc = calibration(PLAN, 9).x_tc.copy()
    x_tc[::3] = 0
    write_handover(tmp_path / "x.tc.safetensors", calibration(PLAN, 9, x_tc=x_tc))
    words = ("--fit", tmp_path / "x.tc.safetensors", "--steps", 3, "--force", "--out", tmp_path / "e.head")
    said = refusal("export", source(), *words, code=1)
    assert "3 fitted steps are no better than unfitted ones: RMSE " in said
    assert [file.name for file in tmp_path.iterdir()] == ["x.tc.safetensors"]
