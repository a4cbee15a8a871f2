"""The two TensorRT libraries, which release is here, and what their answers mean: None and False are failures."""

import importlib
import importlib.util
from typing import Any

from collafuse_runtimes.errors import EngineUnavailable
from collafuse_runtimes.text import one_line

MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
INSTALL = {
    "tensorrt": "a Jetson has it from JetPack: use a venv with --system-site-packages; else pip install tensorrt",
    "tensorrt-rtx": "pip install tensorrt-rtx",
}
RELEASES = (10, 11)
DLA_COMPILER = "libnvdla_compiler.so"
"""A Jetson's TensorRT is linked with it; a container gets the host's, where the host has one."""
DLA_REMEDY = (
    "the container's host has none to lend: JetPack 6: `sudo apt-get install nvidia-l4t-dla-compiler` on the host; "
    "JetPack 7.2 and later: use the host's TensorRT, or an image made for that JetPack"
)


def load_binding(name: str) -> Any:
    """The Python module of ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        EngineUnavailable: not installed, does not load, or a release this builder was not made for.
    """
    found = next((module for module in MODULES[name] if importlib.util.find_spec(module)), None)
    if found is None:
        raise EngineUnavailable(f"{MODULES[name][0]} is not installed ({INSTALL[name]})")
    try:
        trt = importlib.import_module(found)
    except (ImportError, OSError, RuntimeError) as error:
        reason = one_line(error, 120)
        remedy = DLA_REMEDY if DLA_COMPILER in reason else INSTALL[name]
        raise EngineUnavailable(f"{found} does not load ({reason}); {remedy}") from None
    if not is_rtx(trt) and release(trt) not in RELEASES:
        valid = ", ".join(f"{number}.x" for number in RELEASES)
        raise EngineUnavailable(
            f"TensorRT {trt.__version__} is not known here; valid: {valid} (a Jetson has one from JetPack 6.1 on); "
            "use ort-cuda or ort-cpu"
        )
    return trt


def is_rtx(trt: Any) -> bool:
    """Whether this is TensorRT-RTX; its releases count apart (1.x) and have the interface of TensorRT 11."""
    return str(trt.__name__).startswith("tensorrt_rtx")


def release(trt: Any) -> int:
    """The first number of the version."""
    return int(str(trt.__version__).split(".")[0])


def label(trt: Any) -> str:
    """ "TensorRT 10.3.0", for people."""
    return f"{'TensorRT-RTX' if is_rtx(trt) else 'TensorRT'} {trt.__version__}"


def make_logger(trt: Any) -> Any:
    """A logger that prints nothing and keeps what explains a None: ``errors``, a list of lines."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Log()


def require(trt: Any, log: Any, what: str, answer: Any) -> Any:
    """``answer``, unless it is None or False.

    Raises:
        EngineUnavailable: with the last thing the library said.
    """
    if answer is None or answer is False:
        said = log.errors[-1][:300] if log.errors else "it gave no reason"
        raise EngineUnavailable(f"{label(trt)} could not {what}: {said}; free GPU memory, or use engine ort-cpu")
    return answer


def dtype_name(trt: Any, dtype: Any) -> str:
    """TensorRT's type as a numpy name ("float32"), or its own name where there is none here."""
    names = {trt.float32: "float32", trt.float16: "float16", trt.int32: "int32", trt.int8: "int8"}
    return names.get(dtype, str(dtype))
