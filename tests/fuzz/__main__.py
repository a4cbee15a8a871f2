"""`make fuzz`: damaged files of every kind through the commands that read them.

Usage: python tests/fuzz [--seed N] [--scale X] [--only KIND]... [--keep FOLDER]

Exit code 0: no traceback, nothing over 20 s or 1 GB, no changed secret or swapped graph accepted. 1: see the list.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import trial
from corpus import KINDS, Kind, make_corpus, words
from mutations import damage

PRELOADED = (
    "numpy", "torch", "diffusers", "accelerate", "safetensors.numpy", "PIL.Image", "nibabel", "pydicom",
    "collafuse_edge.cli.app", "collafuse_edge.data", "collafuse_edge.training.loop",
    "collafuse_edge.handoff.server_steps", "collafuse_edge.evaluation.evaluate", "collafuse_export",
    "collafuse_runtimes.infer",
)  # fmt: skip
"""Imported once, before the forks; libraries that start threads at import (ONNX Runtime's sessions) come after them."""


@dataclass(frozen=True)
class Case:
    """One trial: the seed tells everything else."""

    kind: str
    index: int

    def random(self, seed: int) -> random.Random:
        """Its own stream, whatever other cases do."""
        return random.Random(f"{seed} {self.kind} {self.index}")


def main() -> int:
    """Run all cases on all CPUs and print the counts."""
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="cases relative to a whole run")
    parser.add_argument("--only", action="append", choices=KINDS, help="a kind; repeatable")
    parser.add_argument("--corpus", type=Path, help="sound files made by an earlier run, to save the minute")
    parser.add_argument("--keep", type=Path, help="folder for the files that showed a fault")
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        corpus = Path(scratch) / "corpus"
        os.environ |= {"HOME": scratch, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        os.environ.pop("XDG_CONFIG_HOME", None)
        if arguments.corpus is None:
            make_corpus(corpus)
        else:
            shutil.copytree(arguments.corpus, corpus)
        cases = [
            Case(name, index)
            for name, kind in KINDS.items()
            if arguments.only is None or name in arguments.only
            for index in range(max(1, round(kind.count * arguments.scale)))
        ]
        results = run_all(cases, Path(scratch), arguments.seed, arguments.keep)
    return report(results, arguments.seed, time.monotonic() - start)


def run_all(cases: list[Case], scratch: Path, seed: int, keep: Path | None) -> list[dict[str, object]]:
    """The results of all cases, shared out over the CPUs."""
    workers = len(os.sched_getaffinity(0))
    children = []
    for number in range(workers):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _work(cases[number::workers], scratch, seed, keep, scratch / f"{number}.jsonl")
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    if failed:
        raise SystemExit("a worker of the fuzzer itself failed; see above")
    lines = [line for n in range(workers) for line in (scratch / f"{n}.jsonl").read_text().splitlines()]
    return [json.loads(line) for line in lines]


def _work(cases: list[Case], scratch: Path, seed: int, keep: Path | None, results: Path) -> None:
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    others = sorted(path for path in (scratch / "corpus").rglob("*") if path.is_file() and not path.is_symlink())
    with results.open("w") as log:
        for case in cases:
            folder = scratch / f"case-{os.getpid()}"
            shutil.copytree(scratch / "corpus", folder, copy_function=os.link)
            result = run_case(case, KINDS[case.kind], folder, others, seed)
            if result["fault"] and keep is not None:
                _keep(folder, keep / f"{case.kind}-{case.index}".replace("/", "_"))
            _remove(folder)
            log.write(json.dumps(result) + "\n")
            log.flush()


def run_case(case: Case, kind: Kind, folder: Path, others: list[Path], seed: int) -> dict[str, object]:
    """Damage the copy in ``folder`` and run one of the commands that read it."""
    rng = case.random(seed)
    command = rng.choice(kind.readers)
    what, same = damage(kind, folder, rng.choice(others).read_bytes(), rng)
    attacked = what.startswith("resealed")
    outcome = trial.run(words(command, folder), folder)
    explained = what == "other" and command.startswith("inspect")  # it explains whatever is there
    must_refuse = kind.sealed and not same and not attacked and not explained and kind.form != "bundle"
    if kind.form == "graph" and attacked:
        must_refuse = what.split(": ")[1] in ("identity", "external data")
    fault = trial.fault(outcome, may_succeed=not must_refuse)
    digest = hashlib.sha256(repr((what, command)).encode()).hexdigest()[:8]
    return {
        "kind": case.kind,
        "index": case.index,
        "what": what,
        "command": command,
        "code": outcome.code,
        "seconds": round(outcome.seconds, 2),
        "megabytes": outcome.megabytes,
        "fault": fault,
        "id": digest,
    }


def _keep(folder: Path, place: Path) -> None:
    """A copy without pipes, which cannot be copied."""

    def pipes(where: str, names: list[str]) -> list[str]:
        return [name for name in names if stat.S_ISFIFO(Path(where, name).lstat().st_mode)]

    shutil.copytree(folder, place, symlinks=True, ignore=pipes, dirs_exist_ok=True)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise SystemExit(f"cannot remove {folder}")


def report(results: list[dict[str, object]], seed: int, seconds: float) -> int:
    """Print counts by kind and every fault; 1 where there is one."""
    print(f"{'kind':<24} cases refused   no  taken faults  slowest  most MB")
    for name in KINDS:
        rows = [row for row in results if row["kind"] == name]
        if not rows:
            continue
        codes = Counter(row["code"] for row in rows)
        faults = sum(row["fault"] is not None for row in rows)
        slowest, most = (max(float(str(row[key])) for row in rows) for key in ("seconds", "megabytes"))
        counts = f"{len(rows):>5} {codes[2]:>7} {codes[1]:>4} {codes[0]:>6} {faults:>6}"
        print(f"{name:<24} {counts} {slowest:>6.1f} s {most:>8.0f}")
    faults = [row for row in results if row["fault"] is not None]
    for row in faults:
        print(f"FAULT {row['kind']} {row['index']} ({row['what']}) {row['command']}: {row['fault']}")
    print(f"{len(results)} artefacts, seed {seed}, {len(faults)} faults, {seconds:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
