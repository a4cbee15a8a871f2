"""The device state: read where the kernel and JetPack keep it, unknown where it is missing, and what a run changed."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from device_trees import (
    agx_thor,
    bare_container,
    cpu_policy,
    devfreq,
    orin_nano,
    overcurrent,
    put,
    thermal_zones,
    x86_box,
)
from places import ROOT

from collafuse_runtimes.device import state as device_state
from collafuse_runtimes.device.cgroups import NO_LIMIT, CgroupLimits
from collafuse_runtimes.device.state import Clock, DeviceState, changes, describe_state, read_device_state
from collafuse_runtimes.device.versions import PACKAGES, git_commit, installed_packages
from collafuse_runtimes.engines import ENGINES

UNSEEN = {
    "cpu_quota": "no control group for cpu is to be seen here",
    **dict.fromkeys(
        ("memory_limit_mb", "memory_high_mb", "memory_used_mb"), "no control group for memory is to be seen here"
    ),
}
NOTHING_SEEN = CgroupLimits(None, None, None, None, UNSEEN)


def mine(state: DeviceState) -> dict[str, Any]:
    """The state without the machine and what is this process's own."""
    fields = vars(state).copy()
    for name in ("machine", "packages", "git_commit", "cpus_allowed"):
        del fields[name]
    return fields


def test_an_orin_nano_on_jetpack_6(tmp_path: Path) -> None:
    state = read_device_state(orin_nano(tmp_path))
    assert state.machine.l4t == "R36.4.3" and state.machine.board is not None and "Orin Nano" in state.machine.board
    assert mine(state) == {
        "power_mode": "MAXN_SUPER (2)",
        "jetpack": "6.2",
        "cpu": "Arm Cortex-A78AE",
        "cpus_online": 6,
        "cgroup_limits": CgroupLimits(
            None, None, None, 73.0, dict.fromkeys(("cpu_quota", "memory_limit_mb", "memory_high_mb"), NO_LIMIT)
        ),
        "cpu_clocks": (
            Clock("policy0", "schedutil", 729.6, 1728.0, 1190.4),
            Clock("policy4", "schedutil", 729.6, 1728.0, 1728.0),
        ),
        "gpu_clocks": (Clock("17000000.gpu", "nvhost_podgov", 306.0, 1020.0, 306.0),),
        "temperatures_c": {"cpu-thermal": 48.25, "gpu-thermal": 47.5, "soc0-thermal": 46.125, "tj-thermal": 48.25},
        "throttle_counts": {
            "soctherm_oc/oc1_event_cnt": 0, "soctherm_oc/oc2_event_cnt": 0, "soctherm_oc/oc3_event_cnt": 5,
        },
        "memory_total_mb": 7990.1,
        "memory_available_mb": 5242.9,
        "load_average": (0.52, 0.58, 0.59),
        "in_container": False,
    }  # fmt: skip


def test_an_agx_thor_on_jetpack_7(tmp_path: Path) -> None:
    state = read_device_state(agx_thor(tmp_path))
    assert (state.machine.l4t, state.machine.gpus) == ("R38.4.0", ("NVIDIA Thor",))
    assert (state.power_mode, state.jetpack, state.cpu, state.cpus_online) == (
        "MAXN (0)",
        "7.1",
        "Arm Neoverse-V3AE",
        14,
    )
    assert [clock.name for clock in state.cpu_clocks or ()] == ["policy0", "policy2", "policy12"]
    assert state.gpu_clocks == (
        Clock("gpu-gpc-0", "nvhost_podgov", 315.0, 1575.0, 315.0),
        Clock("gpu-nvd-0", "nvhost_podgov", 315.0, 1692.0, 315.0),
    )
    zones = {"tj-thermal": 55.125, "soc012-thermal": 55.125, "cpu-thermal": 53.718, "soc345-thermal": 53.718}
    assert state.temperatures_c == zones, "the GPU's zone is there, and refuses to be read"
    assert (state.throttle_counts or {})["soctherm_oc/oc3_event_cnt"] == 179


