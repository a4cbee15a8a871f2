"""Built engines: found again or not, and why; an engine this machine did not build is not run."""

import json
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorrt
from heads import conditional_head, copy_of, default_head, inputs
from places import ROOT

from collafuse_runtimes.engines import EngineOptions, open_engine
from collafuse_runtimes.engines.trt.prepare import EngineBuildReport, build_engine, embed_engine
from collafuse_runtimes.errors import ArtefactError, CollafuseError, InputError
from collafuse_runtimes.files.bundle import FORMAT, MANIFEST, HeadBundle, read_bundle
from collafuse_runtimes.files.sealed import read_json, sha256_file, write_json

GPU = "Orin (fake)"
RULE = "no TF32, detailed, workspace 1024 MiB, tactics 4096 MiB"


class Machine:
    """A fake machine: its GPU, its TensorRT, its cache and its key; move between machines with ``install``."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, bundle: HeadBundle) -> None:
        self.folder, self.monkeypatch, self.bundle = folder, monkeypatch, bundle
        self.options = EngineOptions(cache=folder / "engines")
        self.install()

    def install(self, version: str = "10.3.0", **gpu: Any) -> FakeTensorrt:
        self.monkeypatch.setenv("XDG_CONFIG_HOME", str(self.folder / "config"))
        self.cuda = FakeCuda(**gpu).install(self.monkeypatch)
        self.trt = FakeTensorrt(self.bundle, self.cuda, version).install(self.monkeypatch)
        return self.trt

    def build(self, **batches: int) -> EngineBuildReport:
        return build_engine(self.bundle, "tensorrt", self.options, **batches)

    def run(self, bundle: HeadBundle, trust_bundle: bool | None = None) -> Any:
        options = EngineOptions(cache=self.folder / "engines", trust_bundle=trust_bundle)
        with open_engine(bundle, "tensorrt", options) as engine:
            return engine.denoise(inputs(bundle, 1)[0], 7)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "here", monkeypatch, read_bundle(copy_of(default_head(), tmp_path)))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(CollafuseError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_second_build_is_a_hit(machine: Machine) -> None:
    first, second = machine.build(), machine.build()
    assert (first.hit, first.reason) == (False, f"miss: no engine of this model in {machine.options.cache}")
    assert (second.hit, second.reason) == (True, f"hit: {first.path.name} was built for this")
    assert machine.trt.builds == 1
    assert (second.path, second.seconds, second.inspection) == (first.path, first.seconds, "convolutions: 1 fp32")
    assert first.key == {
        "model_sha256": sha256_file(machine.bundle.model_path),
        "profile": "batch 1 to 8, best at 1 and 8",
        "flags": f"strongly typed, {RULE}",
        "library": "tensorrt",
        "library_version": "10.3.0",
        "cuda_driver": "13.2",
        "gpu": GPU,
        "compute_capability": "8.7",
    }


def test_the_sidecar_is_as_documented(machine: Machine) -> None:
    report = machine.build()
    section = (ROOT / "docs" / "formats.md").read_text().split("\n## TensorRT engine\n")[1]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section.split("\n## ")[0], re.MULTILINE))
    assert set(rows) == set(read_json(report.path.with_suffix(".json"), "collafuse-engine"))
    assert sorted(re.findall(r"`(\w+)`", rows["key"])) == sorted(report.key)


@pytest.mark.parametrize(
    ("version", "gpu", "why"),
    [
        ("10.13.3", {}, "library_version 10.3.0 -> 10.13.3"),
        ("10.3.0", {"gpu": "Thor"}, f"gpu {GPU} -> Thor"),
        ("10.3.0", {"driver": 13030}, "cuda_driver 13.2 -> 13.3"),
        (
            "11.4.0",
            {"gpu": "Thor"},
            f"flags strongly typed, {RULE} -> always strongly typed, {RULE}; "
            f"library_version 10.3.0 -> 11.4.0; gpu {GPU} -> Thor",
        ),
    ],
)
def test_a_miss_names_what_changed(machine: Machine, version: str, gpu: dict[str, Any], why: str) -> None:
    first = machine.build()
    trt = machine.install(version, **gpu)
    second = machine.build()
    assert (second.hit, second.reason) == (False, f"miss: the nearest, {first.path.name}, differs in {why}")
    assert trt.builds == 1
    assert second.path != first.path


def test_another_cuda_bindings_finds_the_same_engine(machine: Machine) -> None:
    first = machine.build()
    trt = machine.install(runtime=12080)
    assert (machine.build().path, trt.builds) == (first.path, 0)


def test_an_engine_of_an_older_key_is_a_miss_that_says_so(machine: Machine) -> None:
    """Until now a key held cuda-bindings' own version, and builds had no limit of memory and one profile."""
    from collafuse_runtimes.engines.trt.cache import EngineCache

    key = machine.build().key
    assert machine.options.cache is not None
    for path in machine.options.cache.iterdir():
        path.unlink()
    old = {**key, "profile": "batch 1 to 8, best at 1", "flags": "strongly typed, no TF32, detailed"}
    stored = EngineCache(machine.options.cache).store({**old, "cuda_runtime": "13.0"}, b"engine", 1.0, "")
    assert machine.build().reason == (
        f"miss: the nearest, {stored.path.name}, differs in profile batch 1 to 8, best at 1 -> batch 1 to 8, best at 1 "
        f"and 8; flags strongly typed, no TF32, detailed -> strongly typed, {RULE}; cuda_runtime 13.0 -> not a part"
    )


