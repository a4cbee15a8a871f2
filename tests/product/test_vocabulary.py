"""One word per thing, as docs/glossary.md has it: in messages, help, docstrings and pages."""

import ast
import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from typing import Any, get_args

import pytest
from places import ROOT

from collafuse_edge.cli.app import click_command
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.engine_options import EngineOptions

ROOMS = ("runtimes", "export", "benchmarks/collafuse_benchmarks", "collafuse_edge", "examples")
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "benchmarks/peers/README.md")

FORBIDDEN = (
    (
        r"\bnoise levels? (n\b|\d|index|``plan|\{\})",
        "from noise level 19",
        "level; a noise level is SplitPlan.noise_level",
    ),
    (
        r"\b(other|same|another|continuous) noise levels?\b",
        "trained on other noise levels",
        "schedule, alpha_bar or level",
    ),
    (r"\bclient('s)?(\*\*)? share\b", "the client's share of T", "the device's share"),
    (r"\bshare of the (T )?steps\b", "c is its share of the steps", "share of the timesteps"),
    (r"\b(client|edge)[- ]sides?\b", "on the client side", "device side; site, where images are meant"),
    (r"\bclient (heads?|models?|steps?|timesteps?)\b", "a client head", "head; the device's steps"),
    (r"\b(edge|server|shared) models?\b", "the server model", "head; server, or its network"),
    (r"\btest vectors?\b", "test vectors", "golden vectors"),
    (r"\b(hand ?off|handover) (tensors?|files?|levels?)\b", "a handover file", "hand-over tensor, file, level"),
    (r"\bcut[- ]?(off|point|layer)s?\b|\bsplit[- ]points?\b", "the split point", "cut, or cut ratio"),
    (r"\bGPU devices?\b|\bdevice index\b|\bindex of the device\b", "GPU device 1", "GPU N"),
    (r"\bdevice (\{\}|\d+) (does not exist|out of range)", "device 1 does not exist", "GPU N"),
    (r"\b\d+ (and|or) more\b", "valid: 1 and more", "at least N"),
    (r"\bmust be (>=|>|<=|<)", "must be >= 1", "must be at least, above, at most, below"),
    (r"\{\} is out of range\b", "count {} is out of range", "NAME VALUE out of range: must be ..."),
    (r"\bis unknown; valid", "mode {} is unknown; valid: a", "unknown NAME VALUE; valid: ..."),
    (
        r"\bleaves no steps? to\b|\bleaves the client no\b",
        "leaves no step to it",
        "leaves the device, the server no step",
    ),
    (r"[;:] export again\b|\bor export again\b", "is damaged; export again", "export the head again"),
    (r"\bmistypes\b", "lacks or mistypes a field", "lacks or garbles"),
)
"""(what is not said, an example of it, what is said in its place), upper and lower case alike; {} is a value."""


def text_of(node: ast.AST) -> str | None:
    """A text, with what a format puts into it left out."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "{}" for part in node.values)
    return None


def texts_in(source: str) -> Iterator[str]:
    """Docstrings, messages and help of a module; a text of one word is a name."""
    tree = ast.parse(source)
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    outer = {id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
    for node in ast.walk(tree):
        text = text_of(node) if id(node) in outer or id(node) not in inner else None
        if text and " " in text.strip():
            yield " ".join(text.split())


@cache
def all_texts() -> tuple[tuple[str, str], ...]:
    modules = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    pages = sorted(path for pattern in PAGES for path in ROOT.glob(pattern))
    texts = [(path, text) for path in modules for text in texts_in(path.read_text())]
    texts += [(path, " ".join(part.split())) for path in pages for part in path.read_text().split("\n\n")]
    return tuple((path.relative_to(ROOT).as_posix(), text) for path, text in texts)


@pytest.mark.parametrize(("pattern", "example", "instead"), FORBIDDEN)
def test_one_word_per_thing_and_one_phrase_per_condition(pattern: str, example: str, instead: str) -> None:
    rule = re.compile(pattern, re.IGNORECASE)
    assert rule.search(example)
    assert [(path, hit[0]) for path, text in all_texts() for hit in rule.finditer(text)] == [], f"say: {instead}"


def test_messages_help_docstrings_and_pages_are_looked_at() -> None:
    source = 'def f(n):\n    """Two words."""\n    raise ValueError(f"level {n:.3f} of\\n    {n} \'is odd\'")\n'
    assert sorted(texts_in(source)) == ["Two words.", "level {} of {} 'is odd'"]
    texts = dict.fromkeys(path for path, _ in all_texts())
    assert {"README.md", "docs/formats.md", "runtimes/collafuse_runtimes/diffusion/plan.py"} <= set(texts)
    assert any("Index of the GPU" in text for _, text in all_texts())


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
    for child, other in getattr(command, "commands", {}).items():
        yield from leaves(other, f"{name} {child}".strip())


def test_device_is_torchs_and_gpu_is_an_index() -> None:
    kinds: dict[tuple[str, str], type] = {}
    for command, leaf in leaves(click_command()):
        declared = inspect.signature(leaf.callback).parameters
        for name in (option.name for option in leaf.params if option.name.split("_")[-1] in ("device", "gpu")):
            kind, *_ = get_args(declared[name].annotation)
            kinds[command, name] = next(iter({int, str} & {kind, *get_args(kind)}))
    assert {key for key, kind in kinds.items() if kind is str} == {
        ("handoff", "device"), ("bench split", "server_device")
    }  # fmt: skip
    of_engines = {"verify", "infer", "export", "bench latency", "bench energy", "bench split"}
    assert {command for (command, name), kind in kinds.items() if (name, kind) == ("gpu", int)} == of_engines
    assert {name for (_, name), kind in kinds.items() if kind is int} == {"gpu", "nvml_gpu"}
    assert "device" not in {field.name for field in fields(EngineOptions)}


def test_whatever_is_called_noise_level_is_that_of_the_plan() -> None:
    """Keys and arguments of that name take ``plan.noise_level``, and only the plan computes it."""
    plan = SplitPlan((1, 8, 8), 100, "cosine", "epsilon", 0.2)
    alpha_bar = plan.alpha_bar_at(plan.handover_level)
    assert plan.noise_level == pytest.approx(math.sqrt(1 - alpha_bar) / math.sqrt(alpha_bar), rel=1e-12)
    assert f"{plan.noise_level:.3f}" in plan.noise_text
    given: list[str] = []
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "noise_level":
                given.append(ast.unparse(node.value))
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                given += [ast.unparse(value) for key, value in pairs if key and text_of(key) == "noise_level"]
    assert sorted(given) == ["(plan.noise_level, '')", "plan.noise_level", "plan.noise_level", "plan.noise_level"]