def test_an_intel_workstation(tmp_path: Path) -> None:
    state = read_device_state(x86_box(tmp_path))
    assert (state.machine.gpus, state.machine.driver) == (("NVIDIA RTX A4000",), "550.54.15")
    assert mine(state) == {
        "power_mode": None,
        "jetpack": None,
        "cpu": "Intel(R) Core(TM) i5-6500 CPU @ 3.20GHz",
        "cpus_online": 3,
        "cgroup_limits": CgroupLimits(
            None,
            None,
            None,
            8000.0,
            {"cpu_quota": NO_LIMIT, "memory_limit_mb": NO_LIMIT, "memory_high_mb": "cgroup v1 has no such limit"},
        ),
        "cpu_clocks": (
            Clock("policy0", "powersave", 800.0, 3600.0, 800.066),
            Clock("policy1", "powersave", 800.0, 3600.0, 3400.01),
            Clock("policy3", "performance", 3600.0, 3600.0, 3600.0),
        ),
        "gpu_clocks": None,
        "temperatures_c": {"acpitz": 27.8, "acpitz thermal_zone1": 29.8, "x86_pkg_temp": 41.0},
        "throttle_counts": {"cpu/core_throttle_count": 60, "cpu/package_throttle_count": 28},
        "memory_total_mb": 16694.7,
        "memory_available_mb": 12288.0,
        "load_average": (1.25, 0.75, 0.5),
        "in_container": False,
    }


def test_versions_of_all_that_engines_need_are_noted() -> None:
    modules = {module for entry in ENGINES.values() for needs in entry.needs for module in needs.split("|")}
    assert {module.replace(".", "-").replace("_", "-") for module in modules} <= set(PACKAGES)


def test_a_container_that_hides_everything(tmp_path: Path) -> None:
    state = read_device_state(bare_container(tmp_path))
    known = {name: value for name, value in mine(state).items() if value is not None}
    assert known == {"in_container": True, "cgroup_limits": NOTHING_SEEN}
    assert state.cpus_allowed == tuple(sorted(os.sched_getaffinity(0)))
    assert (state.packages, state.git_commit) == (installed_packages(), git_commit())
    assert describe_state(state)["unknown"] == (
        "board, Jetson Linux, JetPack, power mode, CPU model, CPUs online, CPU quota, CPU clocks, GPU, NVIDIA driver, "
        "GPU clocks, temperatures, throttle counters, memory, available memory, memory limit, load"
    )


def test_nothing_at_all_is_unknown_not_an_error(tmp_path: Path) -> None:
    found = mine(read_device_state(tmp_path))
    assert found.pop("cgroup_limits") == NOTHING_SEEN
    assert set(found.values()) == {None}
    assert "whether in a container" in describe_state(read_device_state(tmp_path))["unknown"]


