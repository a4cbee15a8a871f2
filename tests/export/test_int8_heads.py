"""int8 heads: the QDQ each engine accepts, fitted to real trajectories, close to float32, the worst layers in float."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import refusal
from heads import PLAN, calibration, checkpoint, conditional_head, default_head, head, inputs, torch_trajectory
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_export import ExportSettings, export_head, low_precision
from collafuse_export.calibration import labels_for, split_handover, step_feeds, trajectories
from collafuse_export.quantize import Quantiser
from collafuse_export.sensitivity import Sensitivity, layers_to_keep_float, measure_sensitivity
from collafuse_runtimes.engines import open_engine
from collafuse_runtimes.errors import InputError, PlanMismatch
from collafuse_runtimes.files.bundle import HeadBundle, read_bundle
from collafuse_runtimes.files.handover import write_handover
from collafuse_runtimes.verify import compare, verify_bundle

FLAVOURS = ["int8-cpu", "int8-trt"]
QDQ = ("QuantizeLinear", "DequantizeLinear")


def int8_head(flavour: str, opset: int = 20) -> HeadBundle:
    return head(precision=flavour, opset=opset)


def quantised_tensors(bundle: HeadBundle) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    graph = onnx.load(bundle.model_path).graph
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    return [node for node in graph.node if node.op_type in QDQ], constants


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
def test_int8_cpu_keeps_its_distance_on_the_engines_it_is_made_for(engine: str) -> None:
    bundle = int8_head("int8-cpu")
    report = verify_bundle(bundle, engine)
    assert report.passed
    assert all(r.final.cosine >= 0.99 for r in report.ranges)
    x_tc, _ = inputs(bundle, 3, seed=77)  # never seen by calibration
    with open_engine(bundle, engine) as runs:
        images = runs.denoise(x_tc)
    reference = torch_trajectory(bundle, 10, x_tc, None, seed=0)[-1]
    agreement = compare(images, reference)
    assert agreement.cosine >= 0.99
    assert agreement.max_abs is not None and agreement.max_abs > 1e-5  # it is not float32 in disguise


@pytest.mark.parametrize("opset", [20, pytest.param(17, marks=pytest.mark.full)])
def test_int8_trt_is_symmetric_without_quantised_bias(opset: int) -> None:
    bundle = int8_head("int8-trt", opset)
    assert verify_bundle(bundle).passed
    nodes, constants = quantised_tensors(bundle)
    assert len(nodes) > 20
    scale = np.float16 if opset == 20 else np.float32  # the other layers run in fp16 where QDQ in fp16 exists
    for node in nodes:
        zero_point = constants[node.input[2]]
        assert zero_point.dtype == np.int8 and not zero_point.any()
        assert constants[node.input[1]].dtype == scale
    producers = {node.output[0]: node for node in onnx.load(bundle.model_path).graph.node}
    convolutions = [node for node in producers.values() if node.op_type == "Conv"]
    for conv in convolutions:
        assert len(conv.input) < 3 or conv.input[2] not in producers  # the bias is a float constant


def test_int8_cpu_has_unsigned_activations_and_per_channel_weights() -> None:
    bundle = int8_head("int8-cpu")
    nodes, constants = quantised_tensors(bundle)
    kinds = {constants[node.input[2]].dtype.name for node in nodes}
    assert kinds == {"uint8", "int8", "int32"}  # activations, weights, biases
    weights = [n for n in nodes if n.input[0] in constants and constants[n.input[0]].dtype == np.int8]
    assert weights
    for node in weights:
        assert constants[node.input[1]].shape == constants[node.input[0]].shape[:1]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_layers_left_in_float_are_stated_and_are_in_float(flavour: str) -> None:
    bundle = int8_head(flavour)
    graph = onnx.load(bundle.model_path).graph
    convolutions = {node.name: node for node in graph.node if node.op_type == "Conv"}
    dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert 1 <= len(bundle.float_layers) <= len(convolutions) // 2  # a quarter, and twice that where int8 saturates
    for name, node in convolutions.items():
        assert (node.input[1] in dequantised) == (name not in bundle.float_layers)
    assert read_bundle(bundle.path).float_layers == bundle.float_layers
    assert default_head().float_layers == ()


@pytest.mark.parametrize("make_head", [default_head, conditional_head])
def test_calibration_sees_every_baked_step_of_the_real_trajectory(make_head: "type[HeadBundle]") -> None:
    bundle = make_head()
    tensors, rows = calibration(bundle.plan, 5), range(1, 4)
    with open_engine(bundle) as engine:
        feeds = list(step_feeds(engine, tensors, rows))
        states = trajectories(engine, tensors, rows)
        assert [int(f["step"][0]) for f in feeds] == list(range(len(bundle.transitions)))
        k = 0
        for row_range in bundle.row_ranges:
            np.testing.assert_array_equal(states[row_range.steps][0], tensors.x_tc[1:4])
            for before, after in zip(states[row_range.steps][:-1], states[row_range.steps][1:], strict=True):
                feed = feeds[k]
                np.testing.assert_array_equal(feed["sample"], before)
                result = engine.step(feed["sample"], int(feed["step"][0]), feed.get("noise"), feed.get("label"))
                np.testing.assert_allclose(result, after, atol=1e-5)
                k += 1


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60))
def test_int8_is_never_judged_on_what_it_was_fitted_to(count: int) -> None:
    fit, check = split_handover(calibration(PLAN, count))
    assert fit and check
    assert not set(fit) & set(check)
    assert max(*fit, *check) < count


def test_layers_are_ranked_and_chosen_on_calibration_tensors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, seen = calibration(PLAN, 6), []
    _, check = split_handover(tensors)
    for name in ("trajectories", "compare_graphs", "step_feeds"):
        real = getattr(low_precision, name)

        def recorded(*arguments, real=real):  # type: ignore[no-untyped-def]
            seen.append(set(arguments[-1]))
            return real(*arguments)

        monkeypatch.setattr(low_precision, name, recorded)
    export_head(
        checkpoint(levels=1),
        tmp_path / "x.head",
        ExportSettings(step_counts=(2,), precision="int8-cpu", calibration=tensors),
        force=True,
    )
    assert len(seen) > 12  # a trajectory per layer, and the choice
    assert not set.union(*seen) & set(check)


def test_every_class_is_calibrated() -> None:
    assert labels_for(range(4, 9), 3).tolist() == [1, 2, 0, 1, 2]  # type: ignore[union-attr]
    assert labels_for(range(3), None) is None


def test_the_layer_that_suffers_most_stays_in_float() -> None:
    """Activations of one layer with an outlier of a thousand leave int8 no steps for the rest."""
    bundle = default_head()
    model = onnx.load(bundle.model_path)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    tensors = calibration(PLAN, 4)
    tensors.x_tc[0, 0, 0, 0] = 1000.0
    with open_engine(bundle) as engine:
        quantiser = Quantiser(model.SerializeToString(), list(step_feeds(engine, tensors, range(2)))[:1], "int8-cpu")
        clean = trajectories(engine, tensors, range(2, 4))[20][-1]

        def run(graph: bytes) -> np.ndarray:
            import onnxruntime

            session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
            x = tensors.x_tc[2:4]
            for row in range(20):
                (x,) = session.run(None, {"sample": x, "step": np.array([row], np.int32)})
            return x

        done: list[tuple[int, int]] = []
        entries = measure_sensitivity(quantiser, run, clean, lambda *step: done.append(step))
    assert entries[0].layer == first.name
    assert entries[0].rms > 1.2 * entries[1].rms
    assert sum(entry.share for entry in entries) == pytest.approx(1)
    assert [e.rms for e in entries] == sorted((e.rms for e in entries), reverse=True)
    assert done == [(k + 1, len(entries)) for k in range(len(entries))]
    assert first.name in layers_to_keep_float(entries)


def test_float_layers_are_the_fewest_that_take_the_error_away() -> None:
    shares = [0.5, 0.3, 0.15, 0.03, 0.02] + [0.0] * 15
    entries = tuple(Sensitivity(f"l{i}", share**0.5, share) for i, share in enumerate(shares))
    assert layers_to_keep_float(entries) == ("l0", "l1", "l2")
    assert layers_to_keep_float(entries[:4]) == ("l0",)  # at first no more than a quarter


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_int8_without_usable_tensors_is_refused(flavour: str, tmp_path: Path) -> None:
    export = ("export", checkpoint(), "--out", tmp_path / "x.head", "--precision", flavour)
    assert f"precision {flavour} is calibrated on real hand-over tensors" in refusal(*export)
    one = tmp_path / "one.tc.safetensors"
    write_handover(one, calibration(PLAN, 1))
    assert "a hand-over file of 1 tensor cannot calibrate" in refusal(*export, "--calibration", one)
    other = tmp_path / "other.tc.safetensors"
    write_handover(other, calibration(PLAN.with_cut_ratio(0.5), 4))
    assert "plans disagree on cut_ratio" in refusal(*export, "--calibration", other)
    assert not (tmp_path / "x.head").exists()


def test_fp32_takes_no_calibration(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fp32 takes no calibration; leave out --calibration"):
        export_head(checkpoint(), tmp_path / "x.head", ExportSettings(calibration=calibration(PLAN, 4)))
    with pytest.raises(PlanMismatch):
        other = calibration(PLAN.with_cut_ratio(0.5), 4)
        export_head(checkpoint(), tmp_path / "x.head", ExportSettings(precision="fp16", calibration=other))
