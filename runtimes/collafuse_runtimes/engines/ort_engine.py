"""ONNX Runtime on the CPU: two buffers, bound once per trajectory, take turns as input and output."""

from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.cpus import threads_by_quota
from collafuse_runtimes.engines.base import Engine, Labels, Trajectory
from collafuse_runtimes.engines.ort_session import CPU, new_session_options, one_line_errors, open_session
from collafuse_runtimes.engines.two_buffers import denoise_in_turns
from collafuse_runtimes.noise import Float32Array


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

    def _step(self, x: Float32Array, row: int, z: Float32Array | None, labels: Labels | None) -> Float32Array:
        feeds: dict[str, Any] = {"sample": x, "step": np.array([row], dtype=np.int32)}
        if z is not None:
            feeds["noise"] = z
        if labels is not None:
            feeds["label"] = labels
        with one_line_errors(self.bundle):
            result: Float32Array = self._session.run(None, feeds)[0]
        return result

    def _denoise(self, trajectory: Trajectory) -> Float32Array:
        return denoise_in_turns(trajectory, self._bind, self._run)

    def _run(self, binding: Any) -> None:
        with one_line_errors(self.bundle):
            self._session.run_with_iobinding(binding)

    def _bind(
        self,
        x: Float32Array,
        step: npt.NDArray[np.int32],
        z: Float32Array | None,
        labels: Labels | None,
        y: Float32Array,
    ) -> Any:
        binding = self._session.io_binding()
        for name, array in (("sample", x), ("step", step), ("noise", z), ("label", labels)):
            if array is not None:
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output("next_sample", "cpu", 0, y.dtype, y.shape, y.ctypes.data)
        return binding
