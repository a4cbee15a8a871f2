"""The rooms of the repository: who may import whom, and what the ground floor does without."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

import collafuse_edge
import collafuse_export

ROOMS = {
    "collafuse_runtimes": ROOT / "runtimes" / "collafuse_runtimes",
    "collafuse_export": ROOT / "export" / "collafuse_export",
    "collafuse_benchmarks": ROOT / "benchmarks" / "collafuse_benchmarks",
    "collafuse_edge": ROOT / "collafuse_edge",
}
ALLOWED = {
    "collafuse_runtimes": set(),
    "collafuse_export": {"collafuse_runtimes"},
    "collafuse_benchmarks": {"collafuse_runtimes"},
    "collafuse_edge": {"collafuse_runtimes", "collafuse_export", "collafuse_benchmarks"},
}
LAYERS = {
    "collafuse_runtimes": (
        {"errors"}, {"checks", "text", "extras", "networks", "diffusion", "device", "engine_options"}, {"disk"},
        {"files"}, {"engines"}, {"verify"}, {"infer", "doctor", "inspection"}, {"artefacts"},
    ),
    "collafuse_export": (
        {"calibration", "graph_passes", "golden", "step_graph"}, {"onnx_graph", "quantize", "precision", "fitting"},
        {"sensitivity"}, {"low_precision"}, {"to_bundle", "report"}, {"__init__"},
    ),
    "collafuse_benchmarks": (
        {"measure", "commands"}, {"pages"}, {"latency", "disclosure"}, {"energy"}, {"split"}, {"reports"},
    ),
    "collafuse_edge": (
        {"torch_threads", "settings", "data", "evaluation", "handoff"}, {"init", "upload"}, {"training"},
        {"importing", "artefacts", "demo", "disclosure", "api"}, {"cli"}, {"__main__"},
    ),
}  # fmt: skip
"""What lies on what within a room: a folder or file imports itself and what lies in the layers before its own."""
BASE = {"text": {"errors"}, "checks": {"errors"}, "networks": {"text", "extras"}}
"""Of one layer, and still on top of another."""
GROUND_FLOOR = {"numpy"}
"""What collafuse_runtimes may import while it is imported; the rest only inside the function that needs it."""
NETWORK = ROOMS["collafuse_runtimes"] / "networks" / "edge_network.py"
"""A class of torch, so the one module that needs torch to be imported; only functions import it."""
SCRIPTS = [
    path
    for name in ("benchmarks/experiments", "benchmarks/peers", "examples")
    for path in sorted((ROOT / name).rglob("*.py"))
]
PARTS_STUDIED = {
    (
        "second_looks.py",
        "collafuse_edge.upload",
    ): "the noise of one image, without ledger and shard: what a server could undo",
    ("second_looks.py", "collafuse_edge.upload.similarity"): "other thresholds than the one that `upload` has",
    ("graph_rewrites.py", "collafuse_export.graph_passes"): "a graph without the pass whose saving is measured",
}
"""(script, module) -> what it studies there that no command and no public name shows."""
FILES = [(room, path) for room, top in ROOMS.items() for path in sorted(top.rglob("*.py"))]
files = pytest.mark.parametrize(("room", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Top-level names of everything imported by these nodes; "." for a relative import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else str(node.module).split(".")[0]


def at_import_time(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not function bodies, not ``if TYPE_CHECKING``."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for child in ast.iter_child_nodes(node):
            checked_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if not checked_only and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                waiting.append(child)


@files
def test_imports_between_rooms(room: str, path: Path) -> None:
    names = set(imported(ast.walk(parse(path))))
    assert "." not in names, "imports are absolute"
    assert names & (ROOMS.keys() - {room}) <= ALLOWED[room]


def part(room: str, module: str) -> str:
    """The folder, or the file that lies directly in the room, that a module belongs to."""
    return [*module.split("."), "__init__"][1]


@files
def test_our_modules_are_imported_by_from(room: str, path: Path) -> None:
    """Or what folders import of each other would be overlooked below."""
    plain = [alias.name for n in ast.walk(parse(path)) if isinstance(n, ast.Import) for alias in n.names]
    assert not [name for name in plain if name.split(".")[0] in ROOMS]


@files
def test_imports_between_folders(room: str, path: Path) -> None:
    mine = part(room, ".".join([room, *path.relative_to(ROOMS[room]).with_suffix("").parts]))
    layer = {name: k for k, names in enumerate(LAYERS[room]) for name in names}
    if mine == "__init__" and mine not in layer:
        return
    modules = {
        f"{node.module}.{alias.name}" if node.module == room else str(node.module)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == room
        for alias in node.names
    }
    used = {part(room, module) for module in modules} - {mine, "__version__", "FORMAT_VERSION"}
    assert {name for name in used if layer[name] >= layer[mine]} <= BASE.get(mine, set())


def inner_modules(path: Path) -> set[str]:
    """Modules of the product that a script uses although they are neither public nor a floor below it."""
    froms = [node for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom)]
    asked = {(str(node.module), alias.name) for node in froms for alias in node.names}
    public = {(package.__name__, name) for package in (collafuse_edge, collafuse_export) for name in package.__all__}
    ours = {(module, name) for module, name in asked if module.split(".")[0] in ("collafuse_edge", "collafuse_export")}
    return {f"{module}.{name}" if "." not in module else module for module, name in ours - public}


def test_experiments_peers_and_examples_use_the_public_names() -> None:
    """And commands; what looks at the inside of a part is listed with its reason, and nothing is that does not."""
    assert {(path.name, module) for path in SCRIPTS for module in inner_modules(path)} == PARTS_STUDIED.keys()


@pytest.mark.parametrize("path", SCRIPTS, ids=[str(path.relative_to(ROOT)) for path in SCRIPTS])
def test_scripts_import_our_modules_by_from(path: Path) -> None:
    plain = [alias.name for n in ast.walk(parse(path)) if isinstance(n, ast.Import) for alias in n.names]
    assert not [name for name in plain if name.split(".")[0] in ROOMS]


def test_a_folder_holds_about_ten_files() -> None:
    sizes = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for _, path in FILES}}
    assert {str(folder.relative_to(ROOT)): size for folder, size in sizes.items() if size > 13} == {}


@files
def test_no_file_is_named_like_what_it_imports(room: str, path: Path) -> None:
    outside = set(imported(ast.walk(parse(path)))) - ROOMS.keys()
    assert path.stem not in outside
    assert path.parent.name not in outside


def test_no_file_is_named_like_a_library() -> None:
    """Of one this product depends on, whoever imports it."""
    dependencies = {"torch", "numpy", "onnx", "onnxruntime", "safetensors", "typer", "diffusers", "tensorrt"}
    stems = {path.stem for _, path in FILES} - {"__init__", "__main__"}
    assert stems & dependencies == set()


def test_the_ground_floor_stands_on_numpy_and_the_standard_library() -> None:
    paths = [path for path in ROOMS["collafuse_runtimes"].rglob("*.py") if path != NETWORK]
    names = {name for path in paths for name in imported(at_import_time(parse(path)))}
    assert names - sys.stdlib_module_names - {"collafuse_runtimes"} == GROUND_FLOOR


def test_only_functions_import_the_edge_network() -> None:
    modules = {
        ast.unparse(node)
        for _, path in FILES
        for node in at_import_time(parse(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not [words for words in modules if NETWORK.stem in words]
    assert NETWORK.stem in (NETWORK.parent / "network.py").read_text()


@files
def test_no_file_over_400_lines(room: str, path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@files
def test_nothing_is_pickled(room: str, path: Path) -> None:
    tree = parse(path)
    assert not set(imported(ast.walk(tree))) & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("torch.load", "torch.save")
            assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
            if name in ("np.load", "numpy.load"):
                assert any(k.arg == "allow_pickle" for k in node.keywords), "say allow_pickle=False"


def test_every_room_is_packaged_and_seen_here() -> None:
    """A new folder of code is listed in pyproject.toml, or an installed copy would lack it."""
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join([room, *path.parent.relative_to(top).parts])
        for room, top in ROOMS.items()
        for path in top.rglob("__init__.py")
    }
    assert found == listed
