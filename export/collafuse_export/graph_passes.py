"""Rewrites of an exported step graph that change no value of it: fewer nodes, and none that works on shapes."""

from collections import Counter
from typing import Any

import numpy as np

from collafuse_runtimes.errors import CollafuseError
from collafuse_runtimes.text import one_line


def simplify(model: Any, step_input: str, rows: int) -> Any:
    """All passes over an ``onnx.ModelProto``; the result is a new one.

    Args:
        step_input: name of the (1,) int32 input that picks a row of the tables.
        rows: number of rows of the tables.
    """
    import onnx
    from onnxscript import optimizer

    fix_reshapes(model)
    del model.graph.value_info[:]
    model = optimizer.optimize(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))
    merge_affine(model)
    bake_rows(model, step_input, rows)
    drop_unused(model)
    return model


def fix_reshapes(model: Any) -> None:
    """In place: give every Reshape a constant target, not one computed from shapes; the batch is 0, "as it was".

    Shape arithmetic runs on the CPU wherever the rest runs: on a GPU it costs a copy per node. With -1 for the batch
    ONNX Runtime no longer knows that two tensors have the same one, and puts reorders around their sum.
    """
    import onnx

    graph = model.graph
    dims = {v.name: _dims(v) for v in (*graph.value_info, *graph.input, *graph.output)}
    shape_of = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Shape"}
    constants = {i.name for i in graph.initializer}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] in constants:
            continue
        target = dims.get(shape_of.get(node.input[1], node.output[0]), [])
        if not target or not all(isinstance(n, int) for n in target[1:]):
            continue
        batch = 0 if dims.get(node.input[0], [])[:1] == target[:1] else -1
        name = f"{node.output[0]}_shape"
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([batch, *target[1:]], np.int64), name))
        node.input[1] = name


def merge_affine(model: Any) -> None:
    """In place: the per-channel gain and shift after a group normalisation become one node.

    x * gain + shift is BatchNormalization with mean 0 and variance 1, which ONNX Runtime keeps in the blocked layout of
    the convolutions around it (benchmarks/results/graph_rewrites.md). float32 only:
    its CPU provider has no other.
    """
    import onnx

    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    merged: dict[str, Any] = {}
    for add in graph.node:
        found = _affine(add, makers, constants, readers)
        if found is None:
            continue
        x, mul, gain, shift = found
        name = add.output[0]
        ends = {"mean": np.zeros_like(gain), "variance": np.ones_like(gain), "gain": gain, "shift": shift}
        graph.initializer.extend(onnx.numpy_helper.from_array(v, f"{name}_{end}") for end, v in ends.items())
        inputs = [x, *(f"{name}_{end}" for end in ("gain", "shift", "mean", "variance"))]
        merged[name] = onnx.helper.make_node("BatchNormalization", inputs, [name], f"{name}_affine", epsilon=0.0)
        merged[mul.output[0]] = None
    nodes = [merged.get(node.output[0], node) for node in graph.node]
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes if node is not None]
    del graph.node[:]
    graph.node.extend(kept)


def _affine(add: Any, makers: dict[str, Any], constants: dict[str, Any], readers: Counter[str]) -> Any:
    """(x, the Mul, gain, shift) where ``add`` is x * gain + shift per channel right after a normalisation."""
    if add.op_type != "Add" or (shift := _per_channel(add, constants)) is None:
        return None
    mul = makers.get(next(name for name in add.input if name not in constants))
    if mul is None or mul.op_type != "Mul" or readers[mul.output[0]] > 1:
        return None
    gain = _per_channel(mul, constants)
    x = next((name for name in mul.input if name not in constants), "")
    back = makers.get(x)
    norm = makers.get(back.input[0]) if back is not None and back.op_type == "Reshape" else None
    if gain is None or gain.shape != shift.shape or norm is None or norm.op_type != "InstanceNormalization":
        return None
    return x, mul, gain, shift


def _per_channel(node: Any, constants: dict[str, Any]) -> "np.ndarray[Any, Any] | None":
    """The node's one constant where that is (C, 1, 1) float32, as (C,)."""
    import onnx

    held = [constants[name] for name in node.input if name in constants]
    if len(held) != 1 or held[0].data_type != onnx.TensorProto.FLOAT or list(held[0].dims)[1:] != [1, 1]:
        return None
    return np.ascontiguousarray(onnx.numpy_helper.to_array(held[0]).reshape(-1))


def bake_rows(model: Any, step_input: str, rows: int) -> None:
    """In place: replace everything that depends on the step alone (time embeddings, their projections, coefficients)
    by tables with one row per step, computed once, here.

    Raises:
        CollafuseError: ONNX Runtime cannot evaluate that part of the graph.
    """
    import onnx

    graph = model.graph
    from_step, wanted = _step_only(graph, step_input)
    if not wanted:
        return
    tables = _evaluate(model, from_step, wanted, step_input, rows)
    kept = [node for node in graph.node if not set(node.output) & from_step]
    gathers = []
    for name, table in tables.items():
        graph.initializer.append(onnx.numpy_helper.from_array(table, f"{name}_rows"))
        gathers.append(onnx.helper.make_node("Gather", [f"{name}_rows", step_input], [name], f"{name}_row", axis=0))
    del graph.node[:]
    graph.node.extend([*gathers, *kept])


def drop_unused(model: Any) -> None:
    """In place: remove nodes, initializers and shape notes that no output needs."""
    graph = model.graph
    needed, kept = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if set(node.output) & needed:
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for field in (graph.initializer, graph.value_info):
        used = [item for item in field if item.name in needed]
        del field[:]
        field.extend(used)


def _step_only(graph: Any, step_input: str) -> tuple[set[str], list[str]]:
    """(tensors computed from the step and constants alone, those of them that the rest of the graph reads)."""
    constants = {i.name for i in graph.initializer} | {""}
    from_step = {step_input}
    for node in graph.node:
        inputs = set(node.input)
        if inputs & from_step and inputs <= from_step | constants:
            from_step.update(node.output)
    from_step.discard(step_input)
    read = {name for node in graph.node if not set(node.output) & from_step for name in node.input}
    return from_step, [name for node in graph.node for name in node.output if name in from_step & read]


def _evaluate(
    model: Any, from_step: set[str], wanted: list[str], step_input: str, rows: int
) -> dict[str, "np.ndarray[Any, Any]"]:
    """Values of the ``wanted`` tensors for every row: name to (rows, ...)."""
    import onnx
    import onnxruntime

    graph = model.graph
    nodes = [node for node in graph.node if set(node.output) & from_step]
    used = {name for node in nodes for name in node.input}
    part = onnx.helper.make_graph(
        nodes,
        "rows",
        [value for value in graph.input if value.name == step_input],
        [onnx.ValueInfoProto(name=name) for name in wanted],
        [i for i in graph.initializer if i.name in used],
    )
    opsets = [onnx.helper.make_opsetid(o.domain, o.version) for o in model.opset_import]
    partial = onnx.shape_inference.infer_shapes(
        onnx.helper.make_model(part, opset_imports=opsets, ir_version=model.ir_version)
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = onnxruntime.InferenceSession(partial.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = [session.run(wanted, {step_input: np.array([row], np.int32)}) for row in range(rows)]
    except Exception as error:  # onnxruntime's own classes share no public base
        raise CollafuseError(f"cannot evaluate the step tables: {one_line(error, 200)}") from None
    tables = {name: np.stack([row[i] for row in values]) for i, name in enumerate(wanted)}  # (rows, 1, ...)
    return {name: table.reshape(table.shape[0], *table.shape[2:]) for name, table in tables.items()}


def _dims(value: Any) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]
