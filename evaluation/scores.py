"""What training and evaluation share: records of answers, the scores made from them, and the statistics of a
training step."""

from collections import Counter, defaultdict
from itertools import combinations, groupby
from statistics import fmean

import torch

from data import Sample
from evaluation.stats import mcnemar, wilson
from grading.answers import chosen_by, unwrap
from grading.boxes import contains, iou
from grading.correct import is_correct
from options import controls
from reward import WEIGHTS
from rollout import Trajectory, first_turns, rollout
from runlog.tables import table
from tools import TOOL

OVERLONG = ("turns", "length", "budget")  # a trajectory that ran out of turns or tokens
CUT = ("length", "budget")  # a trajectory that ran out of tokens
MOST_CUT = 0.05  # a larger fraction of cut answers says more of the budget than of the model
REPEATED = 8  # the same token this many times in a row is garbage
LOOK_TWICE = 0.05  # a smaller fraction of trajectories with two crops says nothing of second looks


def best_iou(trajectory: Trajectory) -> float | None:
    """Mean over the zoomed boxes of the IoU with the best-matching target. None without boxes or targets."""
    targets = trajectory.sample.boxes
    boxes = trajectory.boxes
    if not targets or not boxes:
        return None
    return fmean(max(iou(box, target) for target in targets) for box in boxes)


def shows_all(trajectory: Trajectory) -> bool | None:
    """Does some crop hold each thing that must be read (`meta["glyphs"]`, else the target boxes) wholly?

    None without crops or targets.
    """
    sample = trajectory.sample
    boxes = trajectory.boxes
    if not boxes or not sample.boxes:
        return None
    wanted = sample.meta.get("glyphs") or sample.boxes
    return all(any(contains(box, glyph) for box in boxes) for glyph in wanted)


def says_shown(trajectory: Trajectory) -> bool | None:
    """In the swap arm: is the answer what the other thing's crop shows? None without a crop."""
    swapped = controls.swapped(trajectory.sample)
    if swapped is None or not trajectory.boxes:
        return None
    _, shown = swapped
    return unwrap(trajectory.answer or "") == shown


def mean(values) -> float | None:
    """The mean of the values that are not None; None if there are no such values."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def mean_of_processes(parts: list[dict], key: str) -> float | None:
    """A step's value, from those of its processes. A tool that a process has not used has the rate 0 there.

    >>> mean_of_processes([{"iou": None}, {"iou": 0.5}], "iou")
    0.5
    >>> mean_of_processes([{}, {"rate_image_rotate_tool": 0.5}], "rate_image_rotate_tool")
    0.25
    """
    unseen = 0.0 if key.startswith("rate_") else None
    return mean(part.get(key, unseen) for part in parts)


# --------------------------------------------------------------------------------------------------
# Answers -> records -> scores.


def plain_grade(trajectory: Trajectory, judge=None) -> dict:
    """`right`: is the answer correct by the rules of the reward? `said`: what it chose, yes, no, or the
    letter of an option."""
    sample = trajectory.sample
    answer = trajectory.answer
    if not answer:
        return {"right": False, "said": None}
    said = chosen_by(answer, sample.answer, sample.options)
    return {"right": is_correct(answer, sample, judge), "said": said}


def make_record(trajectory: Trajectory, grade: dict, arm: str, repeat: int = 0) -> dict:
    """What is kept of an answer; every score is made from these. grade: at least `right` and `said`."""
    sample = trajectory.sample
    record = {
        "arm": arm,
        "repeat": repeat,
        "id": sample.id,
        "gold": sample.answer,
        "answer": trajectory.answer,
        "options": sample.options,
        "meta": sample.meta,
        "stop": trajectory.stop,
        "turns": trajectory.turns,
        "boxes": trajectory.boxes,
        "tools": trajectory.used,
        "targets": sample.boxes,
        "errors": len(trajectory.errors),
        "tokens": sum(trajectory.sampled),
        "iou": best_iou(trajectory),
        "holds": shows_all(trajectory),
        "says_shown": says_shown(trajectory) if arm == "swap" else None,
    }
    return record | grade


def tools_used(record: dict) -> list[str]:
    """The tools that brought a record's images. Older records, of zooms alone, have no such field."""
    return record.get("tools", [TOOL] * len(record["boxes"]))


