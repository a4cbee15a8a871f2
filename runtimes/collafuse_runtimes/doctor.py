"""What works on this machine, and for what does not, the reason and the remedy."""

import importlib.util
import json
import signal
import subprocess
import sys
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collafuse_runtimes.device.state import DeviceState, describe_state, read_device_state
from collafuse_runtimes.device.telemetry import describe_telemetry
from collafuse_runtimes.engines import ENGINES, EngineOptions, available_engine, open_engine, reason_not_installed
from collafuse_runtimes.engines.trt.binding import MODULES, load_binding
from collafuse_runtimes.errors import CheckFailed, EngineUnavailable
from collafuse_runtimes.files.bundle import HeadBundle, read_bundle
from collafuse_runtimes.verify import VerifyReport, verify_engine

TABLE_WIDTH = 110
PROBE_S, RUN_S = 60.0, 1800.0
"""How long an engine's libraries may take to load, and how long a run, for which an engine may have to be built."""
CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from collafuse_runtimes.doctor import answer; answer(*sys.argv[2:])"
)
"""What looks at an engine in a process of its own, with the same modules."""
NO_NETWORK = ("fake",)
"""Engines that run no head; nothing to diagnose."""


@dataclass(frozen=True)
class EngineRow:
    """One engine.

    Attributes:
        engine: its name.
        device: "gpu" or "cpu".
        works: with a bundle: it opened and its golden trajectories hold; without: its libraries are there.
        reason: one line, why not and what to do; None where it works.
        precision: of the bundle it was run with.
        max_abs: largest difference from the torch network over all steps; None where it was not run.
    """

    engine: str
    device: str
    works: bool
    reason: str | None
    precision: str | None
    max_abs: float | None