def test_a_miss_compares_with_the_nearest_entry(machine: Machine) -> None:
    machine.build()
    near = machine.build(max_batch=2)
    machine.install(gpu="Thor")
    assert f"{near.path.name}, differs in gpu {GPU} -> Thor" in machine.build(max_batch=2).reason


def test_another_model_is_no_neighbour(machine: Machine) -> None:
    machine.build()
    other = conditional_head()
    machine.trt = FakeTensorrt(other, machine.cuda).install(machine.monkeypatch)
    assert build_engine(other, "tensorrt", machine.options).reason.startswith("miss: no engine of this model in ")


def test_opening_takes_the_engine_of_the_largest_batch_there_is(machine: Machine) -> None:
    machine.build(max_batch=2)
    machine.build(max_batch=16, opt_batch=4)
    x_tc, _ = inputs(machine.bundle, 16)
    with open_engine(machine.bundle, "tensorrt", machine.options) as engine:
        assert engine.denoise(x_tc, 7).shape == (16, 1, 16, 16)
    assert machine.trt.builds == 2


@pytest.mark.parametrize(("opt_batch", "max_batch"), [(0, 8), (9, 8), (1, 1025), (1, 1)])
def test_batches_out_of_range(machine: Machine, opt_batch: int, max_batch: int) -> None:
    valid = "max_batch must be 2 to 1024, opt_batch 1 to max_batch"
    with pytest.raises(InputError, match=f"opt_batch {opt_batch}, max_batch {max_batch} out of range: {valid}"):
        machine.build(opt_batch=opt_batch, max_batch=max_batch)


def test_the_profile_reaches_every_tensor_with_a_batch(machine: Machine) -> None:
    data = json.loads(machine.build(opt_batch=2, max_batch=4).path.read_bytes())
    assert data["profiles"] == [{"sample": [[n, 1, 16, 16] for n in batches]} for batches in ((1, 2, 3), (4, 4, 4))]


def test_timings_are_kept_for_the_next_build_of_the_same_machine_alone(machine: Machine) -> None:
    machine.build()
    machine.build(max_batch=2)
    assert machine.trt.config._timing == b"timed "
    machine.install(gpu="Thor")
    machine.build()
    assert machine.trt.config._timing == b""
    assert machine.options.cache is not None
    for timings in machine.options.cache.glob("*.timings"):
        timings.write_bytes(b"of another hand")
    machine.install()
    machine.build(max_batch=3)
    assert machine.trt.config._timing == b""


def test_files_and_key_belong_to_their_owner_alone(machine: Machine) -> None:
    report = machine.build()
    key = machine.folder / "config" / "collafuse-edge" / "engine.key"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (key, report.path)] == [0o600, 0o600]
    assert stat.S_IMODE(report.path.parent.stat().st_mode) == 0o700
    assert len(bytes.fromhex(key.read_text().split()[2])) == 32


def other_bytes(report: EngineBuildReport) -> None:
    report.path.write_bytes(report.path.read_bytes() + b" ")


def other_bytes_resealed(report: EngineBuildReport) -> None:
    other_bytes(report)
    sidecar = report.path.with_suffix(".json")
    body = read_json(sidecar, "collafuse-engine")
    write_json(sidecar, "collafuse-engine", {**body, "data_sha256": sha256_file(report.path)})


def without_signature(report: EngineBuildReport) -> None:
    sidecar = report.path.with_suffix(".json")
    body = read_json(sidecar, "collafuse-engine")
    del body["hmac"]
    write_json(sidecar, "collafuse-engine", body)


@pytest.mark.parametrize("tamper", [other_bytes, other_bytes_resealed, without_signature])
def test_a_tampered_engine_is_refused(machine: Machine, tamper: Callable[[EngineBuildReport], None]) -> None:
    report = machine.build()
    tamper(report)
    message = refusal(lambda: machine.run(machine.bundle))
    assert message == (
        f"{report.path} was not built on this machine, or was changed since: an engine is machine code and is not run; "
        f"delete it and {report.path.with_suffix('.json').name}, and it will be built again"
    )
    report.path.unlink()
    report.path.with_suffix(".json").unlink()
    machine.run(machine.bundle)
    assert machine.trt.builds == 2


def test_the_cache_of_another_machine_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.build()
    there = Machine(machine.folder.with_name("there"), monkeypatch, machine.bundle)
    shutil.copytree(machine.folder / "engines", there.folder / "engines")
    assert "was not built on this machine" in refusal(lambda: there.run(there.bundle))
    assert "was not built on this machine" in refusal(there.build)
    assert there.trt.builds == 0


def embedded(machine: Machine) -> HeadBundle:
    return embed_engine(machine.bundle, machine.build().path)