def other_rates(used: list[list[str]]) -> dict[str, float]:
    """How often each tool but the zoom was used. used: the tools of each trajectory.

    >>> other_rates([["image_zoom_in_tool"], ["image_rotate_tool", "image_zoom_in_tool"]])
    {'rate_image_rotate_tool': 0.5}
    """
    others = set().union(*used) - {TOOL}
    return {f"rate_{name}": fmean(name in names for names in used) for name in sorted(others)}


def question_group(record: dict):
    """Questions that are not independent (rotations, variants, sentences) share a group."""
    return record["meta"].get("group", record["id"])


def summarise(records: list[dict]) -> dict:
    """The scores of some records. Means and fractions are over answers where nothing else is said.

    n                number of questions
    accuracy         fraction correct; interval: 95 %, a group of questions with all its repeats counts once
    pass             with repeats: fraction of questions with at least one correct answer
    tool_rate        fraction with at least one crop; crops: their mean number
    iou              mean of `best_iou`
    holds            fraction for which `shows_all` is true
    says_shown       in the swap arm: fraction that names what the wrong crop shows
    cut              fraction that ran out of tokens
    unanswered       fraction without an answer, though not cut
    favourite        fraction that chose the most frequent option: near 1, the model always says the same
    tokens, errors   mean number of sampled tokens, and of refused calls
    seconds          mean seconds of an answer: those of its batch, divided evenly
    """
    right_by_question = defaultdict(list)
    for record in records:
        right_by_question[record["id"]].append(record["right"])
    n = len(right_by_question)
    accuracy = fmean(record["right"] for record in records)
    independent = len({question_group(record) for record in records})
    said = Counter(record["said"] for record in records if isinstance(record["said"], str))
    summary = {"n": n, "accuracy": accuracy, "interval": wilson(accuracy, independent)}
    if len(records) > n:
        summary["pass"] = fmean(map(any, right_by_question.values()))
    used = list(map(tools_used, records))
    summary["tool_rate"] = mean(map(bool, used))
    summary["crops"] = mean(map(len, used))
    summary |= other_rates(used)
    for key in ("iou", "holds", "tokens", "seconds", "errors", "says_shown"):
        summary[key] = mean(record.get(key) for record in records)
    summary["cut"] = fmean(record["stop"] in CUT for record in records)
    silent = [record["answer"] is None and record["stop"] not in CUT for record in records]
    summary["unanswered"] = fmean(silent)
    summary["favourite"] = max(said.values()) / len(records) if said else None
    return summary


def summarise_by_kind(records: list[dict]) -> dict[str, dict]:
    """The summary of all, and of every `meta["kind"]`."""
    kinds = defaultdict(list)
    for record in records:
        kinds["all"].append(record)
        if kind := record["meta"].get("kind"):
            kinds[str(kind)].append(record)
    return {kind: summarise(rows) for kind, rows in sorted(kinds.items())}


def compare_arms(records: list[dict], one: str, other: str) -> dict | None:
    """The same questions in two arms, first answers only. gain: fraction correct in `one` alone; harm: in
    `other` alone; p: of McNemar's test, in which a group of questions counts once, for the arm with more
    correct answers. None if the arms share no question."""
    right = defaultdict(dict)
    groups = {}
    for record in records:
        if record["repeat"] == 0:
            right[record["arm"]][record["id"]] = record["right"]
            groups[record["id"]] = question_group(record)
    shared = right[one].keys() & right[other].keys()
    if not shared:
        return None
    gain = sum(right[one][i] and not right[other][i] for i in shared)
    harm = sum(right[other][i] and not right[one][i] for i in shared)
    ahead = Counter()
    for i in shared:
        ahead[groups[i]] += right[one][i] - right[other][i]
    better = sum(lead > 0 for lead in ahead.values())
    worse = sum(lead < 0 for lead in ahead.values())
    n = len(shared)
    return {
        "n": n,
        "gain": gain / n,
        "harm": harm / n,
        "difference": (gain - harm) / n,
        "p": mcnemar(better, worse),
    }


