"""The held-out questions of a run, asked before and after training: scores in eval.json, answers in
answers.jsonl, and comparisons of before with after."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from config import ENOUGH, EVAL_SEED, TrainConfig, where_rows_are
from data import Sample, load, mix, readable
from evaluation.scores import (
    answer_records,
    compare_arms,
    mean,
    paired_text,
    possible_arms,
    question_group,
    summarise_by_kind,
    swap_text,
)
from grading.boxes import iou
from safe.files import append_rows, keep_rows, read_json, read_rows, write_json
from safe.memory import in_memory, phase

TOY_SIZE = 4096  # questions of the toy; their order must not depend on the number of steps
# The fields of a record that answers.jsonl keeps.
KEPT = ["id", "arm", "gold", "answer", "right", "stop", "boxes", "targets", "iou", "holds", "says_shown"]


def load_questions(config: TrainConfig) -> tuple[list[Sample], list[Sample]]:
    """The questions to train on, and the held-out ones."""
    where = where_rows_are(config)
    limit = config.limit or (TOY_SIZE if config.data.startswith("toy") else None)
    samples = load(config.data, split="train", limit=limit, seed=config.seed, **where)
    if config.mix:
        samples = mix(samples, config.mix, config.seed)
    if len(samples) < config.prompts:
        raise ValueError(f"{config.data} has {len(samples)} questions, but --prompts {config.prompts}")
    if not config.eval_size:
        return samples, []
    test_part = {"split": "test", "limit": config.eval_size, "seed": EVAL_SEED}
    held_out = readable(load(config.data, **where, **test_part))
    if len(held_out) < ENOUGH <= config.eval_size:
        remedy = 'give rows "split": "test"'
        print(f"{len(held_out)} questions are held out, too few to tell much: {remedy}")
    return samples, held_out


@dataclass
class Validation:
    """The held-out questions, whose scores before and after training are kept in eval.json."""

    samples: list[Sample]
    file: Path
    settings: dict  # of the rollouts
    judge: Callable | None

    @property
    def answers(self) -> Path:
        return self.file.with_name("answers.jsonl")

    def stored(self) -> dict:
        return read_json(self.file)

    def score(self, model, processor, when: str, arms, steps: int = 0) -> dict:
        """Scores by arm. An arm's scores are stored at once. It is not asked twice, unless a judge was away.

        when: "before" or "after" `steps`.
        """
        stored = self.stored()
        if when == "after" and stored.get("steps") != steps:  # the run has been prolonged since
            stored |= {"after": {}, "steps": steps}
        unjudged = stored.setdefault("unjudged", {})
        known = {}
        for arm in possible_arms(self.samples, arms):
            name = f"{when}: {arm}"
            again = self.judge and unjudged.get(name)
            if arm in stored.setdefault(when, {}) and not again:
                continue
            print(f"  {arm}: {len(self.samples)} questions ...", flush=True)
            missed = self.judge.missed if self.judge else 0
            settings = self.settings | {"judge": self.judge, "progress": True, "known": known}
            ask = partial(answer_records, model, processor, self.samples, arm, **settings)
            with phase("rollout"):
                records = in_memory(ask, settings["batch"])
            unjudged.pop(name, None)
            if self.judge and self.judge.missed > missed:
                unjudged[name] = self.judge.missed - missed
                print(f"  {self.judge.say_missed()}")
            self.store_answers(when, arm, records)
            stored[when][arm] = summarise_by_kind(records)
            write_json(self.file, stored)
        return stored[when]

    def store_answers(self, when: str, arm: str, records: list[dict]) -> None:
        """Store the answers of an arm, in place of older ones, which a killed run may have left."""
        keep_rows(self.answers, lambda row: (row["when"], row["arm"]) != (when, arm))
        rows = []
        for record in records:
            row = {"when": when, "kind": record["meta"].get("kind")}
            row["group"] = question_group(record)
            rows.append(row | {key: record[key] for key in KEPT})
        append_rows(self.answers, *rows)

    def compare(self) -> dict:
        """What training changed, question by question. Stored in eval.json under "paired" and "aim"."""
        rows = read_rows(self.answers)
        stored = self.stored()
        stored["paired"] = compare_times(rows)
        if aim := aim_of(rows):
            stored["aim"] = aim
        write_json(self.file, stored)
        return stored


def compare_times(rows: list[dict]) -> dict[str, dict]:
    """`compare_arms` of after with before, for each arm that was asked both times."""
    records = []
    for row in rows:
        meta = {"group": row["group"]}
        records.append(row | {"arm": f"{row['when']}: {row['arm']}", "repeat": 0, "meta": meta})
    found = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        compared = compare_arms(records, f"after: {arm}", f"before: {arm}")
        if compared:
            found[arm] = compared
    return found


def aim_of(rows: list[dict]) -> dict[str, float]:
    """The mean IoU of forced crops with their targets, before and after, and a control: the boxes of before,
    resized to the mean size of those after. What `after` has beyond the control comes from better placement.

    Of `read` questions only, where there are any.
    """
    boxes = {}
    for when in ("before", "after"):
        forced = [r for r in rows if (r["when"], r["arm"]) == (when, "forced")]
        kind = "read" if any(row["kind"] == "read" for row in forced) else None
        asked = [row for row in forced if row["targets"] and kind in (None, row["kind"])]
        boxes[when] = [(box, row["targets"]) for row in asked for box in row["boxes"]]
    if not all(boxes.values()):
        return {}
    width = mean(box[2] - box[0] for box, _ in boxes["after"])
    height = mean(box[3] - box[1] for box, _ in boxes["after"])
    resized = [(resized_box(box, width, height), targets) for box, targets in boxes["before"]]
    return {
        "before": mean_iou(boxes["before"]),
        "before, at the size of after": mean_iou(resized),
        "after": mean_iou(boxes["after"]),
    }


def mean_iou(pairs) -> float:
    """pairs: (box, targets), original pixels; the best-matching target counts."""
    return mean(max(iou(box, target) for target in targets) for box, targets in pairs)


def resized_box(box, width: float, height: float):
    """The box of this size around the same centre.

    >>> resized_box((0, 0, 10, 10), 4, 2)
    (3.0, 4.0, 7.0, 6.0)
    """
    x = (box[0] + box[2]) / 2
    y = (box[1] + box[3]) / 2
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def comparison_text(stored: dict) -> str:
    """What `Validation.compare` found, in lines for people."""
    lines = []
    for arm, found in stored["paired"].items():
        lines.append(paired_text(f"{arm} after", f"{arm} before", found))
    if aim := stored.get("aim"):
        means = ", ".join(f"{name} {value:.2f}" for name, value in aim.items())
        lines.append(f"IoU of forced crops: {means}")
    lines.append(swap_text(stored.get("after", {}).get("swap", {})))
    return "\n".join(filter(None, lines))
