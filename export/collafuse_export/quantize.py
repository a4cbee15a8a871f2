"""int8 as QDQ, in the two flavours that engines accept; ONNX Runtime's quantiser does the work.

int8-cpu  ONNX Runtime and OpenVINO: uint8 activations, int8 weights, both sides of every convolution.
int8-trt  TensorRT: int8 activations and weights, symmetric, no quantised bias, inputs of convolutions only.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from collafuse_export.calibration import Feeds
from collafuse_runtimes.device.telemetry import without_machine_id
from collafuse_runtimes.disk.scratch import scratch_folder
from collafuse_runtimes.errors import InputError

FLAVOURS = ("int8-cpu", "int8-trt")
OPERATORS = ("Conv",)
"""Convolutions are nearly all of a head's work; the rest gains less than its conversions cost."""


class Quantiser:
    """One float32 step graph, its activation ranges measured once; ``quantise`` is then cheap.

    Args:
        model: the serialised float32 graph.
        feeds: inputs of every step, as ``calibration.step_feeds`` gives them.

    Raises:
        InputError: unknown flavour, or nothing to quantise.
    """

    def __init__(self, model: bytes, feeds: Iterable[Feeds], flavour: str) -> None:
        if flavour not in FLAVOURS:
            raise InputError(f"unknown int8 flavour {flavour!r}; valid: {', '.join(FLAVOURS)}")
        import onnx

        self.flavour, self._model = flavour, model
        self.layers = tuple(n.name for n in onnx.load_model_from_string(model).graph.node if n.op_type in OPERATORS)
        if not self.layers:
            raise InputError(f"this head has no {' or '.join(OPERATORS)} to quantise; export it as fp32 or fp16")
        self._ranges = _measure_ranges(model, feeds, symmetric=flavour == "int8-trt")

    @without_machine_id()
    def quantise(self, float_layers: Collection[str] = ()) -> bytes:
        """The graph with every layer in int8 but ``float_layers``; serialised."""
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        trt = self.flavour == "int8-trt"
        options: dict[str, Any] = {"ActivationSymmetric": trt, "WeightSymmetric": True, "QuantizeBias": not trt}
        if trt:
            options["OpTypesToExcludeOutputQuantization"] = list(OPERATORS)
        quantizer = QDQQuantizer(
            onnx.load_model_from_string(self._model),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if trt else QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=list(float_layers),
            op_types_to_quantize=list(OPERATORS),
            extra_options=options,
        )
        quantizer.quantize_model()
        model = quantizer.model.model
        model.producer_name, model.producer_version = "pytorch", ""
        data: bytes = model.SerializeToString(deterministic=True)
        return data


class _Reader:
    """Feeds in the form of ``onnxruntime.quantization.CalibrationDataReader``."""

    def __init__(self, feeds: Iterable[Feeds]) -> None:
        self._feeds: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


@without_machine_id()
def _measure_ranges(model: bytes, feeds: Iterable[Feeds], symmetric: bool) -> Any:
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    with scratch_folder("export") as folder:
        path = folder / "model.onnx"
        path.write_bytes(model)
        calibrator = create_calibrator(
            path,
            list(OPERATORS),
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"symmetric": symmetric},
        )
        calibrator.collect_data(_Reader(feeds))
        return calibrator.compute_data()
