"""The inspector's JSON of several releases is read for what the convolutions compute in; other types are refused."""

import json
from typing import Any

import pytest

from collafuse_runtimes.engines.trt.inspection import Inspection, parse_inspection, require_precision
from collafuse_runtimes.errors import CheckFailed


def layer(
    kind: str, weights: str | None = None, tensors: str = "N/A due to dynamic shapes", **more: Any
) -> dict[str, Any]:
    entry = {"Name": "node_conv2d_1", "LayerType": kind, "Inputs": [{"Name": "x", "Format/Datatype": tensors}], **more}
    return entry if weights is None else {**entry, "Weights": {"Type": weights, "Count": 64}}


def inspected(*layers: Any) -> Inspection:
    return parse_inspection(json.dumps({"Layers": list(layers), "Bindings": ["sample", "step"]}))


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (layer("CaskConvolution", "Half"), "fp16"),  # weights are named whatever the batch
        (layer("CaskConvolution", "Float"), "fp32"),
        (layer("CaskConvolution", "Int8", ParameterType="Convolution"), "int8"),
        (layer("CaskConvolution", None, "Half"), "fp16"),  # 10 and 11
        (layer("CaskConvolution", None, "Half(64,1:8,...)"), "fp16"),
        (layer("CaskConvolution", None, "Float"), "fp32"),
        (layer("CaskConvolution", None, "Int8"), "int8"),
        (layer("CaskConvolution", None, "Row major linear FP16 format"), "fp16"),  # 8
        (layer("CaskConvolution", None, "Channel major FP16 format where channel % 4 == 0"), "fp16"),
        (layer("CaskConvolution", None, "Row major linear FP32"), "fp32"),
        (layer("CaskConvolution", None, "Thirty-two wide channel vectorized row major Int8 format."), "int8"),
        (layer("CaskConvolution"), "unknown"),
        (layer("fusion", None, "Half", TacticName="sm80_xmma_fprop_implicit_gemm_f16f16"), "fp16"),
    ],
)
def test_the_type_of_a_convolution(entry: dict[str, Any], kind: str) -> None:
    assert inspected(entry, layer("Reformat", None, "Float"), layer("kgen", None, "Float")).convolutions == {kind: 1}


def test_a_fused_cast_that_names_a_convolution_is_none() -> None:
    cast = layer("kgen", None, "Float", Metadata="[ONNX Layer: node_conv2d_1][ONNX Layer: node_Cast_2]")
    assert inspected(cast, layer("CaskConvolution", "Half")).convolutions == {"fp16": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the inspector gave no list of layers"),
        ("[1]", "the inspector gave no list of layers"),
        ('{"Layers": ["conv_1", "conv_2"]}', "shows no convolution among 2 layers"),  # without detailed verbosity
        ('{"Layers": [{"LayerType": "Myelin"}]}', "shows no convolution among 1 layers"),
    ],
)
def test_what_cannot_be_inspected_says_why(text: str, reason: str) -> None:
    inspection = parse_inspection(text)
    assert reason in str(inspection)
    assert str(inspection).startswith("not inspected: ")
    require_precision(inspection, "fp16", "a.head")


@pytest.mark.parametrize(
    ("found", "precision"),
    [
        ({"fp16": 9}, "fp16"),
        ({"fp32": 9}, "fp32"),
        ({"int8": 1, "fp16": 2, "fp32": 1}, "int8"),
        ({"unknown": 9}, "fp16"),
        ({"fp16": 8, "unknown": 1}, "fp16"),
    ],
)
def test_the_types_asked_for_pass(found: dict[str, int], precision: str) -> None:
    require_precision(Inspection(found), precision, "a.head")


@pytest.mark.parametrize(
    ("found", "precision", "said"),
    [
        ({"fp32": 9}, "fp16", "convolutions: 9 fp32"),
        ({"fp16": 8, "fp32": 1}, "fp16", "convolutions: 8 fp16, 1 fp32"),
        ({"fp16": 9}, "fp32", "convolutions: 9 fp16"),
        ({"fp16": 7, "fp32": 2}, "int8", "convolutions: 7 fp16, 2 fp32"),
    ],
)
def test_other_types_are_refused_with_their_number(found: dict[str, int], precision: str, said: str) -> None:
    with pytest.raises(CheckFailed, match=rf"a.head was asked to compute in {precision} and has {said}; build with"):
        require_precision(Inspection(found), precision, "a.head")
