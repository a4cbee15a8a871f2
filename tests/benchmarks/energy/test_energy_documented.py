"""docs/energy.md names the boards and rails that are summed, the defaults, and every key of the record."""

import re
from dataclasses import asdict
from typing import Any

from places import ROOT
from scripted_sensor import Scripted, constant
from virtual_clock import VirtualClock

from collafuse_benchmarks.energy.integrate import MAX_HOLE_INTERVALS
from collafuse_benchmarks.energy.measurement import measure_energy
from collafuse_benchmarks.energy.sensors.hwmon import BOARDS
from collafuse_benchmarks.energy.settings import EnergySettings

TEXT = (ROOT / "docs" / "energy.md").read_text()
FLAT = " ".join(TEXT.split())


def keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in keys(inner)}
    if isinstance(value, list | tuple):
        return {key for inner in value for key in keys(inner)}
    return set()


def test_every_board_has_a_row_with_its_rails_and_scope() -> None:
    for board in BOARDS:
        (row,) = [line for line in TEXT.splitlines() if line.startswith("| `ina`") and re.search(board.model, line)]
        for word in (board.chip, *board.labels, f"| {board.scope}"):
            assert word in row
        assert board.address is None or f"at 0x{board.address:x}:" in row


def test_the_record_has_the_documented_keys() -> None:
    clock = VirtualClock()

    def work() -> int:
        clock.sleep(0.5)
        return 1

    result = measure_energy(work, [Scripted(constant(5.0), clock)], EnergySettings(trials=1), clock=clock)
    found = result.to_dict()
    part = TEXT[TEXT.index("## The record") : TEXT.index("## A wall meter")]
    documented = set(re.findall(r"`(\w+)`", part)) - {"to_dict", "null"}
    assert documented == keys({name: value for name, value in found.items() if name != "settings"}) | {"settings"}
    table = [key for row in re.findall(r"^\| (`.*?) \|", part, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)]
    assert set(table) == set(found)


def test_the_defaults_are_those_of_the_code() -> None:
    for name, value in asdict(EnergySettings()).items():
        assert re.search(rf"`{name}` \({value:g}\b", FLAT), name
    assert f"more than {MAX_HOLE_INTERVALS} reading intervals" in FLAT
