"""Write tests/support/trt_binding_names.txt: which names each TensorRT release's own Python binding has.

    python tests/support/trt_binding_names.py FOLDER_OF_WHEELS

The binding wheels need libnvinfer and a GPU to work, but not to be looked at: they import nine functions of it, so a
library of that name with nine empty functions is enough to load a binding and list its classes. Needs gcc, binutils and
wheels for this Python, as ``pip download --no-deps tensorrt-cu12-bindings==10.3.0`` fetches them. TensorRT-RTX is
listed too where it is installed.
"""

import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TABLE = Path(__file__).with_suffix(".txt")
CLASSES = """
Builder BuilderFlag ComputeCapability DataType DynamicShapesKernelSpecializationStrategy EngineInspector
ExecutionContextAllocationStrategy IBuilderConfig ICudaEngine IExecutionContext IHostMemory ILayer ILogger
INetworkDefinition IOptimizationProfile IProgressMonitor IRuntimeCache IRuntimeConfig ITensor ITimingCache
LayerInformationFormat LayerType Logger MemoryPoolType NetworkDefinitionCreationFlag OnnxParser ParserError
ProfilingVerbosity Runtime TensorIOMode
""".split()  # noqa: SIM905
"""Those the engine files touch; a class that is missing here makes the test fail, not pass."""
RELEASE = re.compile(r"bindings-(\d+\.\d+)")


def names_of(binding: object) -> list[str]:
    """``Class`` and ``Class.attribute`` of everything public in CLASSES, and the module's own dtype names."""
    found = [name for name in ("float16", "float32", "int32", "int8") if hasattr(binding, name)]
    for name in CLASSES:
        if hasattr(binding, name):
            public = [attribute for attribute in dir(getattr(binding, name)) if not attribute.startswith("_")]
            found += [name, *(f"{name}.{attribute}" for attribute in public)]
    return found


def load_extension(path: Path) -> object:
    """Import the binding's shared object alone; its package would look for the real libraries."""
    name = path.name.split(".")[0]
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def write_stand_ins(extension: Path, folder: Path) -> None:
    """Empty libraries for everything of NVIDIA's that the binding is linked with."""
    dynamic = subprocess.run(["readelf", "-d", extension], check=True, capture_output=True, text=True).stdout
    undefined = subprocess.run(["nm", "-D", "--undefined-only", extension], check=True, capture_output=True, text=True)
    symbols = re.findall(r" U ((?:create|get|init|_ZN11nvuff|_ZN14nvcaffe)\w+)$", undefined.stdout, re.MULTILINE)
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in symbols))
    for library in re.findall(r"\[(libnv\w+\.so\.\d+)\]", dynamic):
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / library, source], check=True)


def names_of_wheel(wheel: Path) -> list[str]:
    """The wheel's names, listed by another process, because two bindings do not fit into one."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(wheel) as archive:
            extension = folder / archive.extract("tensorrt_bindings/tensorrt.so", folder)
        write_stand_ins(extension, folder)
        listing = subprocess.run(
            [sys.executable, __file__, "--list", extension],
            check=True,
            capture_output=True,
            text=True,
            env={"LD_LIBRARY_PATH": str(folder)},
        )
    names: list[str] = json.loads(listing.stdout)
    return names


def write_table(wheels: list[Path]) -> None:
    """One line a name, with the releases that have it."""
    by_release = {}
    for wheel in wheels:
        match = RELEASE.search(wheel.name)
        assert match, f"{wheel} is not named like a binding wheel"
        by_release[match[1]] = set(names_of_wheel(wheel))
    if importlib.util.find_spec("tensorrt_rtx_bindings"):
        binding = importlib.import_module("tensorrt_rtx_bindings")
        by_release["rtx-" + ".".join(binding.__version__.split(".")[:2])] = set(names_of(binding))
    releases = sorted(by_release, key=lambda r: (r.startswith("rtx"), [int(part) for part in re.findall(r"\d+", r)]))
    lines = [
        f"{name} {' '.join(r for r in releases if name in by_release[r])}\n"
        for name in sorted(set().union(*by_release.values()))
    ]
    TABLE.write_text(f"releases {' '.join(releases)}\n" + "".join(lines))
    print(f"{TABLE}: {len(lines)} names of {', '.join(releases)}")


if __name__ == "__main__":
    if sys.argv[1] == "--list":
        print(json.dumps(names_of(load_extension(Path(sys.argv[2])))))
    else:
        write_table(sorted(Path(sys.argv[1]).glob("*.whl")))
