"""Rewrites of an exported step graph that change no value of it: fewer nodes, and none that works on shapes."""

from typing import Any

import numpy as np

from collafuse_runtimes.errors import CollafuseError


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
    bake_rows(model, step_input, rows)
    drop_unused(model)
    return model


def fix_reshapes(model: Any) -> None:
    """In place: give every Reshape a constant target, with only the batch open (-1), not one computed from shapes.

    Shape arithmetic runs on the CPU wherever the rest runs: on a GPU it costs a copy per node.
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
        name = f"{node.output[0]}_shape"
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, *target[1:]], np.int64), name))
        node.input[1] = name


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
        raise CollafuseError(f"cannot evaluate the step tables: {' '.join(str(error).split())[:200]}") from None
    tables = {name: np.stack([row[i] for row in values]) for i, name in enumerate(wanted)}  # (rows, 1, ...)
    return {name: table.reshape(table.shape[0], *table.shape[2:]) for name, table in tables.items()}


def _dims(value: Any) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]
