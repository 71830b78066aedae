"""Shared fixtures. Real data is used where FAG_DATA points to it, else those tests are skipped."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def fag_data():
    """Folder of the real data sets, or a skip that says so."""
    folder = os.environ.get("FAG_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FAG_DATA does not name a folder with the real data sets")
    return Path(folder)
