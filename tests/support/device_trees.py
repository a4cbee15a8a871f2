"""The /proc, /sys, /etc and so on of devices, as their kernels and JetPack lay them out, without what nobody reads."""

from pathlib import Path

ORIN_MODES = """\
< PM_CONFIG DEFAULT=1 >
# < POWER_MODEL ID=2 NAME=COMMENTED_OUT >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< POWER_MODEL ID=3 NAME=7W >
"""
PACKAGES = """\
Package: nvidia-jetpack-dev
Status: install ok installed
Version: 6.1+b123

Package: nvidia-jetpack
Status: {status}
Priority: standard
Version: 6.2+b77
Depends: nvidia-jetpack-runtime (= 6.2+b77)

Package: zlib1g
Status: install ok installed
Version: 1:1.2.11
"""


def put(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def refuse(root: Path, name: str) -> None:
    """A file that is there and cannot be read, as those of an engine that is switched off."""
    (root / name).mkdir(parents=True)


def cpu_policy(name: str, governor: str, *khz: int) -> dict[str, object]:
    values = dict(zip(("governor", "min_freq", "max_freq", "cur_freq"), (governor, *khz), strict=True))
    return {f"sys/devices/system/cpu/cpufreq/{name}/scaling_{key}": value for key, value in values.items()}


def devfreq(name: str, governor: str, *hz: int) -> dict[str, object]:
    values = dict(zip(("governor", "min_freq", "max_freq", "cur_freq"), (governor, *hz), strict=True))
    return {f"sys/class/devfreq/{name}/{key}": value for key, value in values.items()}


def thermal_zones(zones: dict[str, int]) -> dict[str, object]:
    return {
        f"sys/class/thermal/thermal_zone{number}/{key}": value
        for number, (name, millidegrees) in enumerate(zones.items())
        for key, value in (("type", name.rstrip("'")), ("temp", millidegrees))
    }


def overcurrent(hwmon: str, *counts: int) -> dict[str, object]:
    folder = f"sys/class/hwmon/{hwmon}"
    events = {f"{folder}/oc{n}_event_cnt": count for n, count in enumerate(counts, 1)}
    return {f"{folder}/name": "soctherm_oc", **events, f"{folder}/oc1_throt_en": 1}


def arm_cpus(count: int, part: str) -> str:
    core = f"model name\t: ARMv8 Processor rev 1 (v8l)\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
    return "\n".join(f"processor\t: {number}\n{core}" for number in range(count))


def cgroup_v2(own: str, groups: dict[str, dict[str, object]], mounted: str = "/") -> dict[str, object]:
    """One hierarchy; ``groups``: folder below the mount to its files, e.g. {"a/b": {"cpu.max": "max 100000"}}."""
    mount = f"42 32 0:39 {mounted} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
    files = {f"sys/fs/cgroup/{group}/{name}": text for group, held in groups.items() for name, text in held.items()}
    stats = {f"sys/fs/cgroup/{group}/{name}.stat": "x 1" for group in groups for name in ("cpu", "memory")}
    return {"proc/self/cgroup": f"0::{own}", "proc/self/mountinfo": mount, **stats, **files}


def cgroup_v1(own: str, cpu: dict[str, object], memory: dict[str, object], mounted: str = "/") -> dict[str, object]:
    """A hierarchy a controller, and an empty v2 one beside them; file names may have folders in front."""
    mounts = [
        f"33 31 0:29 {mounted} /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:7 - cgroup cgroup rw,cpu,cpuacct",
        f"35 31 0:32 {mounted} /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory",
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
    ]
    return {
        "proc/self/cgroup": f"4:memory:{own}\n3:cpu,cpuacct:{own}\n1:name=systemd:{own}\n0::/",
        "proc/self/mountinfo": "\n".join(mounts),
        "sys/fs/cgroup/unified/cgroup.procs": 1,
        **{f"sys/fs/cgroup/cpu,cpuacct/{name}": text for name, text in cpu.items()},
        **{f"sys/fs/cgroup/memory/{name}": text for name, text in memory.items()},
    }


V1_NO_QUOTA: dict[str, object] = {"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100000}
V1_NO_LIMIT = 9223372036854771712


def orin_nano(root: Path, jetpack: str = "install ok installed") -> Path:
    """Jetson Orin Nano Super, JetPack 6.2."""
    refuse(root, "sys/class/thermal/thermal_zone5/temp")
    (root / "run/systemd/system").mkdir(parents=True)
    return put(
        root,
        {
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release",
            "dev/nvhost-gpu": "",
            "var/lib/nvpmodel/status": "pmode:0002",
            "etc/nvpmodel.conf": ORIN_MODES,
            "var/lib/dpkg/status": PACKAGES.format(status=jetpack),
            "proc/cpuinfo": arm_cpus(6, "0xd42"),
            "sys/devices/system/cpu/online": "0-5",
            **cpu_policy("policy0", "schedutil", 729600, 1728000, 1190400),
            **cpu_policy("policy4", "schedutil", 729600, 1728000, 1728000),
            **devfreq("15340000.vic", "tegra_wmark", 115200000, 729600000, 115200000),
            **devfreq("17000000.gpu", "nvhost_podgov", 306000000, 1020000000, 306000000),
            **thermal_zones({"cpu-thermal": 48250, "gpu-thermal": 47500, "soc0-thermal": 46125, "tj-thermal": 48250}),
            "sys/class/thermal/thermal_zone5/type": "cv0-thermal",
            "sys/class/hwmon/hwmon1/name": "ina3221",
            **overcurrent("hwmon3", 0, 0, 5),
            "proc/meminfo": "MemTotal:        7802880 kB\nMemFree:  1000 kB\nMemAvailable:    5120000 kB",
            "proc/loadavg": "0.52 0.58 0.59 1/389 5126",
            **cgroup_v2(
                "/user.slice/bench.scope",
                {
                    "user.slice": {"cpu.max": "max 100000", "memory.max": "max", "memory.high": "max"},
                    "user.slice/bench.scope": {
                        "cpu.max": "max 100000",
                        "memory.max": "max",
                        "memory.current": 73000000,
                    },
                },
            ),
        },
    )


def agx_thor(root: Path) -> Path:
    """Jetson AGX Thor, JetPack 7.1, flashed without the package nvidia-jetpack; its GPU sleeps."""
    refuse(root, "sys/class/thermal/thermal_zone4/temp")
    (root / "run/systemd/system").mkdir(parents=True)
    return put(
        root,
        {
            "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
            "etc/nv_tegra_release": "# R38 (release), REVISION: 4.0, GCID: 43443517, BOARD: generic, EABI: aarch64",
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.00  Release",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA Thor",
            "var/lib/nvpmodel/status": "pmode:0000",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >",
            "var/lib/dpkg/status": "Package: zlib1g\nStatus: install ok installed\nVersion: 1:1.3",
            "proc/cpuinfo": arm_cpus(14, "0xd83"),
            "sys/devices/system/cpu/online": "0-13",
            **cpu_policy("policy0", "schedutil", 972000, 2601000, 972000),
            **cpu_policy("policy2", "schedutil", 972000, 2601000, 972000),
            **cpu_policy("policy12", "schedutil", 972000, 2601000, 972000),
            **devfreq("bwmgr", "userspace", 665600000, 4266000000, 4266000000),
            **devfreq("gpu-gpc-0", "nvhost_podgov", 315000000, 1575000000, 315000000),
            **devfreq("gpu-nvd-0", "nvhost_podgov", 315000000, 1692000000, 315000000),
            **thermal_zones(
                {"tj-thermal": 55125, "soc012-thermal": 55125, "cpu-thermal": 53718, "soc345-thermal": 53718}
            ),
            "sys/class/thermal/thermal_zone4/type": "gpu-thermal",
            **overcurrent("hwmon5", 0, 0, 179),
            "proc/meminfo": "MemTotal:       128803840 kB\nMemAvailable:   120000000 kB",
            "proc/loadavg": "0.00 0.01 0.00 1/389 5126",
        },
    )


def x86_box(root: Path) -> Path:
    """An Intel workstation with a discrete GPU, four CPUs of which one is off."""
    (root / "run/systemd/system").mkdir(parents=True)
    cpus = {f"sys/devices/system/cpu/cpu{n}/thermal_throttle": n for n in range(4)}
    return put(
        root,
        {
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA RTX A4000",
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5-6500 CPU @ 3.20GHz\n",
            "sys/devices/system/cpu/online": "0-1,3",
            **cpu_policy("policy0", "powersave", 800000, 3600000, 800066),
            **cpu_policy("policy1", "powersave", 800000, 3600000, 3400010),
            **cpu_policy("policy3", "performance", 3600000, 3600000, 3600000),
            **thermal_zones({"acpitz": 27800, "acpitz'": 29800, "pch_skylake": -274000, "x86_pkg_temp": 41000}),
            **{f"{folder}/core_throttle_count": 10 * number for folder, number in cpus.items()},
            **{f"{folder}/package_throttle_count": 7 for folder in cpus},
            "proc/meminfo": "MemTotal:       16303412 kB\nMemAvailable:   12000000 kB",
            "proc/loadavg": "1.25 0.75 0.50 2/800 1234",
            **cgroup_v1("/", V1_NO_QUOTA, {"memory.limit_in_bytes": V1_NO_LIMIT, "memory.usage_in_bytes": 8000000000}),
        },
    )


def bare_container(root: Path) -> Path:
    """A container that was given no more than it needs."""
    return put(root, {".dockerenv": ""})
