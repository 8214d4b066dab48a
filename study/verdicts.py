"""What was measured for each claim, and its verdict: claims.toml is a table, and this reads it.

A claim of the table has `rows`, what it shows and judges by. A row is

    label = ...      in the page's table; a row without one is only judged by
    name = ...       for the lines below
    arm = ...        of arms.py, or "base" and its like
    of = ...         "zooms read": the mean of a measure (stored.py), of a kind of question or of all;
                     "right read @ mixed forced": on other data, in another arm of eval.py;
                     or one of COMPUTED: "metric tool_rate @ last 10", "fall calls" ...
    minus_mean, minus_seed = the name of a row above: what is left after it
    optional = true  the claim is judged without it, too

and beside them

    difference = ["one", "other"]           the difference of two rows, `difference` from here on
    gains = {above = ["after", "before"]}   one row above another, question by question
    ratio = {part = ["a", "b", "c", "d"]}   (a - b) / (c - d), of the means of four rows
    p = ["one", "other"]                    the exact p of two rows
    pays = ["priced"]                       these arms zoom where it pays, and only there, in every seed
    effect = "..."                          in a line, with {row.mean:.2f}, {above.text}, {difference.text}
    refuted, supported = ["most after >= 0.9", "max grey >= min after"]
                     any of the first refutes, all of the second support; `otherwise` is the word if neither.
                     most: of all seeds but one (of three: of all). low, high: of an interval.
"""

import math
import operator
import tomllib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np

from evaluation.stats import detectable, difference_interval, permutation_p, two_way_interval
from evaluation.validation import resized_box
from grading.boxes import iou
from study.arms import ALL_KINDS, ARMS, BASES, KEPT, LETTERS, MORE_TILES, PLAIN, SIZES, SMALLER, of_size
from study.stored import BEFORE, MEASURES, Stored, mean_known, with_arms

CLAIMS = Path(__file__).with_name("claims.toml")
DATA = {
    "toy": PLAIN,
    "mixed": ALL_KINDS,
    "letters": LETTERS,
    "tiles": MORE_TILES,
    "smaller": SMALLER,
} | {f"{pixels}px": of_size(pixels) for pixels in SIZES}
FORCED = f"{PLAIN} | forced"
SAMPLED = f"{PLAIN} | sampled"
MIXED = f"{ALL_KINDS} | on"
TABLE_KEYS = "rows difference gains ratio p pays effect refuted supported otherwise"
KINDS = ("read", "compare", "glance", "legible")
FOLDS = ("most", "min", "max", "mean", "low", "high")
SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
ROW_KEYS = "label name arm of minus_mean minus_seed optional"


@dataclass
class Row:
    """What was measured: a value for each seed, and where it is of questions a table of them."""

    values: list[float]
    table: list[list[float]] = field(default_factory=list)  # (seeds, questions)
    interval: tuple[float, float] | None = None
    text: str = ""

    @property
    def mean(self) -> float:
        return fmean(self.values) if self.values else math.nan

    @property
    def sum(self) -> float:
        return sum(self.values)


@dataclass
class Finding:
    """A claim and what became of it."""

    claim: str
    source: str
    why: str
    refuted_if: str = ""
    word: str = "not run"
    dots: list[tuple[str, list[float]]] = field(default_factory=list)  # a value for each seed
    effect: str = ""
    base: str = ""  # whose runs these are
    others: list[tuple[str, str]] = field(default_factory=list)  # another base, and the word there
    compared: dict[str, tuple] = field(default_factory=dict)  # of a gain or difference, its two tables
    both: str = ""  # the gains and differences over both bases
    p: tuple[float, float] | None = None  # exact, and the least that it could be


def findings(stores: dict[str, Stored]) -> list[Finding]:
    """Every claim, with a verdict where its runs are there: by the first base that has all of them, and the
    word on each other base. Raises ValueError for an unknown name."""
    texts = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))
    numbers = {name: number for number, name in enumerate(texts, 1)}
    found = []
    for name, text in texts.items():
        words = {key: value for key, value in text.items() if key not in TABLE_KEYS.split()}
        words["why"] = text["why"].format(**numbers)  # claims refer to one another
        try:
            unjudged = Finding(**words)
            needed = arms_needed(text)
            unjudged.word = "not run" if needed else "not tested"
            judged = []
            for base, stored in with_arms(stores, needed).items() if needed else ():
                judged.append(Finding(**words, base=base))
                judge(judged[-1], text, stored)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{CLAIMS.name}, [{name}]: {error}") from error
        finding = judged[0] if judged else unjudged
        finding.others = [(other.base, other.word) for other in judged[1:]]
        finding.both = over_bases([each for each in judged if each.base != BEFORE])
        found.append(finding)
    return found


