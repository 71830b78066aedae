"""Shared fixtures. Real data is used where FAG_DATA points to it, else those tests are skipped."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The same results on every machine: no GPU, and one order of sets and hashes in the kernels of the notebooks.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("PYTHONHASHSEED", "0")

NO_DATA = "FAG_DATA does not name a folder with the real data sets"


def pytest_collection_finish(session):
    """As in class (see `course.begin`): a test's few steps never earn back what improving a graph takes."""
    tf = sys.modules.get("tensorflow")
    if tf:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.fixture(scope="session")
def fag_data():
    """Folder of the real data sets, or a skip that says so."""
    folder = os.environ.get("FAG_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip(NO_DATA)
    return Path(folder)


def pytest_terminal_summary(terminalreporter):
    """Say it loudly when nothing was tested on real data."""
    skipped = sum(NO_DATA in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if skipped:
        message = f"{skipped} tests on REAL DATA were SKIPPED: {NO_DATA}"
        terminalreporter.write_line(message, yellow=True, bold=True)
