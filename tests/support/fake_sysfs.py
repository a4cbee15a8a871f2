"""Trees of /sys and /proc as kernel sources and device trees describe them, with ordinary files for the values."""

import os
from collections.abc import Sequence
from pathlib import Path

UNREADABLE = "/proc/self/mem"
"""Reading its first bytes gives EIO: a channel whose read fails."""

Channel = tuple[str | None, int, int] | None
"""(label, mV, mA) of an ina3221's channel; None: not connected."""


def put(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def board(root: Path, model: str) -> None:
    path = root / "proc" / "device-tree" / "model"
    path.parent.mkdir(parents=True)
    path.write_text(f"{model}\0")


def hwmon(
    root: Path, number: int, name: str, address: int, *, bus: int = 1, links: Sequence[str] = ("device",)
) -> Path:
    """One hwmon device behind its links, as sysfs shows it: class folder -> device of the I2C client.

    Args:
        links: "device" as the hwmon core makes it, "of_node" to the device tree's node.
    """
    real = root / f"sys/devices/platform/bus@0/c240000.i2c/i2c-{bus}/{bus}-{address:04x}/hwmon/hwmon{number}"
    put(real / "name", name)
    if "device" in links:
        (real / "device").symlink_to(f"../../../{bus}-{address:04x}")
    if "of_node" in links:
        (real / "of_node").symlink_to(f"../../../../firmware/devicetree/base/i2c@c240000/power-sensor@{address:x}")
    folder = root / "sys" / "class" / "hwmon"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"hwmon{number}").symlink_to(os.path.relpath(real, folder))
    return folder / f"hwmon{number}"


def ina3221(
    root: Path, number: int, address: int, channels: Sequence[Channel], *, links: Sequence[str] = ("device",)
) -> Path:
    """With the shunt voltages in4 to in7 and the summed current curr4, which are no rails."""
    folder = hwmon(root, number, "ina3221", address, links=links)
    for k, channel in enumerate(channels, 1):
        label, millivolts, milliamperes = channel or (None, 0, 0)
        if label is not None:
            put(folder / f"in{k}_label", label)
        for name, value in (("in", millivolts), ("curr", milliamperes)):
            if channel is None:
                (folder / f"{name}{k}_input").symlink_to(UNREADABLE)
            else:
                put(folder / f"{name}{k}_input", value)
        put(folder / f"in{k}_enable", int(channel is not None))
        put(folder / f"in{k + 3}_input", 1200)
    put(folder / "in7_input", 3600)
    put(folder / "in7_label", "sum of shunt voltages")
    put(folder / "curr4_input", 99999)
    return folder


def ina238(root: Path, number: int, microwatts: int, *, address: int = 0x44, label: str | None = "VIN") -> Path:
    folder = hwmon(root, number, "ina238", address, bus=2)
    for name, value in (("in0_input", 2), ("in1_input", 20144), ("curr1_input", 980), ("power1_input", microwatts)):
        put(folder / name, value)
    if label is not None:
        put(folder / "label", label)
    return folder


def orin_nano(root: Path, model: str = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super") -> Path:
    """tegra234-p3767: one ina3221."""
    board(root, model)
    put(root / "sys/class/hwmon/hwmon0/name", "pwmfan")
    return ina3221(root, 1, 0x40, [("VDD_IN", 4960, 1008), ("VDD_CPU_GPU_CV", 4952, 200), ("VDD_SOC", 4952, 304)])


def agx_orin(root: Path, *, links: Sequence[str] = ("device",)) -> tuple[Path, Path]:
    """tegra234-p3701: ina3221 at 0x40 and at 0x41, the second with one channel connected."""
    board(root, "NVIDIA Jetson AGX Orin Developer Kit")
    rails = [("VDD_GPU_SOC", 14904, 215), ("VDD_CPU_CV", 14904, 66), ("VIN_SYS_5V0", 4968, 953)]
    second = ina3221(root, 0, 0x41, [None, ("VDDQ_VDD2_1V8AO", 4968, 80), None], links=links)
    return ina3221(root, 3, 0x40, rails, links=links), second


def agx_thor(root: Path, *, label: str | None = "VIN") -> Path:
    """tegra264-p3834 on the developer kit: ina3221 on the module, ina238 at the input."""
    board(root, "NVIDIA Jetson AGX Thor Developer Kit")
    ina3221(root, 4, 0x40, [("VDD_GPU", 19744, -20), ("VDD_CPU_SOC_MSS", 19744, 298), ("VIN_SYS_5V0", 4968, 1134)])
    return ina238(root, 5, 19780000, label=label)


def rapl(root: Path, zones: dict[str, tuple[str, int, int]]) -> Path:
    """powercap: {folder: (name, energy_uj, max_energy_range_uj)}; folders like "intel-rapl:0" or "intel-rapl:0:1"."""
    folder = root / "sys" / "class" / "powercap"
    put(folder / "intel-rapl" / "enabled", 1)
    for zone, (name, energy, most) in zones.items():
        put(folder / zone / "name", name)
        put(folder / zone / "energy_uj", energy)
        put(folder / zone / "max_energy_range_uj", most)
    return folder
