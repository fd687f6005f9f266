"""`bench data`: rows as they are promised, from a process without torch."""

from __future__ import annotations

import json

from lib_tuner import cli
from lib_tuner.bench_data import LIMITS


def test_each_operation_has_a_row(capsys, tmp_path):
    assert cli.main(["bench", "data", "--json", "--sizes", "30", "--folder", str(tmp_path), "--no-venv"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert set(LIMITS) <= {row["op"] for row in rows}
    assert all(set(row) == {"op", "n", "s", "mb"} and row["n"] == 30 and 0 <= row["s"] < 60 and 5 < row["mb"] < 300 for row in rows)
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_a_line_for_each(capsys):
    assert cli.main(["bench", "data", "--sizes", "5", "8", "--no-venv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["pictures", "5", "8"] and lines[-1].startswith("memory") and [line for line in lines if line.startswith("apply")][0].endswith("3 s")