def paired_text(one: str, other: str, found: dict) -> str:
    """What `compare_arms` found, as a line for people."""
    return (
        f"{one} against {other}: {found['difference']:+.3f}; correct with {one} alone {found['gain']:.3f}, "
        f"with {other} alone {found['harm']:.3f} (McNemar p = {found['p']:.2g}, {found['n']} questions)"
    )


def swap_text(by_kind: dict) -> str:
    """What the swap arm tells, as a line for people; "" where nothing is known. by_kind: its summaries."""
    kind = "read" if "read" in by_kind else "all"
    shown = by_kind.get(kind, {}).get("says_shown")
    if shown is None:
        return ""
    return f"swap: shown another tile's crop, it says that one's letter: {shown:.2f} (says_shown of {kind})"


def possible_arms(samples: list[Sample], arms) -> list[str]:
    """The arms that these questions can be asked in: oracle and swap need something to show."""
    missing = set()
    if not any(sample.boxes for sample in samples):
        missing.add("oracle")
    if not any(map(controls.swapped, samples)):
        missing.add("swap")
    return [arm for arm in arms if arm not in missing]


def answer_questions(model, processor, samples: list[Sample], arm: str, **settings) -> list[Trajectory]:
    """One trajectory for each sample in one of `ARMS`, greedy unless the settings (of `rollout`) differ."""
    forced = arm == "forced"
    usual = {"temperature": 0.0, "seed": 0, "tool": "on" if forced else arm}
    return rollout(model, processor, samples, force_call=forced, **usual | settings)


def answer_records(
    model, processor, samples: list[Sample], arm: str, judge=None, known: dict | None = None, **settings
) -> list[dict]:
    """The records of an arm's greedy answers, graded by the rules of the reward. known: first turns, added
    in the arm "on", taken over in the others."""
    trajectories = answer_questions(model, processor, samples, arm, known=known, **settings)
    if known is not None and arm == "on":
        known |= first_turns(trajectories)
    return [make_record(t, plain_grade(t, judge), arm) for t in trajectories]


def cut_warning(arms: dict[str, dict]) -> str:
    """What to raise if many answers were cut, else "". arms: summaries by arm and kind."""
    fractions = {arm: by_kind["all"].get("cut") or 0.0 for arm, by_kind in arms.items()}
    worst = max(fractions, key=fractions.get)
    if fractions[worst] <= MOST_CUT:
        return ""
    return f"{worst}: {fractions[worst]:.0%} of the answers were cut: raise --max_turn_tokens, --max_tokens"


def score_table(arms: dict[str, dict]) -> str:
    """Scores as a table, under their names in eval.json, and a legend. arms: summaries by arm and kind."""
    kinds = sorted(set().union(*arms.values()), key=lambda kind: (kind != "all", kind))
    rows = [["arm", "n", *kinds, "interval", "iou", "cut"]]
    for arm, by_kind in arms.items():
        overall = by_kind["all"]
        row = [arm, str(overall["n"])]
        row += [accuracy_text(by_kind.get(kind)) for kind in kinds]
        row.append("{:.3f}-{:.3f}".format(*overall["interval"]) if "interval" in overall else "-")
        for value in (by_kind.get("read", overall)["iou"], overall.get("cut")):
            row.append("-" if value is None else f"{value:.2f}")
        rows.append(row)
    legend = "accuracy (tool_rate) by kind; interval: 95 %, of all; iou: crops with targets"
    legend += ", of read" if "read" in kinds else ""
    legend += "; cut: out of tokens"
    if any("oracle" in arm for arm in arms):
        legend += (
            "\noracle: its iou is that of the boxes it asked for, not of the perfect crops that it was shown"
        )
    return f"{table(rows)}\n{legend}"


