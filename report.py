"""Run folders -> curves.png, and report.html: see the model think, in one file that opens anywhere.

python report.py runs/tiny-toy
python report.py runs/one runs/other runs/third      # several: curves overlaid, runs that differ only in
                                                     # their seed as one line with a band
"""

import argparse
from pathlib import Path

from config import Help
from runlog.compare import scores_text
from runlog.render import curves_beside, make_page
from safe.files import fail


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, of train.py or eval.py")
    parser.add_argument("--out", type=Path, help="the page to write (of several: compare.html beside them)")
    arguments = parser.parse_args()
    for run in arguments.runs:
        if not any((run / name).exists() for name in ("metrics.jsonl", "eval.json", "trajectories.jsonl")):
            fail(f"{run} holds no metrics.jsonl and no eval.json; give the folder of a run")
    if len(arguments.runs) > 1:
        print(scores_text(arguments.runs))
    page = make_page(arguments.runs, arguments.out)
    print(f"page:   {page}")
    if any((run / "metrics.jsonl").exists() for run in arguments.runs):
        print(f"curves: {curves_beside(page)}")


if __name__ == "__main__":
    main()
