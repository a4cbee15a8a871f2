"""What a fake TensorRT may be asked for: the names that a release's own binding has (trt_binding_names.txt)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from fake_tensorrt import FakeTensorrt

TABLE = Path(__file__).with_name("trt_binding_names.txt")


def binding_names() -> dict[str, set[str]]:
    """By release ("10.3", "rtx-1.7"): its binding's classes and their attributes."""
    first, *lines = TABLE.read_text().splitlines()
    names: dict[str, set[str]] = {release: set() for release in first.split()[1:]}
    for line in lines:
        name, *releases = line.split()
        for release in releases:
            names[release].add(name)
    return names


NAMES = binding_names()


class Enumeration:
    """An enumeration of one release: the names it has, numbered in some order; others are missing."""

    def __init__(self, release: str, name: str) -> None:
        members = sorted(n.split(".")[1] for n in NAMES[release] if n.startswith(f"{name}."))
        self.__dict__.update({member: number for number, member in enumerate(members)})


class Limited:
    """An object whose public attributes are those that the class of its name has in the release."""

    kind: ClassVar[str]

    def __init__(self, trt: "FakeTensorrt") -> None:
        self._trt = trt

    def _check(self, name: str) -> None:
        if not name.startswith("_") and name != "kind":
            assert f"{self.kind}.{name}" in NAMES[self._trt.release], f"{self._trt.release} has no {self.kind}.{name}"

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name != "kind":
            self._check(name)
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            self._check(name)
        super().__setattr__(name, value)