def arms_needed(text: dict) -> set[str]:
    """The arms without which a claim can't be judged. Raises ValueError for a name that means nothing."""
    if ("rows" in text or "pays" in text) != ("refuted_if" in text):
        raise ValueError("what would refute it is written in words and as a table, or in neither")
    check(text)
    return {row["arm"] for row in text.get("rows", []) if not row.get("optional")} | set(text.get("pays", []))


def judge(finding: Finding, text: dict, stored: Stored) -> None:
    """Give a finding its rows, its effect and its word, by its table in claims.toml."""
    rows = {}
    for spec in text.get("rows", []):
        row = measure(stored, spec)
        for key, by_seed in (("minus_mean", False), ("minus_seed", True)):
            if key in spec:
                row = Row(subtract(row.values, rows[spec[key]], by_seed))
        if "name" in spec:
            rows[spec["name"]] = row
        if "label" in spec and (row.values or not spec.get("optional")):
            finding.dots.append((spec["label"], row.values))
    pays = [zooms_where_it_pays(finding, stored, arm) for arm in text.get("pays", [])]
    for name, (after, before) in text.get("gains", {}).items():
        rows[name] = gain(rows[after], rows[before])
        finding.compared[name] = rows[name].table, [[0.0] * len(rows[name].table[0])]
    if "difference" in text:
        one, other = (rows[name] for name in text["difference"])
        rows["difference"] = difference(one, other)
        finding.compared["difference"] = one.table, other.table
    for name, four in text.get("ratio", {}).items():
        a, b, c, d = (rows[each].mean for each in four)
        rows[name] = Row([(a - b) / (c - d)])
    if "p" in text:
        finding.p = permutation_p(*(rows[name].values for name in text["p"]))
    finding.effect = text.get("effect", "").format(**rows)
    if any(holds(condition, rows) for condition in text.get("refuted", [])):
        finding.word = "refuted"
    elif all(pays) and all(holds(condition, rows) for condition in text.get("supported", [])):
        finding.word = "supported"
    else:
        finding.word = text.get("otherwise", "undecided")


def over_bases(judged: list[Finding]) -> str:
    """Each gain and difference of a claim over several bases, drawn anew as seeds are; "" for one base."""
    texts = []
    for name in judged[0].compared if len(judged) > 1 else ():
        pairs = [finding.compared[name] for finding in judged]
        mean = fmean(np.mean(one) - np.mean(other) for one, other in pairs)
        low, high = difference_interval(*pairs)
        texts.append(f"{name} {mean:+.3f} ({low:+.3f} to {high:+.3f})")
    return ", ".join(texts)


def check(text: dict) -> None:
    """Raise ValueError for a name that means nothing: a misspelt one must not go unseen."""
    names = {"difference", *text.get("gains", {}), *text.get("ratio", {})}
    for row in text.get("rows", []):
        check_row(row)
        names.add(row.get("name"))
    for arm in text.get("pays", []):
        check_asked(arm, "mixed on")
    used = text.get("difference", []) + text.get("p", [])
    for several in (text.get("gains", {}), text.get("ratio", {})):
        used += [name for row in several.values() for name in row]
    for condition in text.get("refuted", []) + text.get("supported", []):
        fold, name, sign, *limit = condition.removeprefix("not ").split()
        if fold not in FOLDS or sign not in SIGNS:
            raise ValueError(f"{condition!r} does not begin with one of {', '.join(FOLDS)}, a row and a sign")
        used += [name, *limit[1:]]
    for name in used:
        if name not in names:
            raise ValueError(f"no row is called {name!r}")