@dataclass(frozen=True)
class DoctorReport:
    """Outcome of ``examine``.

    Attributes:
        state: what the machine says about itself.
        providers: ONNX Runtime's, None where it cannot be imported.
        bundle: the folder of the bundle that was run.
        engines: one row each.
        telemetry: whether the engine libraries' telemetry is off, in words.
    """

    state: DeviceState
    providers: tuple[str, ...] | None
    bundle: str | None
    engines: tuple[EngineRow, ...]
    telemetry: str

    @property
    def passed(self) -> bool:
        """Whether at least one engine works."""
        return any(row.works for row in self.engines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the state's machine and packages once more by themselves, where programs look for them."""
        fields = asdict(self)
        state = fields.pop("state")
        return {
            "machine": state["machine"],
            "packages": state["packages"],
            **fields,
            "state": state,
            "passed": self.passed,
        }

    def require_passed(self) -> None:
        """Do nothing, or say that nothing works here.

        Raises:
            CheckFailed: no engine works.
        """
        if not self.passed:
            what = "no engine can run here" if self.bundle is None else f"no engine runs {self.bundle} as it should"
            raise CheckFailed(f"{what}; the lines above say why, and what to do for each")


def examine(bundle: HeadBundle | None = None, root: Path = Path("/")) -> DoctorReport:
    """Look at machine, packages and engines; with a bundle, run every engine that is there on its golden input.

    Args:
        root: where the machine's /proc, /sys, /etc and so on are.
    """
    names = [name for name in ENGINES if name not in NO_NETWORK]
    return DoctorReport(
        state=read_device_state(root),
        providers=_providers(),
        bundle=None if bundle is None else str(bundle.path),
        engines=tuple(look_apart(name, bundle) if _device(name) == "gpu" else row_of(name, bundle) for name in names),
        telemetry=describe_telemetry(),
    )


def _device(name: str) -> str:
    return "gpu" if "gpu" in ENGINES[name].options else "cpu"


def look_apart(name: str, bundle: HeadBundle | None = None) -> EngineRow:
    """One engine's row, made by a process of its own: it may crash, never end, or lose the GPU for all that follows."""
    reason = reason_not_installed(ENGINES[name])
    if reason is not None:
        return EngineRow(name, "gpu", False, reason, None, None)
    row = _ask(name, None, PROBE_S)
    return row if bundle is None or not row.works else _ask(name, bundle, RUN_S)


def _ask(name: str, bundle: HeadBundle | None, limit_s: float) -> EngineRow:
    command = [sys.executable, "-c", CHILD, json.dumps(sys.path), name, *([] if bundle is None else [str(bundle.path)])]
    precision = None if bundle is None else bundle.precision

    def failed(reason: str) -> EngineRow:
        return EngineRow(name, "gpu", False, f"{reason}; check the NVIDIA driver with nvidia-smi", precision, None)

    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return failed(f"its process did not end within {limit_s:g} s and was stopped")
    except OSError as error:
        return failed(f"its process cannot be started: {error.strerror}")
    if done.returncode < 0:
        return failed(f"its process was ended by {signal.Signals(-done.returncode).name}")
    try:
        return EngineRow(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, TypeError, ValueError):
        return failed(f"its process ended with code {done.returncode} and no result")


def answer(name: str, path: str | None = None) -> None:
    """Print the row of one engine as JSON, on the last line."""
    print("\n" + json.dumps(asdict(row_of(name, None if path is None else read_bundle(Path(path))))), flush=True)


def row_of(name: str, bundle: HeadBundle | None) -> EngineRow:
    """Look at one engine in this process, whatever it raises."""
    device, reason = _device(name), available_engine(name) or _reason_not_loaded(name)
    if reason is not None or bundle is None:
        return EngineRow(name, device, reason is None, reason, None, None)
    if "checkpoint" in ENGINES[name].options:
        command = f"collafuse-edge verify {bundle.path} --engine {name} --checkpoint FOLDER"
        return EngineRow(name, device, False, f"not run, it needs the head's checkpoint: `{command}`", None, None)
    report = None
    try:
        with open_engine(bundle, name, EngineOptions()) as engine:
            report = verify_engine(engine)
        report.require_passed(str(bundle.path))
    except CheckFailed as error:  # also of a build whose types are not those asked for
        worst = None if report is None else _worst(report)
        return EngineRow(name, device, False, str(error), bundle.precision, worst)
    except Exception as error:  # a driver or a library may raise anything; the other engines are still to be looked at
        text = " ".join(str(error).split()) or "no message"
        kind = "" if hasattr(error, "exit_code") else f"{type(error).__name__}: "
        return EngineRow(name, device, False, kind + text, bundle.precision, None)
    return EngineRow(name, device, True, None, bundle.precision, _worst(report))


def _reason_not_loaded(name: str) -> str | None:
    """Of TensorRT's bindings, which are looked for elsewhere and loaded here: two of them do not fit into a process."""
    if name not in MODULES:
        return None
    try:
        load_binding(name)
    except EngineUnavailable as error:
        return str(error)
    return None


def _worst(report: VerifyReport) -> float | None:
    found = [r.worst.max_abs for r in report.ranges]
    return max((value for value in found if value is not None), default=None)


def _providers() -> tuple[str, ...] | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    try:
        import onnxruntime
    except ImportError:
        return None
    return tuple(onnxruntime.get_available_providers())


def describe_doctor(report: DoctorReport) -> list[str]:
    """A report in lines for people; the first says what works."""
    facts = describe_state(report.state)
    unknown = {"unknown": facts.pop("unknown")} if "unknown" in facts else {}
    providers = {"providers": f"of ONNX Runtime: {', '.join(report.providers or ('unknown',))}"}
    named = (facts | providers | {"telemetry": report.telemetry} | unknown).items()
    lines = _hanging(f"{'works':10}", _answer(report))
    lines += [line for name, text in named for line in _hanging(f"{name:10}", text)]
    wide = max(len(row.engine) for row in report.engines)
    for row in report.engines:
        lines += _hanging(f"{row.engine:{wide}}  {row.device}  ", _verdict(row, report.bundle))
    return lines


def _answer(report: DoctorReport) -> str:
    """Which engines; where none was run, whose libraries are here."""
    works = ", ".join(row.engine for row in report.engines if row.works) or "no engine"
    which = f"{works}: {sum(row.works for row in report.engines)} of {len(report.engines)} engines"
    if report.bundle is not None:
        return f"{which} run {report.bundle} as they should"
    return f"{which}, by their libraries; give a head bundle to run them"


def _verdict(row: EngineRow, bundle: str | None) -> str:
    if row.reason is not None:
        return f"no: {row.reason}"
    if bundle is None:
        return "its libraries are here; give a head bundle to run it"
    return f"works: {row.precision}, the golden trajectories hold, max-abs {row.max_abs:.3g}"


def _hanging(head: str, text: str) -> list[str]:
    """One or more lines, all but the first indented to the end of ``head``."""
    return textwrap.wrap(
        text,
        TABLE_WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
