"""Power monitors on a board (ina3221, ina238) and which of their rails make up the total of which Jetson."""

import re
from dataclasses import dataclass
from pathlib import Path

from collafuse_benchmarks.energy.sensors.base import Sensor, SensorInfo, read_number, read_word
from collafuse_runtimes.device.machine import read_machine
from collafuse_runtimes.errors import SensorLost

NAME = "ina"
CHIPS = ("ina3221", "ina238")
_CLASS = Path("sys/class/hwmon")
_MICRO = 1e-6


@dataclass(frozen=True)
class Rail:
    """One channel of a power monitor.

    Attributes:
        chip: name of its driver.
        address: on the I2C bus; None where sysfs does not tell.
        label: of the rail; None where the device tree gives none.
        folder: .../hwmonN.
        channel: 1 to 3.
    """

    chip: str
    address: int | None
    label: str | None
    folder: Path
    channel: int

    def read_watts(self) -> float:
        """Power now: the chip's own (uW), or mV times mA.

        Raises:
            OSError, SensorLost: as ``read_number``.
        """
        if self.chip == "ina238":
            return read_number(self.folder / "power1_input") * _MICRO
        millivolts = read_number(self.folder / f"in{self.channel}_input")
        return millivolts * read_number(self.folder / f"curr{self.channel}_input") * _MICRO

    @property
    def enable_file(self) -> Path:
        """Holds 0 where the channel is switched off; ina3221 only."""
        return self.folder / f"in{self.channel}_enable"

    def __str__(self) -> str:
        where = "address unknown" if self.address is None else f"0x{self.address:02x}"
        return f"{self.label or f'channel {self.channel} without a label'} ({self.chip} {where})"


@dataclass(frozen=True)
class Board:
    """A board whose total is documented.

    Attributes:
        model: pattern in the device tree's model.
        chip, address: of the monitor; address None: only one of this kind is on the board.
        labels: rails whose sum is the total.
        unlabelled: whether the chip's driver gives no labels, so that the rail is known by its chip alone.
        scope: of the total, as in ``SensorInfo``.
        note: what the total holds and does not.
    """

    model: str
    chip: str
    address: int | None
    labels: tuple[str, ...]
    unlabelled: bool
    scope: str
    note: str


BOARDS = (
    Board(
        model=r"\b(Orin Nano|Orin NX|Xavier NX)\b",
        chip="ina3221",
        address=0x40,
        labels=("VDD_IN",),
        unlabelled=False,
        scope="module",
        note="input of the module, the other rails are inside it; carrier board not included",
    ),
    Board(
        model=r"\bAGX Orin\b",
        chip="ina3221",
        address=0x40,
        labels=("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        unlabelled=False,
        scope="module",
        note="sum of the module's three inputs; carrier board not included",
    ),
    Board(
        model=r"\bAGX Thor\b",
        chip="ina238",
        address=None,
        labels=("VIN",),
        unlabelled=True,
        scope="board",
        note="input of the whole system; the driver gives no reading below zero",
    ),
)


class RailSensor:
    """The total of a board: the sum of some rails, in watts."""

    def __init__(self, rails: tuple[Rail, ...], board: Board) -> None:
        self._rails = rails
        self.info = SensorInfo(
            NAME,
            "power",
            board.scope,
            f"{' + '.join(str(rail) for rail in rails)}: {board.note}",
            0.05 if len(rails) == 1 else 0.1,
        )

    def read(self) -> float:
        """Watts, all rails one after another."""
        return sum(rail.read_watts() for rail in self._rails)

    def close(self) -> None:
        """Nothing is held."""


def find_ina(root: Path) -> Sensor | str:
    """The board's total, or one line why there is none and what to do.

    Args:
        root: where /sys and /proc are.
    """
    rails = find_rails(root)
    if not rails:
        return (
            f"no ina3221 or ina238 power monitor under {root / _CLASS}: only Jetson boards have one; "
            "in a container make /sys visible, elsewhere use a wall meter"
        )
    model = read_machine(root).board
    found = "rails found: " + ", ".join(str(rail) for rail in rails)
    board = next((board for board in BOARDS if re.search(board.model, model or "")), None)
    if board is None:
        what = (
            "the board does not tell its model" if model is None else f"the total of board {model!r} is not documented"
        )
        return f"{what}; {found}; no sum is guessed: use a wall meter"
    total = []
    for label in board.labels:
        candidates = [rail for rail in rails if _is_rail(rail, label, board)]
        if len(candidates) != 1:
            how_many = "no" if not candidates else f"{len(candidates)} rails"
            return f"{how_many} {label} of {_place(board)} on board {model!r}; {found}; use a wall meter"
        total.append(candidates[0])
    return _why_unreadable(total) or RailSensor(tuple(total), board)


def find_rails(root: Path) -> tuple[Rail, ...]:
    """All channels of all monitors, also those that are switched off; in4 to in7 of an ina3221 are no rails.

    Args:
        root: where /sys is.
    """
    rails = []
    for folder in sorted((root / _CLASS).glob("hwmon*")):
        chip = read_word(folder / "name")
        if chip == "ina3221":
            for channel in (1, 2, 3):
                if (folder / f"in{channel}_input").exists():
                    label = read_word(folder / f"in{channel}_label")
                    rails.append(Rail(chip, _address(folder), label, folder, channel))
        elif chip == "ina238" and (folder / "power1_input").exists():
            rails.append(Rail(chip, _address(folder), read_word(folder / "label"), folder, 1))
    return tuple(rails)


def _address(folder: Path) -> int | None:
    """From the I2C device (device -> .../1-0040) or from the device tree's node (of_node -> .../ina3221@40)."""
    for link, pattern in (
        (folder / "device", r"\d+-([0-9a-f]{4})"),
        (folder / "of_node", r".+@([0-9a-f]+)"),
        (folder / "device" / "of_node", r".+@([0-9a-f]+)"),
    ):
        found = re.fullmatch(pattern, link.resolve().name)
        if found:
            return int(found[1], 16)
    return None


def _is_rail(rail: Rail, label: str, board: Board) -> bool:
    if rail.chip != board.chip or board.address not in (None, rail.address):
        return False
    return rail.label == label or (rail.label is None and board.unlabelled)


def _place(board: Board) -> str:
    return board.chip if board.address is None else f"{board.chip} at 0x{board.address:02x}"


def _why_unreadable(rails: list[Rail]) -> str | None:
    for rail in rails:
        if read_word(rail.enable_file) == "0":
            return f"{rail} is switched off: `echo 1 | sudo tee {rail.enable_file}`"
        try:
            rail.read_watts()
        except (OSError, SensorLost) as error:
            return f"{rail} cannot be read ({error}): switch its channel on or use a wall meter"
    return None
