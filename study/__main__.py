"""The study: the paper's claims on the toy, each with runs that could refute it; and tables of several seeds.

    python -m study --run                      # the runs that are missing, then the page: five hours for all
    python -m study                            # docs/study.md and its figures again, from the stored scores
    python -m study runs/a runs/b runs/c       # one table of these runs of train.py, seeds side by side

The scores of each run are a line of docs/study.jsonl. --run can be stopped, and goes on when it is called
again. The tables and pictures are made from them; what is said about them (claims.toml, page.jinja) is not.
"""

import argparse
import os
from pathlib import Path

from config import Help
from safe.files import fail, read_rows
from study.seeds import table

# With no core to spare, threads that spin while they wait take the cores from one another.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
STORED = Path(__file__).parent.parent / "docs" / "study.jsonl"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m study", description=__doc__, formatter_class=Help)
    parser.error = fail
    parser.add_argument("runs", type=Path, nargs="*", help="run folders of train.py, by seed")
    parser.add_argument("--run", action="store_true", help="do the runs that are not stored yet")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each arm, at most")
    parser.add_argument("--only", default="", help='arms, such as "bonus;no bonus"')
    parser.add_argument("--base", type=int, default=0, help="its seed; 1 makes another one")
    parser.add_argument("--folder", type=Path, default=Path("runs/study"), help="for the runs")
    parser.add_argument("--stored", type=Path, default=STORED, help="their scores")
    return parser.parse_args()


def seeds_table(folders: list[Path]) -> str:
    runs = []
    for folder in folders:
        file = folder / "answers.jsonl"
        if not file.is_file():
            fail(f"{folder} holds no answers.jsonl; give run folders of train.py")
        runs.append(read_rows(file))
    return table(runs, [folder.name for folder in folders])


def main() -> None:
    arguments = read_arguments()
    if arguments.runs:
        print(seeds_table(arguments.runs))
        return
    if arguments.run:
        from study.runs import do_all

        only = arguments.only.split(";") if arguments.only else []
        do_all(arguments.folder, arguments.stored, arguments.seeds, only, arguments.base)
    from study.page import write_page

    print(write_page(read_rows(arguments.stored), arguments.stored.parent))


if __name__ == "__main__":
    main()