def test_a_bundle_with_an_engine_is_a_bundle(machine: Machine) -> None:
    report = machine.build()
    bundle = embed_engine(machine.bundle, report.path)
    assert read_bundle(bundle.path) == bundle
    assert [(e.name, e.key, e.sha256) for e in bundle.engines] == [
        (report.path.name, report.key, sha256_file(report.path))
    ]
    assert sorted(p.name for p in bundle.path.iterdir()) == sorted(
        ["model.onnx", "golden.safetensors", "manifest.json", report.path.name]
    )
    again = embed_engine(bundle, machine.build(max_batch=2).path)
    assert len(again.engines) == 2
    replaced = embed_engine(again, report.path)
    assert {e.name: e.key for e in replaced.engines} == {e.name: e.key for e in again.engines}
    with open_engine(bundle) as engine:  # the graph is as it was
        assert engine.denoise(inputs(bundle, 1)[0], 1).shape == (1, 1, 16, 16)


def test_a_trusted_bundle_brings_its_engine_to_a_like_machine(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = embedded(machine)
    expected = machine.run(machine.bundle)
    there = Machine(machine.folder.with_name("there"), monkeypatch, bundle)
    np.testing.assert_array_equal(there.run(bundle, trust_bundle=True), expected)
    assert there.trt.builds == 0
    there.run(bundle)  # not trusted: built here
    assert there.trt.builds == 1


@pytest.mark.parametrize(
    ("version", "gpu", "why"),
    [
        ("10.13.3", {}, "differs in library_version 10.3.0 -> 10.13.3"),
        ("10.3.0", {"gpu": "Thor"}, f"differs in gpu {GPU} -> Thor"),
        ("10.3.0", {"driver": 13030}, "differs in cuda_driver 13.2 -> 13.3"),
    ],
)
def test_a_trusted_bundle_for_another_machine_is_refused(
    machine: Machine, version: str, gpu: dict[str, Any], why: str
) -> None:
    bundle = embedded(machine)
    trt = machine.install(version, **gpu)
    message = refusal(lambda: machine.run(bundle, trust_bundle=True))
    assert message.startswith(f"no engine of {bundle.path} is for this machine: {bundle.engines[0].name} {why}; leave")
    assert trt.builds == 0


def test_a_trusted_bundle_without_an_engine_is_refused(machine: Machine) -> None:
    assert "is for this machine: it holds none; leave out" in refusal(lambda: machine.run(machine.bundle, True))


def test_a_bundled_engine_that_is_not_the_manifests_is_refused(machine: Machine) -> None:
    bundle = embedded(machine)
    engine = bundle.path / bundle.engines[0].name
    engine.write_bytes(engine.read_bytes() + b" ")
    assert "is not the file the manifest names" in refusal(lambda: read_bundle(bundle.path))
    assert "is not the file the manifest names" in refusal(lambda: machine.run(bundle, trust_bundle=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["engines"].clear(), "does not name exactly model.onnx and golden.safetensors"),
        (lambda m: m["engines"].update({"../x.engine": {}}), "valid: files *.engine"),
        (lambda m: m["engines"].update({"run_me.py": {}}), "valid: files *.engine"),
        (lambda m: m.update(engines=[]), "valid: files *.engine"),
        (
            lambda m: m["engines"].update({n: {"gpu": 1} for n in m["engines"]}),
            "valid: names of engine files to their keys",
        ),
    ],
)
def test_engines_a_manifest_garbles(machine: Machine, change: Callable[[Any], None], message: str) -> None:
    bundle = embedded(machine)
    manifest = read_json(bundle.path / MANIFEST, FORMAT)
    change(manifest)
    write_json(bundle.path / MANIFEST, FORMAT, manifest)
    assert message in refusal(lambda: read_bundle(bundle.path))


def test_a_manifest_without_the_key_engines_is_refused(machine: Machine) -> None:
    manifest = read_json(machine.bundle.path / MANIFEST, FORMAT)
    assert manifest.pop("engines") == {}
    write_json(machine.bundle.path / MANIFEST, FORMAT, manifest)
    with pytest.raises(ArtefactError, match=r"names engines None; valid: files \*.engine; export the head again"):
        read_bundle(machine.bundle.path)


def test_only_an_own_engine_of_the_same_model_is_embedded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    report = machine.build()
    assert "was built from another model than" in refusal(lambda: embed_engine(conditional_head(), report.path))
    Machine(machine.folder.with_name("there"), monkeypatch, machine.bundle)
    assert "was not built on this machine" in refusal(lambda: embed_engine(machine.bundle, report.path))


def test_an_unwritable_cache_is_named(machine: Machine) -> None:
    machine.folder.mkdir(exist_ok=True)
    (machine.folder / "engines").write_text("a file")
    with pytest.raises(ArtefactError, match=r"cannot create .*engines: File exists; name a writable folder"):
        machine.build()


def test_a_damaged_machine_key_is_named(machine: Machine) -> None:
    machine.build()
    key = machine.folder / "config" / "collafuse-edge" / "engine.key"
    key.write_text("short")
    assert f"{key} does not hold an engine key" in refusal(machine.build)
