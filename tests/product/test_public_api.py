"""The names for programs: exactly these, loaded when asked for, with paths as str; and the examples run."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heads import default_head
from places import ROOT
from small_product import write_extractor

import collafuse_edge
from collafuse_edge import EngineOptions, api
from collafuse_runtimes.diffusion.noise import noise_batch
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.handover import Handover

NAMES = [
    "EngineOptions", "NetworkConfig", "Sampler", "SplitPlan", "TrainSettings", "evaluate", "export_head",
    "image_features", "infer", "kid_on_reference_scale", "load_images", "make_handover", "open_engine", "pyramid_score",
    "read_bundle", "read_handover", "read_plan", "train_head", "train_server", "upload_images", "verify",
    "write_handover", "write_plan",
]  # fmt: skip
TENSORS = 3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hand-over file and a plan file for the default head."""
    folder, plan = tmp_path_factory.mktemp("api"), default_head().plan
    x_tc = noise_batch(0, range(TENSORS), 0, plan.image_shape)
    steps = tuple(range(plan.timesteps - 1, plan.cut - 1, -1))
    api.write_handover(str(folder / "x.tc.safetensors"), Handover(x_tc, plan, 5, 0, {"name": "ddim"}, steps, "ab" * 32))
    api.write_plan(str(folder / "plan.json"), plan)
    return folder


def test_the_list_is_this_and_every_name_is_documented() -> None:
    assert collafuse_edge.__all__ == dir(collafuse_edge) == NAMES
    for name in NAMES:
        assert getattr(collafuse_edge, name) is getattr(api, name)
        assert inspect.getdoc(getattr(api, name))
    with pytest.raises(AttributeError, match="has no attribute 'trian'; it has: EngineOptions, NetworkConfig, "):
        _ = collafuse_edge.trian


def test_importing_the_package_loads_nothing_and_the_names_load_no_torch() -> None:
    code = (
        "import sys, collafuse_edge; light = set(sys.modules)\n"
        "assert not light & {'numpy', 'torch', 'onnxruntime', 'typer'}, light\n"
        "from collafuse_edge import *\n"
        "heavy = {'torch', 'diffusers', 'onnx', 'onnxruntime', 'matplotlib', 'accelerate'}\n"
        "assert not heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_paths_are_str_or_path(site: Path) -> None:
    bundle, tensors = str(default_head().path), str(site / "x.tc.safetensors")
    assert api.read_plan(str(site / "plan.json")) == default_head().plan
    assert api.verify(bundle, options=EngineOptions(threads=1)).passed
    images = api.infer(bundle, tensors, str(site / "images"))
    assert images.shape == (TENSORS, *default_head().plan.image_shape)
    np.testing.assert_array_equal(np.load(site / "images" / "images.npz")["images"], images)
    np.testing.assert_array_equal(api.infer(Path(bundle), Path(tensors)), images)
    with api.open_engine(bundle, "ort-cpu", EngineOptions(threads=1)) as engine:
        np.testing.assert_allclose(engine.denoise(api.read_handover(tensors).x_tc, seed=5), images, atol=1e-5)
    with pytest.raises(InputError, match="threads 0 out of range"):
        api.open_engine(bundle, options=EngineOptions(threads=0))


def test_a_misspelt_engine_option_is_refused_and_its_paths_are_str_or_path() -> None:
    assert EngineOptions(cache="engines", checkpoint=Path("head")) == EngineOptions(  # type: ignore[arg-type]
        cache=Path("engines"), checkpoint=Path("head")
    )
    with pytest.raises(TypeError, match="thread"):
        EngineOptions(thread=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="threads"):
        api.verify(default_head(), threads=1)  # type: ignore[call-arg]


def test_infer_without_a_folder_writes_nothing(site: Path) -> None:
    before = sorted(site.parent.rglob("*"))
    api.infer(default_head(), api.read_handover(site / "x.tc.safetensors"))
    assert sorted(site.parent.rglob("*")) == before


def test_the_program_of_the_api_page_runs(site: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert set(NAMES) <= set(re.findall(r"\w+", page))
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(site)
    (site / "edge.head").symlink_to(default_head().path)
    exec(compile(code, "api.md", "exec"), {})
    assert capsys.readouterr().out.startswith(f"({TENSORS}, 1, ")


def test_features_and_kid_are_those_of_evaluate(site: Path, tmp_path: Path) -> None:
    extractor = write_extractor(tmp_path / "e.onnx")
    tensors = site / "x.tc.safetensors"
    shape = default_head().plan.image_shape
    real = np.random.default_rng(0).uniform(-1, 1, (TENSORS + 1, *shape)).astype(np.float32)
    features = [api.image_features(x, str(extractor)) for x in (real, api.read_handover(tensors).x_tc)]
    assert [(x.dtype, len(x)) for x in features] == [(np.float64, TENSORS + 1), (np.float64, TENSORS)]
    assert api.kid_on_reference_scale(*features).value == api.evaluate(tensors, real, extractor).kid_mean


def run(*words: object) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_device_loop_runs(site: Path) -> None:
    lines = run("examples/device_loop.py", default_head().path, site / "x.tc.safetensors").splitlines()
    assert [line.split(":")[0] for line in lines] == [f"image {k}" for k in range(TENSORS)]


@pytest.mark.parametrize(
    ("example", "needs"), [("own_data", {"head"}), ("own_network", {"head", "server", "site.key"})]
)
def test_the_training_examples_run(example: str, needs: set[str], tmp_path: Path) -> None:
    assert run(f"examples/{example}.py", tmp_path / "out", 2).startswith("8 images in ")
    assert needs | {"edge.head", "images"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert len(list((tmp_path / "out" / "images").glob("0*.png"))) == 8
