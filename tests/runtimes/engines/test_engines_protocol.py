"""Engines: same numbers, same manners; what was asked for runs or a clear error says why not."""

import importlib.util
import math
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heads import (
    DDPM,
    PLAN,
    checkpoint,
    checkpoint_of,
    conditional_head,
    default_head,
    inputs,
    rgb_head,
    second_order_head,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_runtimes.diffusion.noise import noise_batch
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.engines import ENGINES, Engine, EngineOptions, available_engines, open_engine
from collafuse_runtimes.errors import ArtefactError, EngineUnavailable, InputError
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.verify import TOLERANCES, tolerance_of

HEADS = [default_head, conditional_head, rgb_head, second_order_head]
ONE_THREAD = EngineOptions(threads=1)


def reference_engine(bundle: HeadBundle) -> Engine:
    return open_engine(bundle, "torch", EngineOptions(checkpoint=checkpoint_of(bundle)))


@pytest.mark.parametrize("make_head", HEADS)
def test_torch_and_ort_agree_to_1e_4(make_head: Callable[[], HeadBundle]) -> None:
    bundle = make_head()
    x_tc, labels = inputs(bundle, 3)
    with open_engine(bundle) as ort, reference_engine(bundle) as reference:
        a = ort.denoise(x_tc, seed=3, sample_indices=[4, 9, 2], labels=labels)
        b = reference.denoise(x_tc, seed=3, sample_indices=[4, 9, 2], labels=labels)
        row = bundle.row_ranges[-1].first_row
        z = np.ones_like(x_tc) if bundle.sampler.is_stochastic else None
        one, two = ort.step(x_tc, row, z, labels), reference.step(x_tc, row, z, labels)
    np.testing.assert_allclose(a, b, atol=1e-4)
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("make_head", HEADS)
@pytest.mark.parametrize("engine_name", ["ort-cpu", "openvino", "fake"])
def test_denoise_equals_its_steps(make_head: Callable[[], HeadBundle], engine_name: str) -> None:
    bundle = make_head()
    x_tc, labels = inputs(bundle, 2)
    before = x_tc.copy()
    with open_engine(bundle, engine_name, ONE_THREAD) as engine:
        for rows in bundle.row_ranges:
            x, x_0, calls = x_tc, None, []
            for k, (t, _) in enumerate(rows.transitions):
                z = noise_batch(8, [7, 8], t, bundle.plan.image_shape) if bundle.sampler.is_stochastic else None
                x, x_0 = engine.step_with_x_0(x, rows.first_row + k, z, labels, x_0)
            result = engine.denoise(
                x_tc,
                rows.steps,
                seed=8,
                sample_indices=[7, 8],
                labels=labels,
                on_step=lambda k, _, c=calls: c.append(k),
            )
            np.testing.assert_allclose(result, x, atol=1e-6)
            assert calls == list(range(rows.steps))
    np.testing.assert_array_equal(x_tc, before)  # the caller's tensor is not a work buffer


@pytest.mark.parametrize("engine_name", ["ort-cpu", "openvino"])
def test_a_result_is_not_overwritten_by_the_next_call(engine_name: str) -> None:
    bundle = default_head()
    x_tc, _ = inputs(bundle, 1)
    with open_engine(bundle, engine_name) as engine:
        first = engine.denoise(x_tc)
        kept = first.copy()
        second = engine.denoise(x_tc + 0.5)
    np.testing.assert_array_equal(first, kept)
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("make_head", HEADS)
def test_openvino_computes_what_ort_computes_at_every_batch_size(make_head: Callable[[], HeadBundle]) -> None:
    bundle = make_head()
    with open_engine(bundle) as ort, open_engine(bundle, "openvino", ONE_THREAD) as openvino:
        for batch in (1, 3, 1):
            x_tc, labels = inputs(bundle, batch, seed=batch)
            a, b = (engine.denoise(x_tc, seed=3, labels=labels) for engine in (ort, openvino))
            np.testing.assert_allclose(a, b, atol=1e-4)
        compiled = openvino._compiled_for(1)  # type: ignore[attr-defined]
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_openvino_bf16_computes_in_bf16_or_is_refused() -> None:
    """It must not run in float32 under that name: its distance from float32 is that of eight bits of mantissa."""
    bundle = default_head()
    x_tc, _ = inputs(bundle, 2)
    try:
        with open_engine(bundle, "openvino-bf16") as engine, open_engine(bundle) as ort:
            distance = np.abs(engine.step(x_tc, 0) - ort.step(x_tc, 0)).max()
            assert tolerance_of(engine) == TOLERANCES["bf16"] != tolerance_of(ort)
    except EngineUnavailable as error:
        assert re.search(r"this CPU has no bf16 arithmetic .*; use openvino", str(error))
    else:
        assert 1e-4 < distance < 1e-1


def test_openvino_refuses_a_graph_it_cannot_read_and_one_of_another_head(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    broken, other = replace(default_head(), path=tmp_path), replace(rgb_head(), sampler=Sampler())
    with pytest.raises(ArtefactError, match="OpenVINO refuses"), open_engine(broken, "openvino"):
        pass
    with pytest.raises(ArtefactError, match=r"noise.*export the head again"), open_engine(other, "openvino"):
        pass


def test_ort_allocates_nothing_per_step() -> None:
    bundle = default_head()
    x_tc, _ = inputs(bundle, 4)
    sizes = np.zeros(20, np.int64)

    def on_step(k: int, _: Any) -> None:
        sizes[k] = tracemalloc.get_traced_memory()[0]

    with open_engine(bundle, "ort-cpu", ONE_THREAD) as engine:
        engine.denoise(x_tc)
        tracemalloc.start()
        engine.denoise(x_tc, on_step=on_step)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert sizes[-1] - sizes[1] < x_tc.nbytes  # of 18 steps: less than one tensor, Python's own small change
    assert peak < 3 * x_tc.nbytes + 20_000  # the two buffers, and Python's small change


@pytest.mark.parametrize("spinning", [True, False])
def test_ort_runs_on_the_cpu_provider_alone_with_the_threads_and_spinning_asked_for(spinning: bool) -> None:
    with open_engine(default_head(), "ort-cpu", EngineOptions(threads=1, spinning=spinning)) as engine:
        session = engine._session  # type: ignore[attr-defined]
        assert session.get_providers() == ["CPUExecutionProvider"]
        options = session.get_session_options()
        assert options.intra_op_num_threads == 1
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spinning))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), steps=st.sampled_from([20, 7, 1]))
def test_fake_engine_is_the_exact_ddim_of_gaussian_data(seed: int, steps: int) -> None:
    """With eps = sqrt(1-a) x, one step multiplies by sqrt(a a') + sqrt((1-a)(1-a')), as long as x_0 is not clipped."""
    bundle = default_head()
    x_tc = np.clip(noise_batch(seed, [0], 0, PLAN.image_shape), -0.9, 0.9)
    levels = [(bundle.plan.alpha_bar_at(t), bundle.plan.alpha_bar_at(p)) for t, p in PLAN.client_transitions(steps)]
    factor = math.prod(math.sqrt(a * b) + math.sqrt((1 - a) * (1 - b)) for a, b in levels)
    with open_engine(bundle, "fake") as engine:
        np.testing.assert_allclose(engine.denoise(x_tc, steps), factor * x_tc, rtol=2e-5, atol=1e-6)


