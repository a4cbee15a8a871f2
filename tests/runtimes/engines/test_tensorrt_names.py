"""Every name the code uses of TensorRT's binding exists in the releases it is used with.

The code is read, not run: names used on TensorRT's objects, by variable. The table trt_binding_names.txt comes from
each release's own binding wheel (trt_binding_names.py).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trt_names import NAMES
from places import ROOT

ENGINES = ROOT / "runtimes" / "collafuse_runtimes" / "engines" / "trt"
OBJECTS = {
    "binding.py": {},
    "build.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "config": "IBuilderConfig",
        "parser": "OnnxParser",
        "error": "ParserError",
        "layer": "ILayer",
        "source": "ILayer",
        "shapes": "IOptimizationProfile",
        "cache": "ITimingCache",
        "pools": "MemoryPoolType",
    },
    "inspection.py": {"engine": "ICudaEngine", "context": "IExecutionContext", "inspector": "EngineInspector"},
    "prepare.py": {"runtime": "Runtime"},
    "engine.py": {
        "engine": "ICudaEngine",
        "self._engine": "ICudaEngine",
        "self._runtime": "Runtime",
        "context": "IExecutionContext",
        "loop.context": "IExecutionContext",
        "config": "IRuntimeConfig",
        "self._kernels": "IRuntimeCache",
    },
}
"""By file, what a variable holds."""
MODULE_OWN = {"__name__", "__version__"}
RTX_ONLY = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IExecutionContext.is_stream_capturable",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_runtime_cache",
}
ABSENT = {
    "10.3": RTX_ONLY
    | {"ICudaEngine.create_runtime_config", "IRuntimeConfig.set_execution_context_allocation_strategy"},
    "10.13": RTX_ONLY,
    "10.16": RTX_ONLY,
    "11.4": RTX_ONLY,
    "rtx-1.7": set[str](),
}
"""Names the code uses that a release has not: each stands in a branch which that release does not take."""


def used_in(path: Path) -> Iterator[str]:
    """``Class`` and ``Class.attribute`` of every use of the binding in a file."""
    tree, objects = ast.parse(path.read_text()), OBJECTS[path.name]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if owner in ("trt", "self._trt"):
                yield node.attr
            elif owner.startswith(("trt.", "self._trt.")):
                yield f"{owner.split('trt.', 1)[1]}.{node.attr}"
            elif owner in objects:
                yield f"{objects[owner]}.{node.attr}"
            elif isinstance(node.value, ast.Call) and owner.split("(")[0].endswith((".get_output", ".get_input")):
                yield f"ITensor.{node.attr}"
        elif isinstance(node, ast.ClassDef):
            for base in map(ast.unparse, node.bases):
                methods = [m.name for m in node.body if isinstance(m, ast.FunctionDef)]
                yield from (f"{base.removeprefix('trt.')}.{name}" for name in methods if base.startswith("trt."))


USED = {name for file in OBJECTS for name in used_in(ENGINES / file)} - MODULE_OWN
USED = {name for name in USED if not name.endswith(".__init__")}


def test_the_files_that_touch_the_binding_are_all_read() -> None:
    touching = {p.name for p in ENGINES.glob("*.py") if re.search(r"(?<!engines\.)trt\.|_trt", p.read_text())}
    assert touching - {"cache.py"} == set(OBJECTS)
    cache = ast.parse((ENGINES / "cache.py").read_text())
    owned = {n.attr for n in ast.walk(cache) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "trt"}
    assert owned == {"__version__"}


def test_the_reading_finds_what_is_known_to_be_used() -> None:
    assert {
        "Builder.build_serialized_network",
        "ICudaEngine.num_io_tensors",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_tensor_address",
        "ILogger.INTERNAL_ERROR",
        "ILogger.log",
        "ITensor.dtype",
        "LayerInformationFormat.JSON",
        "OnnxParser.parse",
        "Runtime.deserialize_cuda_engine",
        "float16",
    } <= USED
    assert len(USED) >= 60


def test_the_table_has_every_release_the_product_names() -> None:
    assert list(NAMES) == list(ABSENT) == ["10.3", "10.13", "10.16", "11.4", "rtx-1.7"]


@pytest.mark.parametrize("release", ABSENT)
def test_names_used_exist_except_those_of_other_releases(release: str) -> None:
    assert {name for name in USED if name not in NAMES[release]} == ABSENT[release]


def test_no_file_lets_an_engine_bring_host_code() -> None:
    for path in ENGINES.parent.rglob("*.py"):
        targets = [
            ast.unparse(target)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Assign)
            for target in node.targets
        ]
        assert not [target for target in targets if "engine_host_code_allowed" in target]
    assert all("Runtime.engine_host_code_allowed" in names for names in NAMES.values())
