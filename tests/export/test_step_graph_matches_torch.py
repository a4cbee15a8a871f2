"""The exported step graph computes what the torch network and the sampler loop compute, over the whole trajectory."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from heads import conditional_head, default_head, head, inputs, rgb_head, second_order_head, torch_trajectory

from collafuse_runtimes.diffusion.samplers import step_table
from collafuse_runtimes.engines import open_engine
from collafuse_runtimes.files.bundle import HeadBundle

HEADS = [default_head, conditional_head, rgb_head, second_order_head]


@pytest.mark.parametrize("make_head", HEADS)
@pytest.mark.parametrize("batch", [1, 5])  # 3 is traced, 2 is the golden batch
def test_every_step_within_1e_4_of_torch(make_head: Callable[[], HeadBundle], batch: int) -> None:
    bundle = make_head()
    x_tc, labels = inputs(bundle, batch)
    for rows in bundle.row_ranges:
        expected = torch_trajectory(bundle, rows.steps, x_tc, labels, seed=9)
        actual: list[np.ndarray] = []
        with open_engine(bundle) as engine:
            final = engine.denoise(
                x_tc, rows.steps, seed=9, labels=labels, on_step=lambda _, x, out=actual: out.append(x.copy())
            )
        assert len(actual) == rows.steps
        assert max(np.abs(a - b).max() for a, b in zip(actual, expected, strict=True)) <= 1e-4
        np.testing.assert_array_equal(final, actual[-1])
        assert np.abs(expected[0] - x_tc).max() > 0.01  # the network does something


@pytest.mark.parametrize("make_head", HEADS)
def test_graph_has_the_stated_border(make_head: Callable[[], HeadBundle]) -> None:
    bundle = make_head()
    model = onnx.load(bundle.model_path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", bundle.opset)]
    for stated, actual in ((bundle.inputs, model.graph.input), (bundle.outputs, model.graph.output)):
        found = [
            (
                value.name,
                onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
            )
            for value in actual
        ]
        assert found == [(tensor.name, tensor.dtype, tensor.shape) for tensor in stated]


def test_schedule_and_time_embedding_are_constants_of_the_graph() -> None:
    """One table per coefficient and per projection of the time embedding, a row per baked step."""
    bundle = default_head()
    graph = onnx.load(bundle.model_path).graph
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    tables = [constants[node.input[0]] for node in graph.node if "step" in node.input]
    assert {len(table) for table in tables} == {20 + 7 + 1}
    columns = step_table(bundle.plan, bundle.transitions, bundle.sampler).T
    found = np.stack([table for table in tables if table.ndim == 1])
    np.testing.assert_array_equal(found, columns[: len(found)])  # a deterministic head has no use for sigma
    assert len(found) == 5 and len(tables) > len(found)
    operators = {node.op_type for node in graph.node}
    assert not operators & {"Sin", "Cos", "Loop", "If", "Gemm", "MatMul"}


@pytest.mark.parametrize("make_head", HEADS)
def test_no_node_works_on_shapes(make_head: Callable[[], HeadBundle]) -> None:
    graph = onnx.load(make_head().model_path).graph
    assert not {node.op_type for node in graph.node} & {
        "Shape",
        "Size",
        "Slice",
        "Squeeze",
        "Expand",
        "ConstantOfShape",
    }
    names = {i.name for i in graph.initializer}
    assert all(node.input[1] in names for node in graph.node if node.op_type == "Reshape")
    assert names == {name for node in graph.node for name in node.input} & names  # none is left unused


def test_labels_and_noise_matter() -> None:
    bundle = conditional_head()
    x, labels = inputs(bundle, 2)
    z = np.ones_like(x)
    with open_engine(bundle) as engine:
        base = engine.step(x, 0, z, labels)
        other_label = engine.step(x, 0, z, (labels + 1) % 3)
        other_noise = engine.step(x, 0, 0 * z, labels)
    assert np.abs(base - other_label).max() > 1e-4
    sigma = step_table(bundle.plan, bundle.transitions, bundle.sampler)[0, 5]
    np.testing.assert_allclose(base - other_noise, np.full_like(x, sigma), atol=1e-6)


def test_fp16_network_keeps_float32_border_and_sampler() -> None:
    bundle = head(conditional=True, precision="fp16")
    graph = onnx.load(bundle.model_path).graph
    types = {i.name: i.data_type for i in graph.initializer}
    tables = [node.input[0] for node in graph.node if "step" in node.input]
    shapes = {i.name: len(i.dims) for i in graph.initializer}
    assert {types[name] for name in tables if shapes[name] == 1} == {onnx.TensorProto.FLOAT}
    assert types["network.conv_in.weight"] == onnx.TensorProto.FLOAT16
    assert {value.type.tensor_type.elem_type for value in graph.output} == {onnx.TensorProto.FLOAT}
    x_tc, labels = inputs(bundle, 4)
    with open_engine(bundle) as engine:
        final = engine.denoise(x_tc, labels=labels)
    distance = np.abs(final - torch_trajectory(bundle, 20, x_tc, labels, seed=0)[-1]).max()
    assert 1e-6 < distance <= 1e-2
