"""OpenVINO on an x86 CPU: the graph compiled once per batch size, two shared buffers that take turns."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from collafuse_runtimes.device.cpus import threads_by_quota
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.engines.base import Engine, Labels, Trajectory
from collafuse_runtimes.engines.two_buffers import StepArrays, denoise_in_turns
from collafuse_runtimes.errors import ArtefactError, EngineUnavailable
from collafuse_runtimes.text import one_line


class OpenVinoEngine(Engine):
    """``openvino``: computes in float32, and in int8 where the graph is quantised."""

    name = "openvino"
    hint: ClassVar[str] = "f32"

    def _open(self) -> None:
        import openvino

        self._core = openvino.Core()
        with _one_line("looking at this CPU"):
            capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if self.hint == "bf16" and "BF16" not in capabilities:
            raise EngineUnavailable(
                f"engine {self.name}: this CPU has no bf16 arithmetic (OpenVINO offers {', '.join(capabilities)}); "
                "use openvino"
            )
        try:
            self._model = self._core.read_model(self.bundle.model)
        except RuntimeError as error:
            reason = one_line(error, 200)
            raise ArtefactError(f"OpenVINO refuses {self.bundle.model_path}: {reason}; export the head again") from None
        found = {port.get_any_name() for port in (*self._model.inputs, *self._model.outputs)}
        stated = {tensor.name for tensor in (*self.bundle.inputs, *self.bundle.outputs)}
        if found != stated:
            raise ArtefactError(
                f"{self.bundle.model_path} takes and gives {sorted(found)}, not {sorted(stated)}; export the head again"
            )
        self._compiled: dict[int, Any] = {}

    def _close(self) -> None:
        self._compiled.clear()
        del self._model, self._core

    def _step(
        self, x: Float32Array, row: int, z: Float32Array | None, labels: Labels | None, x_0_old: Float32Array | None
    ) -> tuple[Float32Array, Float32Array | None]:
        y, x_0 = np.empty_like(x), None if x_0_old is None else np.empty_like(x)
        _infer(self._bind(StepArrays(x, np.array([row], dtype=np.int32), z, labels, y, x_0_old, x_0)))
        return y, x_0

    def _denoise(self, trajectory: Trajectory) -> Float32Array:
        return denoise_in_turns(trajectory, self._bind, _infer)

    def _bind(self, arrays: StepArrays) -> Any:
        """An inference request that reads and writes these very arrays."""
        from openvino import Tensor

        request = self._compiled_for(len(arrays.sample)).create_infer_request()
        for name, array in (*arrays.inputs(), *arrays.outputs()):
            shared = array if array.flags.writeable else array.copy()  # OpenVINO shares no read-only memory
            request.set_tensor(name, Tensor(shared, shared_memory=True))
        return request

    def _compiled_for(self, batch: int) -> Any:
        """Static shapes run faster than a dynamic batch; the last batch size stays compiled."""
        if batch not in self._compiled:
            self._compiled.clear()
            shapes = {t.name: [batch if n == "batch" else n for n in t.shape] for t in self.bundle.inputs}
            options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self.hint}
            if threads := self.options.threads or threads_by_quota():
                options["INFERENCE_NUM_THREADS"] = threads
            with _one_line(f"compiling for batches of {batch}"):
                self._model.reshape(shapes)
                compiled = self._core.compile_model(self._model, "CPU", options)
            ran = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            if ran != self.hint:
                raise EngineUnavailable(f"asked OpenVINO for {self.hint} arithmetic, got {ran}; use ort-cpu")
            self._compiled[batch] = compiled
        return self._compiled[batch]


def _infer(request: Any) -> None:
    with _one_line("running a step"):
        request.infer()


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """What OpenVINO raises, as this package's error."""
    try:
        yield
    except RuntimeError as error:
        reason = one_line(error, 200)
        raise EngineUnavailable(f"OpenVINO failed while {what}: {reason}; use ort-cpu") from None


class OpenVinoBf16Engine(OpenVinoEngine):
    """``openvino-bf16``: as ``openvino``, convolutions in bfloat16; ``verify`` allows it that precision's distance."""

    name = "openvino-bf16"
    hint = "bf16"
    arithmetic = "bf16"
