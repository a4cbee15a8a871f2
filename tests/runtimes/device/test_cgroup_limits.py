"""A control group's CPU quota and memory limit: read in v1 and v2 from the own group to the top, and followed by the
default thread counts."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from device_trees import V1_NO_LIMIT, V1_NO_QUOTA, bare_container, cgroup_v1, cgroup_v2, put
from heads import default_head

from collafuse_benchmarks.pages.sections import flatten
from collafuse_runtimes.device import cpus
from collafuse_runtimes.device.cgroups import NO_FILE, NO_LIMIT, cpu_quota, read_limits
from collafuse_runtimes.device.cpus import threads_by_quota, usable_cpus
from collafuse_runtimes.device.state import read_device_state
from collafuse_runtimes.engines import EngineOptions, open_engine

SYSTEM = Path("/sys/fs/cgroup")


def v1(quota: int, period: int = 100000) -> dict[str, object]:
    return {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": period}


def below(folder: str, files: dict[str, object]) -> dict[str, object]:
    return {f"{folder}/{name}": text for name, text in files.items()}


QUOTAS: dict[str, tuple[dict[str, object], float | None]] = {
    "v2, the own group": (cgroup_v2("/a/b", {"a": {"cpu.max": "max 100000"}, "a/b": {"cpu.max": "50000 100000"}}), 0.5),
    "v2, a group above it": (cgroup_v2("/a/b", {"a": {"cpu.max": "150000 100000"}, "a/b": {"cpu.max": "max 1"}}), 1.5),
    "v2, the least of both": (cgroup_v2("/a/b", {"a": {"cpu.max": "30000 20000"}, "a/b": {"cpu.max": "9 2"}}), 1.5),
    "v2, none": (cgroup_v2("/a", {"a": {"cpu.max": "max 100000"}}), None),
    "v2, controller not enabled": (cgroup_v2("/a", {"a": {}}), None),
    "v2, the container's own namespace": (cgroup_v2("/", {"": {"cpu.max": "25000 100000"}}), 0.25),
    "v2, the mount shows the own group alone": (
        cgroup_v2("/docker/1f", {"": {"cpu.max": "20000 10000"}}, mounted="/docker/1f"), 2.0,
    ),
    "v2, a group outside the namespace": (cgroup_v2("/../../x", {"": {"cpu.max": "70000 100000"}}), 0.7),
    "v1, the own group": (cgroup_v1("/docker/1f", {**V1_NO_QUOTA, **below("docker/1f", v1(50000))}, {}), 0.5),
    "v1, a group above it": (
        cgroup_v1("/a/b", {**V1_NO_QUOTA, **below("a", v1(300000)), **below("a/b", v1(-1))}, {}), 3.0,
    ),
    "v1, the mount shows the own group alone": (cgroup_v1("/docker/1f", v1(10000, 40000), {}, "/docker/1f"), 0.25),
    "v1, none": (cgroup_v1("/", V1_NO_QUOTA, {}), None),
    "v1, not readable": (cgroup_v1("/", {"cpu.cfs_quota_us": "??"}, {}), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", QUOTAS)
def test_the_quota_in_force_is_the_least_up_to_the_top(kind: str, tmp_path: Path) -> None:
    files, quota = QUOTAS[kind]
    limits = read_limits(put(tmp_path, files))
    assert limits.cpu_quota == cpu_quota(tmp_path) == quota
    expected = None if quota is not None else NO_FILE if kind == "v1, not readable" else NO_LIMIT
    assert limits.reasons.get("cpu_quota") == expected


def test_memory_of_v2(tmp_path: Path) -> None:
    own = {"memory.max": 700000000, "memory.high": "max", "memory.current": 123456789}
    put(tmp_path, cgroup_v2("/a/b", {"a": {"memory.max": 512000000, "memory.high": 300000000}, "a/b": own}))
    limits = read_limits(tmp_path)
    assert (limits.memory_limit_mb, limits.memory_high_mb, limits.memory_used_mb) == (512.0, 300.0, 123.5)
    assert limits.reasons == {"cpu_quota": NO_LIMIT}


def test_memory_of_v1(tmp_path: Path) -> None:
    own = {"memory.limit_in_bytes": 268435456, "memory.usage_in_bytes": 1000000}
    put(tmp_path, cgroup_v1("/a", V1_NO_QUOTA, {"memory.limit_in_bytes": V1_NO_LIMIT, **below("a", own)}))
    limits = read_limits(tmp_path)
    assert (limits.memory_limit_mb, limits.memory_high_mb, limits.memory_used_mb) == (268.4, None, 1.0)
    assert limits.reasons == {"cpu_quota": NO_LIMIT, "memory_high_mb": "cgroup v1 has no such limit"}


@pytest.mark.parametrize(
    ("allowed", "quota", "cpus_worth", "threads"),
    [
        (4, "50000 100000", 1, 1),
        (4, "100 100000", 1, 1),
        (4, "200000 100000", 2, 2),
        (4, "210000 100000", 3, 3),
        (4, "310000 100000", 4, None),
        (4, "900000 100000", 4, None),
        (4, "max 100000", 4, None),
        (1, "50000 100000", 1, None),
    ],
)
def test_threads_follow_a_quota_below_the_affinity_and_nothing_else(
    allowed: int, quota: str, cpus_worth: int, threads: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    put(tmp_path, cgroup_v2("/", {"": {"cpu.max": quota}}))
    assert (usable_cpus(tmp_path), threads_by_quota(tmp_path)) == (cpus_worth, threads)
    assert (usable_cpus(bare_container(tmp_path / "bare")), threads_by_quota(tmp_path / "bare")) == (allowed, None)


@pytest.mark.parametrize(("given", "used"), [(None, 3), (2, 2)])
def test_engines_use_the_quotas_threads_unless_told(
    given: int | None, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cpus, "cpu_quota", lambda _: 2.5)
    head = default_head()
    with open_engine(head, "ort-cpu", EngineOptions(threads=given)) as engine:
        session: Any = vars(engine)["_session"]
        assert session.get_session_options().intra_op_num_threads == used


def test_a_page_says_why_a_limit_is_missing(tmp_path: Path) -> None:
    state = read_device_state(
        put(tmp_path, cgroup_v2("/", {"": {"cpu.max": "50000 100000", "memory.current": 7000000}}))
    )
    known, unknown = flatten({"cgroup_limits": state.to_dict()["cgroup_limits"]})
    assert dict(known) == {
        "cgroup limits cpu quota": "0.5",
        "cgroup limits memory limit mb": NO_LIMIT,
        "cgroup limits memory high mb": NO_LIMIT,
        "cgroup limits memory used mb": "7",
    }
    assert unknown == []


@pytest.fixture
def half_a_cpu() -> Iterator[Path]:
    """A real control group of half a CPU; the test moves a child into it."""
    name = f"collafuse-{uuid.uuid4().hex[:8]}"
    folder, files = SYSTEM / name, {"cpu.max": "50000 100000"}
    if (SYSTEM / "cpu" / "cpu.cfs_quota_us").exists():
        folder, files = SYSTEM / "cpu" / name, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        for file, text in files.items():
            if not (folder / file).exists():
                pytest.skip("this system's control groups have no CPU controller")
            (folder / file).write_text(text)
        yield folder
    finally:
        folder.rmdir()


def test_a_real_quota_is_seen_by_a_process_under_it(half_a_cpu: Path) -> None:
    code = (
        "import json, os, pathlib, sys; pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()));"
        "from collafuse_runtimes.device.cpus import usable_cpus;"
        "from collafuse_runtimes.device.cgroups import read_limits;"
        "print(json.dumps([read_limits().cpu_quota, usable_cpus()]))"
    )
    run = subprocess.run([sys.executable, "-c", code, half_a_cpu], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [0.5, 1]