def check_row(row: dict) -> None:
    for key in row:
        if key not in ROW_KEYS.split():
            raise ValueError(f"{key!r} is no key of a row; known: {ROW_KEYS}")
    what, _, where = row["of"].partition(" @ ")
    name, *rest = what.split()
    if name in COMPUTED:
        if name in OF_METRICS and rest[0] not in KEPT:
            raise ValueError(f"the runs keep no metric {rest[0]!r}")
        check_asked(row["arm"])
        return
    if name not in MEASURES:
        raise ValueError(f"no measure is called {name!r}; known: {', '.join([*MEASURES, *COMPUTED])}")
    if unknown := set(rest) - set(KINDS):
        raise ValueError(f"no kind of question is called {unknown.pop()!r}")
    check_asked(row["arm"], where or "toy on")


def check_asked(arm: str, where: str = "") -> None:
    """Is there such an arm, and is it asked there ("toy on")?"""
    asked = {each.name: each.asked for each in ARMS} | BASES
    if arm not in asked:
        raise ValueError(f"no arm is called {arm!r}")
    data, _, way = where.partition(" ")
    if where and (DATA.get(data), way) not in asked[arm]:
        raise ValueError(f"{arm!r} is not asked {where!r}; see arms.py")


# --------------------------------------------------------------------------------------------------
# Rows.


def measure(stored: Stored, spec: dict) -> Row:
    """What `of` says of an arm."""
    what, _, where = spec["of"].partition(" @ ")
    name, *rest = what.split()
    if name in COMPUTED:
        return COMPUTED[name](stored, spec["arm"], *rest, *where.split())
    data, way = (where or "toy on").split()
    table = stored.scores(spec["arm"], f"{DATA[data]} | {way}", name, *rest)
    return Row(list(map(fmean, table)), table)


def subtract(values: list[float], others: Row, by_seed: bool) -> list[float]:
    if by_seed:
        return [one - other for one, other in zip(values, others.values)]
    return [value - others.mean for value in values] if others.values else []


def gain(after: Row, before: Row) -> Row:
    """After minus before, question by question. before: of as many seeds, or of one for all."""
    tables = before.table if len(before.table) > 1 else before.table * len(after.table)
    table = [[a - b for a, b in zip(*pair)] for pair in zip(after.table, tables)]
    values = list(map(fmean, table))
    low, high = two_way_interval(table)
    return Row(values, table, (low, high), f"{fmean(values):+.3f} ({low:+.3f} to {high:+.3f})")


def difference(one: Row, other: Row) -> Row:
    """Between two arms, each of its own seeds and the same questions, with the exact p of the seeds."""
    low, high = difference_interval((one.table, other.table))
    text = f"{one.mean - other.mean:+.3f} ({low:+.3f} to {high:+.3f})"
    if min(len(one.values), len(other.values)) > 1:
        text += f" ({detectable(one.values, other.values):.3f} would have been seen)"
    return Row([one.mean - other.mean], [], (low, high), text)


def metric(stored: Stored, arm: str, key: str, *steps: str) -> Row:
    """The mean of a key of metrics.jsonl over "last 10" steps, "first 10", or "31 to 40"."""
    where = {
        "last": slice(-int(steps[-1]), None),
        "first": slice(int(steps[-1])),
    }.get(steps[0]) or slice(int(steps[0]) - 1, int(steps[-1]))
    return Row([mean_known(row[where]) for row in stored.metric(arm, key)])


def fall(stored: Stored, arm: str, key: str) -> Row:
    """The peak of a key of metrics.jsonl, minus its last ten steps."""
    return Row([peak_minus_last(values) for values in stored.metric(arm, key)])


def peak_minus_last(calls: list[float], window: int = 5) -> float:
    """
    >>> peak_minus_last([1, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    1.0
    """
    smooth = [fmean(calls[i : i + window]) for i in range(len(calls) - window + 1)]
    return max(smooth) - fmean(calls[-10:])


def first_step(stored: Stored, arm: str, key: str) -> Row:
    """The first step at which a key of metrics.jsonl is 0.9 and more; one past the last if there is none."""
    found = []
    for rates in stored.metric(arm, key):
        high = [step for step, rate in enumerate(rates, 1) if rate is not None and rate >= 0.9]
        found.append(high[0] if high else len(rates) + 1)
    return Row(found)


