"""ONNX Runtime on the CPU: buffers, bound once per trajectory, take turns as input and output."""

from typing import Any

import numpy as np

from collafuse_runtimes.device.cpus import threads_by_quota
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.engines.base import Engine, Labels, Trajectory
from collafuse_runtimes.engines.ort.session import CPU, new_session_options, one_line_errors, open_session
from collafuse_runtimes.engines.two_buffers import StepArrays, denoise_in_turns
from collafuse_runtimes.files.bundle import HISTORY_IN


class OrtCpuEngine(Engine):
    """``ort-cpu``."""

    name = "ort-cpu"

    def _open(self) -> None:
        spinning = self.options.spinning
        config = {} if spinning is None else {"session.intra_op.allow_spinning": str(int(spinning))}
        options = new_session_options(config)
        options.intra_op_num_threads = self.options.threads or threads_by_quota() or 0
        self._session = open_session(self.bundle, CPU, options)

    def _close(self) -> None:
        del self._session

    def _step(
        self, x: Float32Array, row: int, z: Float32Array | None, labels: Labels | None, x_0_old: Float32Array | None
    ) -> tuple[Float32Array, Float32Array | None]:
        optional = {"noise": z, "label": labels, HISTORY_IN: x_0_old}
        feeds: dict[str, Any] = {"sample": x, "step": np.array([row], dtype=np.int32)}
        feeds |= {name: array for name, array in optional.items() if array is not None}
        with one_line_errors(self.bundle):
            results: list[Float32Array] = self._session.run(None, feeds)
        return results[0], results[1] if len(results) > 1 else None

    def _denoise(self, trajectory: Trajectory) -> Float32Array:
        return denoise_in_turns(trajectory, self._bind, self._run)

    def _run(self, binding: Any) -> None:
        with one_line_errors(self.bundle):
            self._session.run_with_iobinding(binding)

    def _bind(self, arrays: StepArrays) -> Any:
        binding = self._session.io_binding()
        for name, array in arrays.inputs():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in arrays.outputs():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding
