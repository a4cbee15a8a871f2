"""The cache of built engines stays small: of each model the engines used last, and never one that is being opened."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from collafuse_runtimes.engines.trt import cache as tensorrt_cache
from collafuse_runtimes.engines.trt.cache import KEPT, EngineCache, EngineKey, PushedOut

MACHINE = {"flags": "f", "library": "tensorrt", "library_version": "10.3.0",
           "cuda_driver": "13.2", "gpu": "Orin", "compute_capability": "8.7"}  # fmt: skip


def key(batch: int, model: str = "a" * 64, **changes: str) -> EngineKey:
    return {"model_sha256": model, "profile": f"batch 1 to {batch}, best at 1", **MACHINE, **changes}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return EngineCache(tmp_path / "engines")


def store(cache: EngineCache, wanted: EngineKey, used_s_ago: float = 0.0) -> Path:
    path = cache.store(wanted, f"engine {wanted}".encode(), 1.0, "not inspected").path
    stamp = time.time() - used_s_ago
    os.utime(path, (stamp, stamp))
    return path


def fill(cache: EngineCache) -> list[Path]:
    """``KEPT`` engines of one model, the first used longest ago."""
    return [store(cache, key(batch), used_s_ago=1000 - batch) for batch in range(2, 2 + KEPT)]


def test_the_one_used_longest_ago_makes_room(cache: EngineCache) -> None:
    paths = fill(cache)
    new = store(cache, key(99))
    assert set(cache.folder.glob("*.engine")) == {*paths[1:], new}
    assert {path.with_suffix(".engine") for path in cache.folder.glob("*.json")} == {*paths[1:], new}
    assert cache.lookup(key(2)).entry is None
    assert store(cache, key(2)).exists()


def test_what_was_compiled_for_an_engine_goes_with_it_and_stays_with_the_others(cache: EngineCache) -> None:
    paths = fill(cache)
    for batch in (2, 3):
        cache.store_kernels(key(batch), f"kernels of {batch}".encode())
    assert cache.kernels(key(2)) == b"kernels of 2"
    store(cache, key(99))
    assert not paths[0].exists() and cache.kernels(key(2)) == b"" and cache.kernels(key(3)) == b"kernels of 3"
    assert len(list(cache.folder.glob("*.kernels"))) == 1 and len(list(cache.folder.glob("*.json"))) == KEPT + 1


def test_kernels_that_this_machine_did_not_compile_are_not_used(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store_kernels(key(2), b"kernels")
    (path,) = cache.folder.glob("*.kernels")
    path.write_bytes(b"malice!")
    assert cache.kernels(key(2)) == b""
    path.write_bytes(b"kernels")
    assert cache.kernels(key(2)) == b"kernels" and cache.kernels(key(2, gpu="Thor")) == b""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(cache.folder.parent / "another machine"))
    assert cache.kernels(key(2)) == b""


def test_finding_an_engine_counts_as_using_it(cache: EngineCache) -> None:
    paths = fill(cache)
    assert cache.lookup(key(2)).entry is not None
    found = cache.lookup_any_profile(key(50)).entry
    assert found is not None and found.path == paths[-1]
    store(cache, key(99))
    store(cache, key(98))
    assert [path.exists() for path in paths] == [True, False, False, *[True] * (KEPT - 3)]


def test_any_profile_is_used_too(cache: EngineCache) -> None:
    (largest, *others) = [store(cache, key(batch), 1000 - n) for n, batch in enumerate(range(1 + KEPT, 1, -1))]
    assert cache.lookup_any_profile(key(50)).entry is not None
    store(cache, key(50, gpu="Thor"))
    assert largest.exists() and not others[0].exists()


def test_other_models_foreign_engines_and_timings_stay(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    other = store(cache, key(4, model="b" * 64), used_s_ago=10**6)
    cache.store_timings(MACHINE, b"timings")
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(cache.folder.parent / "another machine"))
        foreign = store(cache, key(3, gpu="Thor"), used_s_ago=10**6)
    fill(cache)
    store(cache, key(99))
    assert other.exists() and foreign.exists() and cache.timings(MACHINE) == b"timings"
    assert len(list(cache.folder.glob("*.engine"))) == KEPT + 2


def test_a_clock_that_was_set_back_does_not_remove_what_was_just_built(cache: EngineCache) -> None:
    for batch in range(2, 2 + KEPT):
        store(cache, key(batch), used_s_ago=-(10**6))
    assert store(cache, key(99)).exists()
    assert len(list(cache.folder.glob("*.engine"))) == KEPT


def test_a_folder_that_cannot_be_written_is_read_all_the_same(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    fill(cache)
    monkeypatch.setattr(tensorrt_cache.os, "utime", refuse)
    entry = cache.lookup(key(2)).entry
    assert entry is not None and cache.read(entry) == f"engine {key(2)}".encode()


def test_what_is_found_or_stored_is_read_whole_or_was_pushed_out(cache: EngineCache) -> None:
    """Half as many at once as are kept: each finds or stores one of many engines, and reads it. A worker that is left
    waiting meanwhile finds its engine pushed out, never half of it."""

    def work(worker: int) -> int:
        hits = 0
        for n in range(40):
            wanted = key(2 + (worker * 7 + n * n) % 20)
            entry = cache.lookup(wanted).entry
            hits += entry is not None
            with suppress(PushedOut):
                found = cache.read(entry or cache.store(wanted, f"engine {wanted}".encode(), 1.0, ""))
                assert found == f"engine {wanted}".encode()
        return hits

    with ThreadPoolExecutor(KEPT // 2) as pool:
        hits = sum(pool.map(work, range(KEPT // 2)))
    assert 0 < hits < 40 * KEPT // 2
    assert len(list(cache.folder.glob("*.engine"))) == len(list(cache.folder.glob("*.json"))) == KEPT