def as_large(stored: Stored, arm: str) -> Row:
    """IoU of the base's first boxes on forced `read`, their centres kept, as large as the arm's are."""
    table = []
    for line in stored.runs(arm):
        own = list(filter(None, first_crops(line)))
        width = fmean(box[2] - box[0] for box, _ in own)
        height = fmean(box[3] - box[1] for box, _ in own)
        overlaps = []
        for crop in first_crops(stored.runs("base")[0]):
            overlaps.append(iou(resized_box(crop[0], width, height), crop[1]) if crop else 0.0)
        table.append(overlaps)
    return Row(list(map(fmean, table)), table)


def first_crops(line: dict) -> list:
    """(box, target) of each forced `read` question."""
    answers = line["asked"][FORCED]
    return [crop for crop, kind in zip(answers["first"], answers["kinds"]) if kind == "r"]


def again(stored: Stored, arm: str, which: str) -> Row:
    """Of sampled `read` answers that zoomed, how many zoomed again after a crop that "missed", or that "hit";
    how many "more" after a miss; or the "number" of misses, the only value of a run without one."""
    values = []
    for line in stored.runs(arm):
        missed, hit = zooms_again(line)
        if which == "number":
            values.append(len(missed))
        elif which == "hit":
            values.append(fmean(hit))
        elif missed:
            values.append(fmean(missed) - (fmean(hit) if which == "more" else 0))
    return Row(values)


def zooms_again(line: dict) -> tuple[list[float], list[float]]:
    answers = line["asked"][SAMPLED]
    missed = []
    hit = []
    for kind, crops, first in zip(answers["kinds"], answers["crops"], answers["first"]):
        if kind == "r" and first:
            group = missed if iou(*first) < 0.05 else hit
            group.append(float(int(crops) > 1))
    return missed, hit


def lost(stored: Stored, arm: str, limit: str) -> Row:
    """What of each of the base's own skills is lost; its text names those of which more than the limit is."""
    losses = []
    text = ""
    for name, value in stored.runs("base")[0]["skills"].items():
        losses.append(value - fmean(line["skills"][name] for line in stored.runs(arm)))
        if losses[-1] > float(limit):
            text += f"; of the skill `{name}` {losses[-1]:.3f} is lost"
    return Row(losses, text=text)


OF_METRICS = ("metric", "fall", "first_step")  # of COMPUTED, those whose next word is a key of metrics.jsonl
COMPUTED = {
    "metric": metric,
    "fall": fall,
    "first_step": first_step,
    "as_large": as_large,
    "again": again,
    "lost": lost,
}


# --------------------------------------------------------------------------------------------------
# Judges.


def holds(condition: str, rows: dict[str, Row]) -> bool:
    """Does "most after >= 0.9" or "max grey >= min after" hold? Without a value nothing does.

    >>> holds("min a > 0.5", {"a": Row([0.6, 0.9])}), holds("max a < min b", {"a": Row([1]), "b": Row([])})
    (True, False)
    """
    if condition.startswith("not "):
        return not holds(condition.removeprefix("not "), rows)
    fold, name, sign, *limit = condition.split()
    value = folded(fold, rows[name], sign)
    bound = folded(limit[0], rows[limit[1]], sign) if limit[1:] else float(limit[0])
    return value is not None and bound is not None and SIGNS[sign](value, bound)


def folded(fold: str, row: Row, sign: str) -> float | None:
    """One number of a row. most: the worst but one, and of three or fewer the worst."""
    if fold in ("low", "high"):
        return row.interval[fold == "high"]
    if not row.values:
        return None
    if fold == "most":
        worst_first = sorted(row.values, reverse="<" in sign)
        return worst_first[1 if len(row.values) > 3 else 0]
    return {"min": min, "max": max, "mean": fmean}[fold](row.values)


def zooms_where_it_pays(finding: Finding, stored: Stored, arm: str) -> bool:
    """Show an arm's zooms by kind. In every seed few on what is seen at first sight, most on the others?"""
    asked = partial(stored.seed_means, arm, MIXED)
    held = []
    for kind in ("glance", "legible", "read", "compare"):
        zooms = asked("zooms", kind)
        finding.dots.append((f"{arm}: `tool_rate` on `{kind}`", zooms))
        pays = kind in ("read", "compare")
        held += [rate >= 0.95 if pays else rate <= 0.1 for rate in zooms]
        if pays:
            finding.dots.append((f"{arm}: accuracy on `{kind}`", asked("right", kind)))
    finding.dots.append((f"{arm}: two crops on `compare`", asked("twice", "compare")))
    return bool(held) and all(held)  # without answers nothing holds
