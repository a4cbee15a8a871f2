"""The engines' libraries are kept from writing to their makers: switched off here, before anything imports them.

``collafuse_runtimes`` calls ``switch_off`` when it is imported, and every module that imports an engine library lies
in or above this package, so no command and no library call can come before it.

- ONNX Runtime (from 1.29 on) keeps a device id and an event queue in the user's cache and looks up its maker's host;
  it reads ORT_DISABLE_TELEMETRY once, when its module is loaded.
- OpenVINO sends an event on import and writes a client id into HOME, unless the package ``openvino_telemetry`` is out
  of reach; it then takes a stub of its own.
- The Hugging Face libraries read HF_HUB_DISABLE_TELEMETRY, and many tools DO_NOT_TRACK.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
"""Inherited by child processes; another value set by the user is replaced."""
OUT_OF_REACH = ("openvino_telemetry",)
"""Packages that an import finds missing."""
_SWITCHED = {"onnxruntime": "onnxruntime", "openvino_telemetry": "openvino"}
"""Loaded module to the library whose telemetry it is."""

_too_late: set[str] = set()


def switch_off() -> None:
    """Set the switches; remember libraries that the program had imported before, with their telemetry on."""
    if "onnxruntime" in sys.modules and os.environ.get("ORT_DISABLE_TELEMETRY") != ENVIRONMENT["ORT_DISABLE_TELEMETRY"]:
        _too_late.add("onnxruntime")
    os.environ.update(ENVIRONMENT)
    for name in OUT_OF_REACH:
        if sys.modules.get(name) is None:
            sys.modules[name] = None  # type: ignore[assignment]
        else:
            _too_late.add(_SWITCHED[name])


@contextmanager
def without_machine_id() -> Iterator[None]:
    """No call of ``uuid.uuid1``, by which onnx names temporary files: it reads the network card's address."""
    import uuid

    original = uuid.uuid1
    uuid.uuid1 = lambda node=None, clock_seq=None: uuid.uuid4()
    try:
        yield
    finally:
        uuid.uuid1 = original


def not_switched_off() -> tuple[str, ...]:
    """Libraries whose telemetry this process cannot switch off any more, because they were imported first."""
    return tuple(sorted(_too_late))


def describe_telemetry() -> str:
    """One line for people."""
    if _too_late:
        names = " and ".join(sorted(_too_late))
        return f"NOT off for {names}, imported before collafuse_runtimes; import collafuse_runtimes first"
    return "off: onnxruntime (ORT_DISABLE_TELEMETRY=1), openvino (its telemetry package is out of reach)"