def accuracy_text(summary: dict | None) -> str:
    return f"{summary['accuracy']:.3f} ({summary['tool_rate']:.2f})" if summary else "-"


# --------------------------------------------------------------------------------------------------
# A training step.


def is_dead(group: list[Trajectory]) -> bool:
    """Did all members of a group get the same reward? Such a group has no advantage and no gradient."""
    totals = [trajectory.reward.total for trajectory in group]
    return max(totals) - min(totals) < 1e-6


def repeated(trajectories: list[Trajectory]) -> float | None:
    """Of the trajectories that look twice, the fraction that look at the same place: two boxes whose IoU is
    above 0.5. A closer look, of half the width, has 0.25. None if hardly any look twice."""
    several = [t.boxes for t in trajectories if len(t.boxes) > 1]
    if len(several) < LOOK_TWICE * len(trajectories):
        return None
    return mean(any(iou(*pair) > 0.5 for pair in combinations(boxes, 2)) for boxes in several)


def is_garbage(trajectory: Trajectory) -> bool:
    """Did the model write the same token many times in a row?"""
    written = [token for token, sampled in zip(trajectory.completion_ids, trajectory.sampled) if sampled]
    return any(len(list(run)) >= REPEATED for _, run in groupby(written))


def largest_gap(trajectories: list[Trajectory], logprobs: torch.Tensor) -> float:
    """The largest difference between the trainer's and the sampler's logprobs of the sampled tokens. Rounding
    alone should cause it. logprobs: of the trainer, (all sampled tokens,)."""
    sampler = []
    for trajectory in trajectories:
        sampler += [lp for lp, sampled in zip(trajectory.logprobs, trajectory.sampled) if sampled]
    return (logprobs.cpu() - torch.tensor(sampler)).abs().max().item()


def step_stats(groups: list[list[Trajectory]]) -> dict:
    """The statistics of a step: means over its trajectories, None where there was nothing to average.

    docs/metrics.md says what each key is.
    """
    trajectories = [t for group in groups for t in group]
    zoomed = [t for t in trajectories if t.delivered]
    lucky = [best_iou(t) == 0 for t in zoomed if t.boxes and t.sample.boxes and t.reward.accuracy]
    stats = {
        "reward": mean(t.reward.total for t in trajectories),
        "accuracy": mean(t.reward.accuracy for t in trajectories),
        "format": mean(t.reward.format for t in trajectories),
        "tool_rate": mean(bool(t.delivered) for t in trajectories if t.sample.tool),
        "calls": mean(len(t.calls) for t in trajectories),
        "delivered": mean(t.delivered for t in trajectories),
        "errors": mean(len(t.errors) for t in trajectories),
        "iou": mean(map(best_iou, trajectories)),
        "acc_zoom": mean(t.reward.accuracy for t in zoomed),
        "acc_no_zoom": mean(t.reward.accuracy for t in trajectories if not t.delivered),
        "tokens": mean(sum(t.sampled) for t in trajectories),
        "dead_groups": mean(map(is_dead, groups)),
        "repeats": repeated(trajectories),
        "blind_luck": mean(lucky),
        "garbage": mean(map(is_garbage, trajectories)),
        "overlong": mean(t.stop in OVERLONG for t in trajectories),
        "reward_price": mean(-t.reward.price for t in trajectories),
        "reward_curiosity": mean(t.reward.curiosity for t in trajectories),
    }
    for index, term in enumerate(("accuracy", "format", "tool")):
        paid = (WEIGHTS[t.sample.tool][index] * getattr(t.reward, term) for t in trajectories)
        stats[f"reward_{term}"] = mean(paid)
    stats |= other_rates([t.used for t in trajectories])
    for kind in sorted({t.sample.meta.get("kind") or "" for t in trajectories} - {""}):
        asked = [t for t in trajectories if t.sample.meta.get("kind") == kind]
        stats[f"accuracy_{kind}"] = mean(t.reward.accuracy for t in asked)
        stats[f"tool_rate_{kind}"] = mean(bool(t.delivered) for t in asked)
    return stats
