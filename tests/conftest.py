"""Fixtures shared by all tests."""

import os
from pathlib import Path

import made_once
import pytest


@pytest.fixture(scope="session", autouse=True)
def _shared_between_processes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """xdist gives each process a folder of its own in the run's."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "made"
    folder.mkdir(exist_ok=True)
    made_once.share_in(folder)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: COLLAFUSE_DATA, by default ../shared/data beside the repository."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("COLLAFUSE_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set COLLAFUSE_DATA to the folder that holds brain_mri_64.npz")
    return folder
