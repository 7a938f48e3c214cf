"""Shared by all tests: where reference data lies, and caches that belong to the test run alone."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # as commands that tests start have: sums in another order differ in their last bits

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Prompt embeddings of a test run go to a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("DISTILL_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set DISTILL_SHARED")
    return folder
