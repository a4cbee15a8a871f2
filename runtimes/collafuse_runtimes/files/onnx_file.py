"""What an ONNX file asks for, read from its bytes without the onnx package: enough to refuse what no exporter of ours
writes.

The wire format is protobuf's (https://protobuf.dev/programming-guides/encoding), the field numbers are onnx.proto's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from collafuse_runtimes.errors import ArtefactError
from collafuse_runtimes.text import one_line

DOMAINS = ("", "ai.onnx")
_NAMES = """
    Abs Add And AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos
    DepthToSpace DequantizeLinear Div Equal Erf Exp Expand Flatten Floor Gather Gelu Gemm GlobalAveragePool Greater
    GroupNormalization HardSigmoid Identity InstanceNormalization LayerNormalization LeakyRelu Less Log MatMul Max
    MaxPool Mean Min Mish Mul Neg Not Or PRelu Pad Pow QuantizeLinear Range Reciprocal ReduceMean ReduceSum Relu
    Reshape Resize Round Shape Sigmoid Sin Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh
    Transpose Unsqueeze Where
"""
OPERATORS = frozenset(_NAMES.split())
"""Arithmetic on tensors. No control flow, sequences, random numbers, optional values or operators of a vendor: nothing
that a U-Net's step needs, and what could run for ever or differently each time."""
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_FUNCTION = 7, 8, 25
_NODE, _INITIALIZER, _SPARSE, _INPUT, _OUTPUT = 1, 5, 15, 11, 12
_OP_TYPE, _ATTRIBUTE, _DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_SPARSE = (22, 23)
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_TAG = 2**32 - 1
"""protobuf drops the bits above: a larger tag would be one field to us and another to the engine."""
_MAX_FIELDS = 500_000
"""In the whole file, weights apart; our largest graph has some ten thousand."""

Field = tuple[int, int | memoryview]


class _Budget:
    """Fields that may still be read, so that a file of very many tiny ones ends soon."""

    left = _MAX_FIELDS

    def spend(self) -> None:
        """Count one.

        Raises:
            ValueError: none is left.
        """
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"more than {_MAX_FIELDS:,} fields")


@dataclass(frozen=True)
class GraphFacts:
    """What a graph states.

    Attributes:
        opset: version of the standard operators.
        operators: types of its nodes.
        inputs: names, in order.
        outputs: names, in order.
    """

    opset: int
    operators: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_graph(name: str, data: bytes) -> GraphFacts:
    """The facts of a graph that holds all its data and computes with operators of ``OPERATORS`` alone.

    Args:
        name: of the file, for errors.

    Raises:
        ArtefactError: it is no ONNX model, or has functions, sub-graphs, data outside of it, sparse data, or an
            operator of another domain or outside of the list.
    """
    try:
        return _facts(name, data)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ArtefactError(
            f"{name} is no readable ONNX model ({one_line(error, 100)}); export the head again"
        ) from None


def _facts(name: str, data: bytes) -> GraphFacts:
    graphs, opsets, budget = [], {}, _Budget()
    for number, value in _fields(memoryview(data), budget):
        if number == _MODEL_GRAPH:
            graphs.append(_message(value))
        elif number == _MODEL_OPSET:
            entry = dict(_fields(_message(value), budget))
            opsets[_text(entry.get(1, memoryview(b"")))] = entry.get(2)
        elif number == _MODEL_FUNCTION:
            raise _refused(name, "functions of its own")
    standard = opsets.get("", opsets.get("ai.onnx"))
    if len(graphs) != 1 or not isinstance(standard, int):
        raise ValueError("no graph, or no opset")
    operators: set[str] = set()
    inputs: list[str] = []
    outputs: list[str] = []
    for number, value in _fields(graphs[0], budget):
        if number == _NODE:
            operators.add(_operator(name, _message(value), budget))
        elif number == _INITIALIZER:
            _require_inside(name, _message(value), budget)
        elif number == _SPARSE:
            raise _refused(name, "sparse data")
        elif number in (_INPUT, _OUTPUT):
            (inputs if number == _INPUT else outputs).append(
                _text(dict(_fields(_message(value), budget)).get(1, memoryview(b"")))
            )
    return GraphFacts(standard, frozenset(operators), tuple(inputs), tuple(outputs))


def _operator(name: str, node: memoryview, budget: _Budget) -> str:
    kind, domain = "", ""
    for number, value in _fields(node, budget):
        if number == _OP_TYPE:
            kind = _text(value)
        elif number == _DOMAIN:
            domain = _text(value)
        elif number == _ATTRIBUTE:
            _check_attribute(name, _message(value), budget)
    if domain not in DOMAINS or kind not in OPERATORS:
        full = f"{domain}.{kind}" if domain else kind
        raise _refused(name, f"the operator {one_line(full, 80)!r}, which no step of a head needs")
    return kind


def _check_attribute(name: str, attribute: memoryview, budget: _Budget) -> None:
    for number, value in _fields(attribute, budget):
        if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            _require_inside(name, _message(value), budget)
        elif number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
            raise _refused(name, "a graph within the graph")
        elif number in _ATTRIBUTE_SPARSE:
            raise _refused(name, "sparse data")


def _require_inside(name: str, tensor: memoryview, budget: _Budget) -> None:
    for number, value in _fields(tensor, budget):
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
            raise _refused(name, "data in another file")


def _refused(name: str, what: str) -> ArtefactError:
    return ArtefactError(
        f"{name} has {what}; valid is a graph as `collafuse-edge export` writes it: export the head again"
    )


def _fields(message: memoryview, budget: _Budget) -> Iterator[Field]:
    """(field number, value) of a message; fixed-width values are given as 0: none is looked at.

    Raises:
        ValueError: it is cut short, or no protobuf message.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        budget.spend()
        if not 8 <= tag <= _MAX_TAG:
            raise ValueError(f"field tag {tag}")
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif wire == _BYTES:
            length, at = _varint(message, at)
            if length > len(message) - at:
                raise ValueError("it is cut short")
            yield number, message[at : at + length]
            at += length
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
            if at > len(message):
                raise ValueError("it is cut short")
            yield number, 0
        else:
            raise ValueError(f"wire type {wire} at byte {at}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """(value, position behind it)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it is cut short")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode()
