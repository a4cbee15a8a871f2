"""The plan file ``plan.json``: one SplitPlan, sealed."""

from pathlib import Path

from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import ArtefactError, CollafuseError
from collafuse_runtimes.files.sealed import read_json, write_json

FORMAT = "collafuse-plan"


def write_plan(path: Path, plan: SplitPlan) -> None:
    """Write a plan file.

    Raises:
        ArtefactError: the file cannot be written.
    """
    write_json(path, FORMAT, {"plan": plan.to_dict(), "fingerprint": plan.fingerprint})


def read_plan(path: Path) -> SplitPlan:
    """Read a plan file.

    Raises:
        ArtefactError: missing, damaged, edited by hand, or holding an invalid plan.
    """
    payload = read_json(path, FORMAT)
    try:
        return SplitPlan.from_payload(payload)
    except CollafuseError as error:
        raise ArtefactError(f"{path}: {error}; write it with `collafuse-edge init`") from None