def test_unknown_engine_lists_what_is_there() -> None:
    with pytest.raises(EngineUnavailable) as error:
        open_engine(default_head(), "tensorrt9")
    listed = re.fullmatch(r"unknown engine .*; valid: (.*) \(of these can run here: (.*)\)", str(error.value))
    assert listed
    assert listed[1].split(", ") == list(ENGINES)
    assert listed[2].split(", ") == [name for name, reason in available_engines().items() if reason is None]
    assert {"ort-cpu", "torch", "fake"} <= set(listed[2].split(", "))


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "diffusers" else real(name))
    assert available_engines()["ort-cpu"] is None
    with pytest.raises(EngineUnavailable, match=r"torch cannot run here: diffusers is not .*that can: ort-cpu, .*fake"):
        open_engine(default_head(), "torch", EngineOptions(checkpoint=checkpoint()))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torch", {}, "engine torch needs the head's checkpoint"),
        ("ort-cpu", {"checkpoint": Path("x")}, r"ort-cpu takes no option checkpoint; .* \(valid: threads, spinning\)"),
        ("torch", {"gpu": 0}, r"engine torch takes no option gpu; leave it out \(valid: threads, checkpoint\)"),
        ("fake", {"threads": 0}, "threads 0 out of range"),
    ],
)
def test_unusable_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_engine(default_head(), name, EngineOptions(**options))


@pytest.mark.parametrize(
    ("name", "precision", "valid"),
    [("openvino", "int8-trt", "fp32, fp16, int8-cpu"), ("openvino-bf16", "int8-trt", "fp32, fp16, int8-cpu")],
)
def test_a_precision_made_for_other_engines_is_refused(name: str, precision: str, valid: str) -> None:
    with pytest.raises(InputError, match=rf"engine {name} runs no {precision} heads; valid: {valid}: export the head"):
        open_engine(replace(default_head(), precision=precision), name)


def test_gpu_engines_run_what_their_libraries_are_made_for() -> None:
    runs = {name: entry.precisions for name, entry in ENGINES.items()}
    assert runs["ort-cuda"] == ("fp32", "fp16")
    assert runs["tensorrt"] == runs["tensorrt-rtx"] == runs["ort-tensorrt"] == ("fp32", "fp16", "int8-trt")


