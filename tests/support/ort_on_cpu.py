"""The code of the ONNX Runtime GPU engines with the CPU provider and buffers in main memory."""

from typing import ClassVar

from heads import conditional_head, default_head, head, rgb_head, second_order_head

from collafuse_runtimes.engines import EngineOptions
from collafuse_runtimes.engines.ort.gpu import OrtCudaEngine
from collafuse_runtimes.files.bundle import HeadBundle

HEADS = [default_head, conditional_head, rgb_head, second_order_head, lambda: head(precision="fp16")]
WAITS_NOT = "disable_synchronize_execution_providers"


class OnCpu(OrtCudaEngine):
    """The engine's code with the CPU provider and buffers in main memory, where no option of a GPU is known."""

    provider = "CPUExecutionProvider"
    device_type = "cpu"
    config: ClassVar[dict[str, str]] = {}

    def _provider_options(self, batch_size: int) -> dict[str, str]:
        return {}


def engine_for(bundle: HeadBundle) -> OnCpu:
    return OnCpu(bundle, EngineOptions())
