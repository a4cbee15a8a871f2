"""Options that take one of a fixed set: `--help` lists it, completion offers it, and a wrong value is told it.

Those of a settings dataclass stand beside its fields (``fields.py``). These are the libraries' own, which a test
compares; reading them from there would import numpy for every `--help`.
"""

import re
from typing import Any, Literal

Sampler = Literal["ddim", "ddpm", "dpm++2m"]
HandoverDtype = Literal["float32", "float16"]
Preset = Literal["tiny", "small", "base", "paper", "server-small", "server-base", "server-large", "edge"]
Role = Literal["server", "client"]
Precision = Literal["fp32", "fp16", "int8-cpu", "int8-trt"]
Engine = Literal[
    "ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx", "openvino", "openvino-bf16", "torch", "fake"
]
BuiltEngine = Literal["tensorrt", "tensorrt-rtx"]
Mode = Literal["quick", "report"]
LEVELS = ("even", "log-snr", "karras")
"""Names that --levels takes beside timesteps."""


def unknown_choice(error: Any) -> str | None:
    """One line of the house for click's complaint about a value outside its set; None for every other complaint."""
    found = re.search(r"(?P<value>['\"].*['\"]) is not one of (?P<valid>'.*')", error.message, re.DOTALL)
    if found is None or getattr(error, "param", None) is None:
        return None
    name, valid = error.param.opts[0].lstrip("-"), found["valid"].replace("'", "")
    return f"unknown {name} {found['value']}; valid: {valid}"
