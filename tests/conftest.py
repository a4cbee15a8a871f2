"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: COLLAFUSE_DATA, by default ../shared/data beside the repository."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("COLLAFUSE_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set COLLAFUSE_DATA to the folder that holds brain_mri_64.npz")
    return folder
