"""The table of several seeds, against means by hand."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from study import table


def answers(seed: int) -> list[dict]:
    """A run: of four `read` questions one is right before, two when forced, `seed + 2` after."""
    rows = []
    for when, arm, right in (
        ("before", "on", 1),
        ("before", "forced", 2),
        ("after", "on", seed + 2),
        ("after", "swap", 0),
        ("after", "forced", seed + 2),
    ):
        for i in range(4):
            row = {"when": when, "arm": arm, "kind": "read", "id": str(i), "right": i < right}
            row |= {"boxes": [[0, 0, 9, 9]] if when == "after" else [], "iou": None}
            row |= {"holds": True, "says_shown": i > 0 if arm == "swap" else None}
            if arm == "forced":
                row["iou"] = 0.25 * (seed + 1)
            rows.append(row)
    return rows


def cells(text: str, label: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_table_is_the_mean_by_hand():
    text = table([answers(0), answers(1)])
    before, forced, first, second, mean = cells(text, "right on `read`")
    assert (before, forced, first, second) == ("0.25", "0.50", "0.50", "0.75")
    low, high = map(float, re.fullmatch(r"0\.62 \((.*) to (.*)\)", mean).groups())
    assert low < 0.5 and high > 0.75  # runs and questions both are few
    assert cells(text, "zooms on `read`")[0] == "0.00"
    assert cells(text, "zooms on `read`")[2:4] == ["1.00", "1.00"]
    assert cells(text, "forced zooms on `read`: IoU with the tile")[2:4] == ["0.25", "0.50"]
    shown = cells(text, "another tile's crop instead: says that tile's letter")
    assert shown[2:] == ["0.75", "0.75", "0.75 (0.25 to 1.00)"]
    assert cells(text, "right on `glance`") == ["-"] * 5  # not asked
    other = [row | {"id": f"other {row['id']}"} for row in answers(1)]
    assert cells(table([answers(0), other]), "right on `read`")[-1] == "-"  # other questions


def test_the_command(tmp_path):
    for seed in (0, 1):
        (tmp_path / f"{seed}").mkdir()
        lines = [json.dumps(row) + "\n" for row in answers(seed)]
        (tmp_path / f"{seed}" / "answers.jsonl").write_text("".join(lines))
    command = [sys.executable, "study.py"]
    runs = [str(tmp_path / "0"), str(tmp_path / "1")]
    done = subprocess.run([*command, *runs], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == table([answers(0), answers(1)])


@pytest.mark.parametrize("argv", [["/nowhere"], []])
def test_a_folder_that_is_no_run_is_one_line(argv):
    command = [sys.executable, "study.py", *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