def test_torch_engine_refuses_other_weights() -> None:
    other = checkpoint(PLAN, seed=1)
    with (
        pytest.raises(ArtefactError, match="holds other weights than"),
        open_engine(default_head(), "torch", EngineOptions(checkpoint=other)),
    ):
        pass


def test_torch_engine_gives_its_threads_back() -> None:
    import torch

    before = torch.get_num_threads()
    with open_engine(default_head(), "torch", EngineOptions(checkpoint=checkpoint(), threads=before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_graph_that_onnx_runtime_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    broken = replace(default_head(), path=tmp_path)
    with pytest.raises(ArtefactError, match="ONNX Runtime refuses"), open_engine(broken):
        pass


X = noise_batch(11, range(2), PLAN.handover_level, PLAN.image_shape)


@pytest.mark.parametrize(
    ("make_head", "call", "message"),
    [
        (
            default_head,
            lambda e: e.denoise(X[:, :, :8]),
            r"has shape \(2, 1, 8, 16\); valid: \(N >= 1, 1, 16, 16\)",
        ),
        (default_head, lambda e: e.denoise(X[:0]), r"x_tc has shape \(0, 1, 16, 16\)"),
        (default_head, lambda e: e.denoise(X.astype(np.float64)), "x_tc has dtype float64; valid: float32 or float16"),
        (default_head, lambda e: e.denoise(X * np.nan), "x_tc holds NaN or Inf in 2 of 2 samples"),
        (default_head, lambda e: e.denoise(X, 3), "3 steps are not baked into .*; valid: 20, 7, 1"),
        (default_head, lambda e: e.denoise(X, labels=np.zeros(2, int)), "this head is not class-conditional"),
        (default_head, lambda e: e.denoise(X, sample_indices=[1]), "1 sample indices for 2 samples; give one each"),
        (default_head, lambda e: e.step(X, 28), "row 28 out of range: this head has rows 0 to 27"),
        (default_head, lambda e: e.step(X, -1), "row -1 out of range"),
        (default_head, lambda e: e.step(X, 0, X), "takes no noise tensor"),
        (conditional_head, lambda e: e.denoise(X, labels=np.array([0, 1])), "draws noise; give a seed"),
        (conditional_head, lambda e: e.denoise(X, seed=-1, labels=np.array([0, 1])), "seed -1 out of range"),
        (conditional_head, lambda e: e.denoise(X, seed=1), "is class-conditional: give one label from 0 to 2"),
        (conditional_head, lambda e: e.denoise(X, seed=1, labels=np.array([0, 3])), "label 3 out of range"),
        (conditional_head, lambda e: e.denoise(X, seed=1, labels=np.array([0])), r"labels have shape \(1,\)"),
        (conditional_head, lambda e: e.step(X, 0, None, np.array([0, 1])), "needs a noise tensor"),
        (conditional_head, lambda e: e.step(X, 0, X[:1], np.array([0, 1])), r"noise has shape \(1, 1, 16, 16\)"),
    ],
)
@pytest.mark.parametrize("engine_name", ["ort-cpu", "openvino", "fake"])
def test_unusable_inputs(
    make_head: Callable[[], HeadBundle], call: Callable[[Any], object], message: str, engine_name: str
) -> None:
    with open_engine(make_head(), engine_name) as engine, pytest.raises(InputError, match=message) as error:
        call(engine)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine_name", ["ort-cpu", "openvino", "fake"])
def test_an_engine_that_runs_on_no_gpu_has_no_time_on_one(engine_name: str) -> None:
    with open_engine(default_head(), engine_name) as engine:
        engine.denoise(X)
        with pytest.raises(InputError, match=rf"engine {engine_name} does not run on a GPU; take the time around"):
            _ = engine.device_ms
    with pytest.raises(InputError, match=f"engine {engine_name} is not open"):
        _ = engine.device_ms


def test_engine_that_is_not_open() -> None:
    engine = open_engine(default_head())
    with pytest.raises(InputError, match="engine ort-cpu is not open; use it inside"):
        engine.denoise(X)
    with engine:
        engine.denoise(X)
    with pytest.raises(InputError, match="engine ort-cpu is not open"):
        engine.step(X, 0)


def test_float16_hand_over_is_widened() -> None:
    half = X.astype(np.float16)
    with open_engine(default_head()) as engine:
        np.testing.assert_array_equal(engine.denoise(half), engine.denoise(half.astype(np.float32)))


def test_stochastic_heads_follow_the_seed() -> None:
    bundle, labels = conditional_head(), np.array([0, 0])
    assert bundle.sampler == DDPM
    with open_engine(bundle, "ort-cpu", ONE_THREAD) as engine:
        a, b, c = (engine.denoise(X, seed=seed, labels=labels) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-2


def test_a_graph_with_other_inputs_than_the_bundle_states_is_refused() -> None:
    bundle = replace(rgb_head(), sampler=Sampler())
    with pytest.raises(ArtefactError, match=r"noise.*export the head again"), open_engine(bundle):
        pass
