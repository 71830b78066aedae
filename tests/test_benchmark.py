"""The kept times hold what was measured with them; errors and sizes are those of the files as they are now."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fag_utils import course, export, predictor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import benchmark  # noqa: E402

NAME = benchmark.NAME
NOT_MEASURED_THERE = {"mae", "file_kb"}


def test_kept_times_hold_no_error_that_could_grow_old():
    times = course.published("11_benchmark")
    assert not NOT_MEASURED_THERE & set(times)
    assert {label for label, *_ in [*benchmark.OURS, *benchmark.PEERS]} == set(times["model"])


def test_each_line_has_the_error_of_its_file_or_of_its_line_among_the_public_models():
    times = course.published("11_benchmark")
    found = export.with_errors(times)
    assert list(found["network_ms"]) == list(times["network_ms"])
    files = course.published("11_export").query("weights == @NAME").set_index(["format", "precision"])
    peers = {model["name"]: model for model in course.published("peers")["utkface_test"]["models"]}
    for row in found.itertuples():
        if isinstance(row.peer, str):
            assert (row.mae, row.file_kb) == (peers[row.peer]["mae"], peers[row.peer]["file_kb"])
        elif row.format == "keras":
            assert row.mae == files["mae_exact"].iloc[0]
            assert row.file_kb == (predictor.WEIGHTS / f"{NAME}.keras").stat().st_size / 1000
        else:
            line = files.loc[(row.format, row.precision)]
            assert (row.mae, row.file_kb) == (line["mae"], line["bytes"] / 1000)
    unknown = export.with_errors(pd.DataFrame({"format": ["other"], "precision": "int8", "peer": np.nan}))
    assert unknown[["mae", "file_kb"]].isna().all(axis=None)
    assert len(export.with_errors(times[:0])) == 0


def test_a_run_keeps_its_times_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "results").mkdir(parents=True)
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    monkeypatch.setattr(benchmark, "OUT", tmp_path)
    monkeypatch.setattr(benchmark, "profile", lambda left_out: None)
    lines = [("LiteRT int8", None, "litert", "int8", 0.6),
             ("human faceres (WebAssembly)", "human faceres", None, None, 133.0)]
    rows = [{"model": model, "threads": 1, "batch": 1, "peer": peer, "format": form, "precision": precision,
             "network_ms": time, "network_p10": 0.9 * time, "network_p90": 1.1 * time}
            for model, peer, form, precision, time in lines]
    benchmark.write(rows, {"another": "why"}, keep=True)
    kept = pd.read_csv(tmp_path / "data" / "results" / "11_benchmark.csv")
    assert kept["network_ms"].tolist() == [0.6, 133.0] and not NOT_MEASURED_THERE & set(kept)
    assert export.with_errors(kept)["mae"].notna().all()
    assert (tmp_path / "benchmark.png").stat().st_size > 5000
    assert "another" in capsys.readouterr().out


@pytest.mark.parametrize("label", [label for label, what, _ in benchmark.PEERS if what in ("face-api", "human")])
def test_what_runs_in_webassembly_says_so(label):
    assert "(WebAssembly)" in label
