"""The locks hold every package that this release needs, at the constraint's version, with hashes, on every Python."""

import platform
import re
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from places import ROOT

tomllib = pytest.importorskip("tomllib")  # new in Python 3.11
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
WORKSTATION = ("constraints.lock", "constraints-cuda.lock")
DEVICE = ("runtimes/device-constraints.lock",)
LOCKS = (*WORKSTATION, *DEVICE)
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def locked(names: tuple[str, ...], python: str, machine: str) -> dict[str, str]:
    """Package to version on Linux; a package twice is an error."""
    found: dict[str, str] = {}
    where = environment(python, machine)
    for name in names:
        for entry in entries(name):
            requirement = Requirement(entry.split(" \\")[0])
            if requirement.marker is None or requirement.marker.evaluate(where):
                key = canonicalize_name(requirement.name)
                assert key not in found, f"{key} is locked twice for Python {python} on {machine}"
                (pin,) = requirement.specifier
                assert pin.operator == "=="
                found[key] = pin.version
    return found


def entries(name: str) -> list[str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return re.split(r"\n(?=\S)", "\n".join(lines))


def environment(python: str, machine: str) -> dict[str, str]:
    return {
        "python_version": python, "python_full_version": f"{python}.9", "implementation_version": f"{python}.9",
        "platform_machine": machine, "platform_system": "Linux", "sys_platform": "linux", "os_name": "posix",
        "implementation_name": "cpython", "platform_python_implementation": "CPython", "extra": "",
    }  # fmt: skip


def project() -> dict[str, list[str]]:
    """Requirements by extra; "" has those of the base install."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        stated = tomllib.load(file)["project"]
    return {"": stated["dependencies"], **stated["optional-dependencies"]}


def direct(extra: str) -> list[Requirement]:
    """Of an extra and the extras it names."""
    found = []
    for text in [*project()[""], *project()[extra]]:
        requirement = Requirement(text)
        inner = requirement.extras if requirement.name == "collafuse-edge" else ()
        found += [part for name in inner for part in direct(name)] if inner else [requirement]
    return found


def constraints(name: str, python: str, machine: str) -> dict[str, SpecifierSet]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    stated = [Requirement(line) for line in lines]
    where = environment(python, machine)
    return {canonicalize_name(r.name): r.specifier for r in stated if r.marker is None or r.marker.evaluate(where)}


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_has_hashes_and_no_place(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text and "index" not in text and "find-links" not in text
    assert len(entries(name)) > 15
    for entry in entries(name):
        first, *rest = entry.splitlines()
        assert re.match(r"[a-z0-9-]+==\S+( ; .*)? \\$", first), first
        assert rest and all(HASH.fullmatch(line.strip(" \\")) for line in rest), entry


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("locks", "limits", "extra"),
    [(WORKSTATION, "constraints.txt", "dev"), (DEVICE, "runtimes/device-constraints.txt", "")],
    ids=["workstation", "device"],
)
def test_what_the_project_names_is_locked_within_its_constraints(
    locks: tuple[str, ...], limits: str, extra: str, python: str, machine: str
) -> None:
    versions, limit = locked(locks, python, machine), constraints(limits, python, machine)
    for requirement in direct(extra):
        if requirement.marker is None or requirement.marker.evaluate(environment(python, machine)):
            assert versions[canonicalize_name(requirement.name)] in requirement.specifier
    for name, version in versions.items():
        assert version in limit.get(name, SpecifierSet()), name
    assert extra == "" or set(limit) <= set(versions)


def test_all_that_is_needed_here_directly_or_not_is_locked() -> None:
    """The installed packages' own metadata, followed from the project's extras to the end."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python not in PYTHONS or platform.system() != "Linux" or platform.machine() not in MACHINES:
        pytest.skip(f"no lock for Python {python} on {platform.system()} {platform.machine()}")
    versions = locked(WORKSTATION, python, platform.machine())
    todo, seen = [(requirement.name, "") for requirement in direct("dev")], set()
    while todo:
        name, extra = todo.pop()
        key = canonicalize_name(name)
        if (key, extra) in seen:
            continue
        seen.add((key, extra))
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of another system
        assert key in versions, f"{key} is needed and not locked; run `make lock`"
        for text in installed.requires or ():
            requirement = Requirement(text)
            here = {**environment(python, platform.machine()), "extra": extra}
            if requirement.marker is None or requirement.marker.evaluate(here):
                todo += [(requirement.name, inner) for inner in ("", *requirement.extras)]
    assert len(seen) > 60


def test_cuda_is_in_a_lock_of_its_own() -> None:
    """`make` takes torch from where the machine has its build; what PyPI's build adds is kept apart."""
    apart = {entry.split("==")[0] for entry in entries("constraints-cuda.lock")}
    rest = {entry.split("==")[0] for entry in entries("constraints.lock")}
    assert {"torch", "triton", "nvidia-cudnn-cu13"} <= apart
    assert {"nvidia-ml-py", "cuda-bindings", "sympy", "setuptools", "tensorrt-rtx-cu13-libs"} <= rest
    assert not apart & rest
