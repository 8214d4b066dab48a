"""The toy in the paper's clothes: three parquet files in the layout of the paper's 47k rows.

    python -m toy.rehearsal --out rehearsal
    python train.py --data deepeyes --root rehearsal

The images are the toy's, the rows are what the real ones are like: `vstar` rows have sentences as gold,
`chart` rows have choices in the question and a letter as gold, a few `thinklite_eureka` rows have no tool. It
shows that the road from the paper's files to a zooming model is whole, on a CPU and without a judge.
"""

import io
import random
from dataclasses import dataclass
from pathlib import Path

import datasets

from config import check_at_least, flag, parse, run_command
from toy.world import draw_questions

# File name -> its source, and its part of the rows (the paper's: 0.47, 0.30, 0.23).
FILES = {
    "data_v0.8_visual_toolbox_v2.parquet": ("vstar", 0.6),
    "data_0.1.2_visual_toolbox_v2.parquet": ("chart", 0.35),
    "data_thinklite_reasoning_acc.parquet": ("thinklite_eureka", 0.05),
}
KINDS = {"vstar": "read", "chart": "compare+glance", "thinklite_eureka": "glance"}
AFTER = "\nThink first, call **image_zoom_in_tool** if needed, then answer."
BEFORE = "You FIRST think about the reasoning process, then give the final answer in \\boxed{}.\nQuestion:\n"


def write(file: Path, source: str, count: int, seed: int) -> None:
    """Write one parquet file of so many rows."""
    rng = random.Random(f"{source}-{seed}")
    drawn = draw_questions(count, seed=seed, variant=f"kinds={KINDS[source]}")
    rows = [hub_row(row, source, number, rng) for number, row in enumerate(drawn)]
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).to_parquet(str(file))


def hub_row(row: dict, source: str, number: int, rng: random.Random) -> dict:
    """A question of the toy as a row of the Hub's files."""
    text, gold = hub_question(row, source, rng)
    user = f"<image>{BEFORE}{text}" if source == "thinklite_eureka" else f"<image>\n{text}{AFTER}"
    image = io.BytesIO()
    row["image"]().save(image, "PNG")
    return {
        "data_source": source,
        "prompt": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": user},
        ],
        "images": [{"bytes": image.getvalue(), "path": None}],
        "ability": "vl_chart" if source == "chart" else "qa",
        "env_name": "visual_toolbox_v2",
        "reward_model": {"ground_truth": gold, "style": "model"},
        "extra_info": {"question": text, "answer": gold, "index": str(number), "split": "train"},
    }


def hub_question(row: dict, source: str, rng: random.Random) -> tuple[str, str]:
    """The question's text and its gold, as the rows of this source have them."""
    text = row["question"]
    answer = row["answer"]
    if source == "vstar":
        subject = text.removeprefix("What letter is ").removesuffix("?")
        return text, f"The letter {subject} is {answer}."
    pairs = (("yes", "no"), ("left", "right"), ("top", "bottom"))
    choices = list(next(pair for pair in pairs if answer in pair))
    rng.shuffle(choices)
    first, second = choices
    if source == "chart":
        return f"{text}\nA. {first}\nB. {second}", "AB"[choices.index(answer)]
    return f"{text}\nChoices:\n(A) {first}\n(B) {second}", answer


@dataclass(frozen=True)
class RehearsalConfig:
    """The flags of this script."""

    out: str = flag("rehearsal", "folder of the three files")
    rows: int = flag(3000, "of all files together")
    seed: int = flag(0, "of rows and images")


def main(config: RehearsalConfig) -> None:
    check_at_least(20, config, "rows")  # each file gets some
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, (source, part) in FILES.items():
        write(out / name, source, round(config.rows * part), config.seed)
        print(f"written: {out / name}")
    print(f"to train on them: python train.py --data deepeyes --root {out}")


if __name__ == "__main__":
    run_command(main, lambda argv: parse(RehearsalConfig, argv, __doc__)[0])
