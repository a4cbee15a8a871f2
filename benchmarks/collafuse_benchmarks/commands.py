"""The product's own commands, run as a user runs them, with a log."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def run(out: Path, *arguments: object) -> dict[str, Any]:
    """One command of ``collafuse-edge``; its JSON result. What it printed is added to OUT/log.txt.

    Raises:
        SystemExit: the command failed.
    """
    command = [sys.executable, "-m", "collafuse_edge", *map(str, arguments), "--json"]
    print("collafuse-edge", *arguments, flush=True)
    started = time.monotonic()
    with (out / "log.txt").open("a") as log:
        print("$ collafuse-edge", *arguments, file=log, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        print(done.stdout, f"{time.monotonic() - started:.1f} s", file=log, flush=True)
    if done.returncode:
        sys.exit(f"command failed with exit code {done.returncode}; see {out / 'log.txt'}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