def test_jetpack_is_the_installed_packages_or_the_documented_one_of_the_release(tmp_path: Path) -> None:
    removed = orin_nano(tmp_path / "removed", jetpack="deinstall ok config-files")
    put(removed, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 1"})
    assert read_device_state(removed).jetpack == "6.2.1"
    put(removed, {"etc/nv_tegra_release": "# R40 (release), REVISION: 9.9, GCID: 1"})
    assert read_device_state(removed).jetpack is None


def test_a_power_mode_without_a_name_keeps_its_number(tmp_path: Path) -> None:
    put(orin_nano(tmp_path), {"var/lib/nvpmodel/status": "pmode:0011"})
    assert read_device_state(tmp_path).power_mode == "mode 11"


def test_an_arm_core_nobody_named_is_told_by_its_numbers(tmp_path: Path) -> None:
    put(tmp_path, {"proc/cpuinfo": "CPU implementer\t: 0x41\nCPU part\t: 0xd0b"})
    assert read_device_state(tmp_path).cpu == "Arm core, implementer 0x41, part 0xd0b"


def test_lines_for_people(tmp_path: Path) -> None:
    shown = describe_state(read_device_state(orin_nano(tmp_path)))
    board = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert shown["board"] == f"{board}; Jetson Linux R36.4.3; JetPack 6.2; power mode MAXN_SUPER (2)"
    assert shown["CPU"].startswith("Arm Cortex-A78AE; 6 online; ")
    assert shown["CPU"].endswith(" for this process; no quota; schedutil 730 to 1728 MHz, now 1190 to 1728")
    assert shown["GPU"].endswith("NVIDIA driver 540.4.0; 17000000.gpu nvhost_podgov 306 to 1020 MHz, now 306")
    assert shown["heat"] == "cpu-thermal 48.2 C, gpu-thermal 47.5 C, soc0-thermal 46.1 C, tj-thermal 48.2 C"
    assert shown["memory"] == "7990 MB; 5243 MB available; no limit; load 0.52 0.58 0.59"
    assert "unknown" not in shown or shown["unknown"] == "git commit"


def test_changes_of_a_run_that_was_throttled(tmp_path: Path) -> None:
    before = read_device_state(orin_nano(tmp_path))
    put(
        tmp_path,
        {
            "var/lib/nvpmodel/status": "pmode:0000",
            "sys/devices/system/cpu/online": "0-3",
            "sys/fs/cgroup/user.slice/cpu.max": "250000 100000",
            "sys/fs/cgroup/user.slice/bench.scope/memory.max": 512000000,
            "sys/fs/cgroup/user.slice/memory.high": 400000000,
            **cpu_policy("policy0", "performance", 729600, 729600, 729600),
            **devfreq("17000000.gpu", "nvhost_podgov", 306000000, 1020000000, 612000000),
            **thermal_zones({"cpu-thermal": 97500, "gpu-thermal": 95000}),
            **overcurrent("hwmon3", 0, 1, 12),
        },
    )
    assert changes(before, read_device_state(tmp_path)) == [
        "power mode: MAXN_SUPER (2) -> 15W (0)",
        "CPUs online: 6 -> 4",
        "CPU quota: no quota -> quota of 2.5 CPUs",
        "memory limit: no limit -> limited to 512 MB, slowed down beyond 400 MB",
        "CPU clocks: schedutil 730 to 1728 MHz, now 1190 to 1728 -> performance 730 and schedutil 730 to 1728 "
        "MHz, now 730 to 1728",
        "GPU clock 17000000.gpu: nvhost_podgov 306 to 1020 MHz, now 306 -> nvhost_podgov 306 to 1020 MHz, now 612",
        "throttled: soctherm_oc/oc2_event_cnt 0 -> 1",
        "throttled: soctherm_oc/oc3_event_cnt 5 -> 12",
        "temperatures: cpu-thermal 48.2 -> 97.5 C, gpu-thermal 47.5 -> 95.0 C, soc0-thermal 46.1 -> 46.1 C, "
        "tj-thermal 48.2 -> 48.2 C",
    ]


def test_what_stays_or_is_unknown_both_times_is_no_change(tmp_path: Path) -> None:
    orin, bare = read_device_state(orin_nano(tmp_path / "orin")), read_device_state(bare_container(tmp_path / "bare"))
    heat = (
        "cpu-thermal 48.2 -> 48.2 C, gpu-thermal 47.5 -> 47.5 C, soc0-thermal 46.1 -> 46.1 C, tj-thermal 48.2 -> 48.2 C"
    )
    assert changes(orin, orin) == [f"temperatures: {heat}"]
    assert changes(bare, bare) == []
    assert changes(orin, replace(orin, power_mode=None, temperatures_c=None)) == [
        "power mode: MAXN_SUPER (2) -> unknown"
    ]


def test_counters_that_fell_were_reset_not_throttled(tmp_path: Path) -> None:
    state = read_device_state(x86_box(tmp_path))
    fewer = replace(state, throttle_counts={"cpu/core_throttle_count": 0}, temperatures_c=None)
    assert changes(state, fewer) == []
    assert changes(fewer, state) == ["throttled: cpu/core_throttle_count 0 -> 60"]


@pytest.mark.parametrize("make", [orin_nano, agx_thor, x86_box, bare_container])
def test_a_state_is_ready_for_json(make: Callable[[Path], Path], tmp_path: Path) -> None:
    state = read_device_state(make(tmp_path))
    read_back = json.loads(json.dumps(state.to_dict(), allow_nan=False))
    assert list(read_back) == list(DeviceState.__dataclass_fields__)
    assert read_back["machine"]["board"] == state.machine.board
    assert [Clock(**clock) for clock in read_back["cpu_clocks"] or ()] == list(state.cpu_clocks or ())


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\x00\xfe", b"-", b"9" * 5000, b"-" + b"9" * 400, b"1.2.3 4.5.6 7.8.9 1/2 3",
     b"1" * 400 + b".5 1.0 1.0 2", b"0-9999999,5-3,", b"pmode:" + b"9" * 5000, b"MemTotal: " + b"9" * 5000 + b" kB"],
)  # fmt: skip
def test_no_content_of_a_file_is_an_error(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_state, "installed_packages", dict)
    monkeypatch.setattr(device_state, "git_commit", lambda: None)
    root = orin_nano(tmp_path)
    for path in [path for path in root.rglob("*") if path.is_file()]:
        before = path.read_bytes()
        path.write_bytes(content)
        state = read_device_state(root)
        path.write_bytes(before)
        json.dumps(state.to_dict(), allow_nan=False)
        assert describe_state(state) and changes(state, state)
        assert state.cpus_online is None or 0 < state.cpus_online < 10**7


def test_the_commit_is_the_checkouts() -> None:
    found = git_commit()
    if not (ROOT / ".git").exists():
        assert found is None
    else:
        assert found is not None and len(found) == 40 and set(found) <= set("0123456789abcdef")
