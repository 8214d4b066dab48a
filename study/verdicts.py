"""What was measured for each claim, and its verdict, by the thresholds that claims.toml states in words."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from evaluation.stats import detectable, difference_interval, permutation_p, two_way_interval
from evaluation.validation import of_size as resized
from grading.boxes import iou
from study.arms import ALL_KINDS, LETTERS, MORE_TILES, PLAIN, PRICES, SIZES, SMALLER, of_size
from study.stored import Stored, mean_known

SUPPORTED = "supported"
REFUTED = "refuted"
UNDECIDED = "undecided"
ON = f"{PLAIN} | on"
FORCED = f"{PLAIN} | forced"
SAMPLED = f"{PLAIN} | sampled"
MIXED = f"{ALL_KINDS} | on"
CLAIMS = Path(__file__).with_name("claims.toml")
GLANCES = "tool_rate_glance"  # in metrics.jsonl


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
    p: tuple[float, float] | None = None  # exact, and the least that it could be

    def show(self, label: str, values: list[float]) -> None:
        """Add a row of the table: a value for each seed."""
        self.dots.append((label, values))


def findings(stored: Stored) -> list[Finding]:
    """Every claim, with a verdict where its runs are there. Raises ValueError for an unknown name."""
    texts = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))
    tested = {name for name, text in texts.items() if "refuted_if" in text}
    if unknown := tested ^ set(NEEDS):
        raise ValueError(f"in {CLAIMS.name} or in NEEDS alone: {', '.join(sorted(unknown))}")
    numbers = {name: number for number, name in enumerate(texts, 1)}
    found = []
    for name, text in texts.items():
        text["why"] = text["why"].format(**numbers)  # claims refer to one another
        finding = Finding(**text)
        if name not in tested:
            finding.word = "not tested"
        elif all(map(stored.runs, NEEDS[name])):
            globals()[name](finding, stored)
        found.append(finding)
    return found


# The arms without which a claim can't be judged. Its function below has the same name.
NEEDS = {
    "zooming_emerges": ("base", "no bonus"),
    "without_bonus": ("no bonus",),
    "bonus_helps": ("bonus", "no bonus"),
    "unconditional_is_worse": ("bonus", "unconditional"),
    "no_gap_no_zoom": ("wide look",),
    "rate_shows_use": ("bonus, blank", "no bonus, blank"),
    "aims_better": ("base", "bonus", "bonus, blank"),
    "calls_rise_and_fall": ("bonus",),
    "text_is_not_enough": ("base", "zoom", "text alone"),
    "selection_helps": ("selected", "unfiltered"),
    "cold_start": ("cold base", "cold"),
    "looks_again": ("base", "bonus"),
    "generalises": ("base", "bonus"),
    "price_teaches_restraint": ("base", "paid", "priced"),
    "price_is_needed": ("priced", "unpriced"),
    "division_spoils_prices": ("priced", "priced by deviation"),
    "price_has_room": ("priced", *(f"priced, {price}" for price in PRICES)),
    "bonus_brings_calls": ("shy base", "shy", "shy, no bonus"),
    "price_suits_a_shy_base": ("shy base", "shy, priced"),
    "later_price_suits_a_shy_base": ("shy base", "shy, priced later"),
}


def most(values: list[float], holds) -> bool:
    """Does it hold in all seeds but one at most (of three: in all)?"""
    missing = sum(not holds(value) for value in values)
    return missing <= (1 if len(values) > 3 else 0)


def means(table: list[list[float]]) -> list[float]:
    return list(map(fmean, table))


def compare_seeds(finding: Finding, one, other, what: str) -> tuple[float, float]:
    """Add the difference of two arms, each (seeds, questions), to a finding; returns its interval."""
    low, high = difference_interval(one, other)
    first = means(one)
    second = means(other)
    difference = fmean(first) - fmean(second)
    finding.effect = f"{what}: {difference:+.3f} ({low:+.3f} to {high:+.3f})"
    finding.p = permutation_p(first, second)
    if min(len(first), len(second)) > 1:
        finding.effect += f" ({detectable(first, second):.3f} would have been seen)"
    return low, high


def contrast(finding: Finding, what: str, tables: dict) -> tuple[float, float]:
    """Show two arms, each (seeds, questions), and their difference; returns its interval."""
    for label, table in tables.items():
        values = means(table)
        finding.show(f"{what}, {label}", values)
    one, other = tables.values()
    names = " - ".join(tables)
    return compare_seeds(finding, one, other, names)


def gain(after, before) -> list[list[float]]:
    """(seeds, questions): after minus before, question by question. before: (1 or seeds, questions)."""
    if len(before) == 1:
        before = before * len(after)
    return [[a - b for a, b in zip(*pair)] for pair in zip(after, before)]


def mean_text(table) -> str:
    """The mean of a table with its interval over seeds and questions."""
    low, high = two_way_interval(table)
    return f"{fmean(means(table)):+.3f} ({low:+.3f} to {high:+.3f})"


# --------------------------------------------------------------------------------------------------
# One function for each claim, named as in claims.toml.


def zooming_emerges(finding: Finding, stored: Stored) -> None:
    values = stored.seed_means("base", ON, "zooms", "read")
    finding.show("`tool_rate` on `read`, base", values)
    after = stored.seed_means("no bonus", ON, "zooms", "read")
    finding.show("after, no bonus", after)
    finding.word = SUPPORTED if most(after, lambda rate: rate >= 0.9) else REFUTED


def without_bonus(finding: Finding, stored: Stored) -> None:
    after = stored.seed_means("no bonus", ON, "zooms", "read")
    finding.show("`tool_rate` on `read`", after)
    few = most(after, lambda rate: rate <= 0.1)
    many = most(after, lambda rate: rate >= 0.9)
    finding.word = SUPPORTED if few else REFUTED if many else UNDECIDED


def bonus_helps(finding: Finding, stored: Stored) -> None:
    one = stored.scores("bonus", ON, "right")
    other = stored.scores("no bonus", ON, "right")
    tables = {
        "bonus": one,
        "no bonus": other,
    }
    low, high = contrast(finding, "accuracy on all", tables)
    if low > 0:
        finding.word = SUPPORTED
    else:
        finding.word = REFUTED if high < 0.03 else UNDECIDED


def unconditional_is_worse(finding: Finding, stored: Stored) -> None:
    one = stored.scores("unconditional", ON, "right")
    other = stored.scores("bonus", ON, "right")
    tables = {
        "unconditional": one,
        "conditional": other,
    }
    low, high = contrast(finding, "accuracy on all", tables)
    if high < 0:
        finding.word = SUPPORTED
    else:
        finding.word = REFUTED if low > -0.03 else UNDECIDED


def no_gap_no_zoom(finding: Finding, stored: Stored) -> None:
    rates = stored.at_the_end("wide look", "tool_rate")
    finding.show("`tool_rate` in the last ten steps", rates)
    reading = stored.metric("wide look", "accuracy_read")
    first = [mean_known(row[:10]) for row in reading]
    finding.show("accuracy on `read` in the first ten steps", first)
    last = stored.at_the_end("wide look", "accuracy_read")
    finding.show("accuracy on `read` in the last ten steps", last)
    finding.word = REFUTED if max(rates) > 0.1 else SUPPORTED


def rate_shows_use(finding: Finding, stored: Stored) -> None:
    paid = stored.at_the_end("bonus, blank", "tool_rate_read")
    unpaid = stored.at_the_end("no bonus, blank", "tool_rate_read")
    finding.show("`tool_rate` on `read` in the last ten steps, grey crops, bonus", paid)
    finding.show("grey crops, no bonus", unpaid)
    finding.effect = f"`tool_rate` with grey crops: {fmean(paid):.2f} paid, {fmean(unpaid):.2f} unpaid"
    finding.p = permutation_p(paid, unpaid)
    many = most(paid, lambda rate: rate >= 0.9)
    few = most(paid, lambda rate: rate <= 0.5)
    finding.word = REFUTED if many else SUPPORTED if few else UNDECIDED


def aims_better(finding: Finding, stored: Stored) -> None:
    after = stored.scores("bonus", FORCED, "iou", "read")
    grey = stored.seed_means("bonus, blank", FORCED, "iou", "read")
    base = stored.runs("base")[0]
    control = [as_large(base, line) for line in stored.runs("bonus")]
    values = stored.seed_means("base", FORCED, "iou", "read")
    finding.show("IoU of forced crops on `read`, base", values)
    values = means(control)
    finding.show("base's boxes, as large as after", values)
    values = means(after)
    finding.show("after", values)
    finding.show("after grey crops", grey)
    above = gain(after, control)
    finding.effect = f"IoU above the base's boxes as large: {mean_text(above)}"
    finding.p = permutation_p(means(after), grey)
    low, high = two_way_interval(above)
    by_itself = max(grey) < min(means(after))
    if high <= 0.1 or not by_itself:
        finding.word = REFUTED
    else:
        finding.word = SUPPORTED if low > 0.1 else UNDECIDED


def as_large(base: dict, line: dict) -> list[float]:
    """IoU of the base's first boxes on forced `read`, their centres kept, as large as another model's are."""
    own = list(filter(None, first_crops(line)))
    width = fmean(box[2] - box[0] for box, _ in own)
    height = fmean(box[3] - box[1] for box, _ in own)
    overlaps = []
    for crop in first_crops(base):
        overlap = 0.0
        if crop:
            box, target = crop
            box = resized(box, width, height)
            overlap = iou(box, target)
        overlaps.append(overlap)
    return overlaps


def first_crops(line: dict) -> list:
    """(box, target) of each forced `read` question."""
    answers = line["asked"][FORCED]
    return [crop for crop, kind in zip(answers["first"], answers["kinds"]) if kind == "r"]


def calls_rise_and_fall(finding: Finding, stored: Stored) -> None:
    falls = [peak_minus_last(calls) for calls in stored.metric("bonus", "calls")]
    finding.show("calls a question, peak - last ten steps", falls)
    finding.word = SUPPORTED if most(falls, lambda fall: fall >= 0.3) else REFUTED


def peak_minus_last(calls: list[float], window: int = 5) -> float:
    """
    >>> peak_minus_last([1, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    1.0
    """
    smooth = [fmean(calls[i : i + window]) for i in range(len(calls) - window + 1)]
    return max(smooth) - fmean(calls[-10:])


def text_is_not_enough(finding: Finding, stored: Stored) -> None:
    base = stored.seed_means("base", f"{LETTERS} | on", "right")[0]
    plain = stored.seed_means("base", f"{LETTERS} | off", "right")[0]
    zoom = stored.scores("zoom", f"{LETTERS} | on", "right")
    text = stored.scores("text alone", f"{LETTERS} | off", "right")
    values = [base]
    finding.show("accuracy, base, zoom on offer", values)
    values = [plain]
    finding.show("base, text alone", values)
    values = means(zoom)
    finding.show("after, zoom", values)
    values = means(text)
    finding.show("after, text alone", values)
    if stored.runs("zoom, no bonus"):
        values = stored.seed_means("zoom, no bonus", f"{LETTERS} | on", "right")
        finding.show("after, zoom without a bonus", values)
        values = stored.seed_means("zoom, no bonus", f"{LETTERS} | on", "zooms")
        finding.show("`tool_rate` then", values)
    low, _ = compare_seeds(finding, zoom, text, "zoom - text")
    gained = fmean(means(zoom)) - base
    by_text = fmean(means(text)) - plain
    fraction = by_text / gained
    finding.effect += f"; text gains {fraction:.2f} of what the zoom gains"
    if fraction > 0.8:
        finding.word = REFUTED
    else:
        finding.word = SUPPORTED if fraction < 0.5 and low > 0 else UNDECIDED


def selection_helps(finding: Finding, stored: Stored) -> None:
    one = stored.scores("selected", ON, "right", "read")
    other = stored.scores("unfiltered", ON, "right", "read")
    tables = {
        "selected, 60 steps": one,
        "unfiltered, 115 steps": other,
    }
    low, _ = contrast(finding, "accuracy on `read`", tables)
    if stored.runs("by difficulty"):
        values = stored.seed_means("by difficulty", ON, "right", "read")
        finding.show("by difficulty alone, 60 steps", values)
    finding.word = SUPPORTED if low > 0 else REFUTED


def cold_start(finding: Finding, stored: Stored) -> None:
    after = stored.scores("cold", FORCED, "centred", "read")
    before = stored.scores("cold base", FORCED, "centred", "read")
    values = means(before)
    finding.show("middle of the crop in the tile, base with boxes anywhere", values)
    values = means(after)
    finding.show("after", values)
    values = stored.seed_means("cold", ON, "zooms", "read")
    finding.show("`tool_rate` on `read`", values)
    values = stored.seed_means("cold", ON, "right", "read")
    finding.show("accuracy on `read`", values)
    gains = gain(after, before)
    finding.effect = f"middle in the tile: {mean_text(gains)}"
    finding.word = SUPPORTED if two_way_interval(gains)[0] > 0 else REFUTED


def looks_again(finding: Finding, stored: Stored) -> None:
    start_missed, start_hit = zooms_again(stored.runs("base")[0])
    start = fmean(start_missed) - fmean(start_hit)
    after = [zooms_again(line) for line in stored.runs("bonus")]
    values = [fmean(start_missed)]
    finding.show("zooms again, base, missed", values)
    values = [fmean(start_hit)]
    finding.show("base, hit", values)
    values = [fmean(missed) for missed, _ in after if missed]
    finding.show("after, missed", values)
    values = [fmean(hit) for _, hit in after]
    finding.show("after, hit", values)
    changes = [fmean(missed) - fmean(hit) - start for missed, hit in after if missed]
    number = sum(len(missed) for missed, _ in after)
    finding.effect = f"{number} first crops of the trained models missed"
    if changes:
        finding.effect += f"; change of the difference {fmean(changes):+.3f}"
        if min(changes) > 0:
            finding.word = SUPPORTED
        else:
            finding.word = REFUTED if max(changes) <= 0 else UNDECIDED


def zooms_again(line: dict) -> tuple[list[float], list[float]]:
    """Of sampled `read` answers that zoomed: did they zoom again, after a crop that missed, and that hit?"""
    answers = line["asked"][SAMPLED]
    missed = []
    hit = []
    for kind, crops, first in zip(answers["kinds"], answers["crops"], answers["first"]):
        if kind == "r" and first:
            group = missed if iou(*first) < 0.05 else hit
            group.append(float(int(crops) > 1))
    return missed, hit


def generalises(finding: Finding, stored: Stored) -> None:
    lows = []
    effects = []
    for label, data in (("5 to 6 tiles", MORE_TILES), ("letters of 28 to 32 px", SMALLER)):
        after = stored.scores("bonus", f"{data} | on", "right", "read")
        before = stored.scores("base", f"{data} | forced", "right", "read")
        values = means(before)
        finding.show(f"accuracy on `read`, {label}, base forced", values)
        values = means(after)
        finding.show(f"{label}, after", values)
        gains = gain(after, before)
        lows.append(two_way_interval(gains)[0])
        effects.append(f"{label} {mean_text(gains)}")
    losses = {}
    for name, value in stored.runs("base")[0]["skills"].items():
        losses[name] = value - fmean(line["skills"][name] for line in stored.runs("bonus"))
    worst = max(losses, key=losses.get)
    for name, loss in losses.items():
        if loss > 0.03:
            effects.append(f"of the skill `{name}` {loss:.3f} is lost")
    finding.effect = "; ".join(effects)
    finding.word = SUPPORTED if min(lows) > 0 and losses[worst] <= 0.03 else REFUTED


def price_teaches_restraint(finding: Finding, stored: Stored) -> None:
    held = [zooms_where_it_pays(finding, stored, "priced")]
    for kind in ("read", "compare"):
        paid = stored.seed_means("paid", MIXED, "right", kind)
        finding.show(f"the paper's bonus: accuracy on `{kind}`", paid)
        least = fmean(paid) - 0.03
        priced = stored.seed_means("priced", MIXED, "right", kind)
        held += [accuracy >= least for accuracy in priced]
    small = stored.seed_means("priced", f"{of_size(SIZES[0])} | on", "zooms")
    large = stored.seed_means("priced", f"{of_size(SIZES[-1])} | on", "zooms")
    held += [one - other >= 0.5 for one, other in zip(small, large)]
    one = stored.scores("priced", MIXED, "right")
    compare_seeds(finding, one, stored.scores("paid", MIXED, "right"), "accuracy on all, priced - paper's")
    finding.word = SUPPORTED if all(held) else REFUTED


def price_is_needed(finding: Finding, stored: Stored) -> None:
    rates = stored.metric("priced", GLANCES)
    before = [mean_known(row[30:40]) for row in rates]
    finding.show("`tool_rate` on `glance`, priced, steps 31 to 40, before the price", before)
    for kind in ("glance", "legible"):
        zooms = stored.seed_means("priced", MIXED, "zooms", kind)
        finding.show(f"`tool_rate` on `{kind}`, priced", zooms)
        zooms = stored.seed_means("unpriced", MIXED, "zooms", kind)
        finding.show(f"`tool_rate` on `{kind}`, no bonus and no price", zooms)
    for label, arm in (("priced", "priced"), ("no bonus and no price", "unpriced")):
        values = stored.at_the_end(arm, GLANCES)
        finding.show(f"`tool_rate` on `glance`, sampled, last ten steps, {label}", values)
    priced = stored.scores("priced", MIXED, "zooms", "glance")
    unpriced = stored.scores("unpriced", MIXED, "zooms", "glance")
    compare_seeds(finding, priced, unpriced, "`tool_rate` on `glance`, priced - unpriced")
    few = most(means(unpriced), lambda rate: rate <= 0.1)
    finding.word = REFUTED if few else SUPPORTED


def division_spoils_prices(finding: Finding, stored: Stored) -> None:
    divided = stored.seed_means("priced by deviation", MIXED, "zooms", "compare")
    plain = stored.seed_means("priced", MIXED, "zooms", "compare")
    finding.show("`tool_rate` on `compare`, divided", divided)
    finding.show("not divided", plain)
    for label, arm in (("divided", "priced by deviation"), ("not divided", "priced")):
        values = stored.seed_means(arm, MIXED, "twice", "compare")
        finding.show(f"two crops on `compare`, {label}", values)
    finding.p = permutation_p(plain, divided)
    finding.effect = f"`tool_rate` on `compare`: {fmean(plain):.2f} against {fmean(divided):.2f}"
    kept = all(rate >= 0.95 for rate in divided)
    if kept:
        finding.word = REFUTED
    else:
        finding.word = SUPPORTED if most(plain, lambda rate: rate >= 0.95) else UNDECIDED


def price_has_room(finding: Finding, stored: Stored) -> None:
    held = []
    for price in PRICES:
        held.append(zooms_where_it_pays(finding, stored, f"priced, {price}"))
    finding.word = SUPPORTED if all(held) else REFUTED


def zooms_where_it_pays(finding: Finding, stored: Stored, arm: str) -> bool:
    """Show an arm's zooms by kind. In every seed few on what is seen at first sight, most on the others?"""
    held = []
    for kind in ("glance", "legible"):
        zooms = stored.seed_means(arm, MIXED, "zooms", kind)
        finding.show(f"{arm}: `tool_rate` on `{kind}`", zooms)
        held += [rate <= 0.1 for rate in zooms]
    for kind in ("read", "compare"):
        zooms = stored.seed_means(arm, MIXED, "zooms", kind)
        finding.show(f"{arm}: `tool_rate` on `{kind}`", zooms)
        held += [rate >= 0.95 for rate in zooms]
        accuracy = stored.seed_means(arm, MIXED, "right", kind)
        finding.show(f"{arm}: accuracy on `{kind}`", accuracy)
    values = stored.seed_means(arm, MIXED, "twice", "compare")
    finding.show(f"{arm}: two crops on `compare`", values)
    return bool(held) and all(held)  # without answers nothing holds


def bonus_brings_calls(finding: Finding, stored: Stored) -> None:
    show_habit(finding, stored)
    paid = stored.seed_means("shy", ON, "zooms", "read")
    finding.show("`tool_rate` on `read`, shy, after, bonus", paid)
    unpaid = stored.seed_means("shy, no bonus", ON, "zooms", "read")
    finding.show("shy, after, no bonus", unpaid)
    for arm in ("bonus", "no bonus", "shy", "shy, no bonus"):
        steps = [first_step(rates) for rates in stored.metric(arm, "tool_rate_read")]
        finding.show(f"first step that zooms on 0.9 of `read`, {arm}", steps)
    for arm in ("shy", "shy, no bonus"):
        values = stored.seed_means(arm, ON, "right", "read")
        finding.show(f"accuracy on `read`, {arm}, after", values)
    finding.p = permutation_p(paid, unpaid)
    finding.effect = f"`tool_rate` on `read`: {fmean(paid):.2f} paid, {fmean(unpaid):.2f} unpaid"
    many = most(unpaid, lambda rate: rate >= 0.9)
    if many or not most(paid, lambda rate: rate >= 0.9):
        finding.word = REFUTED
    else:
        finding.word = SUPPORTED if most(unpaid, lambda rate: rate <= 0.1) else UNDECIDED


def first_step(rates: list[float | None]) -> int:
    """The first step with 0.9 and more; one past the last if there is none.

    >>> first_step([0.3, 0.95, 0.8])
    2
    """
    for step, rate in enumerate(rates, 1):
        if rate is not None and rate >= 0.9:
            return step
    return len(rates) + 1


def show_habit(finding: Finding, stored: Stored) -> None:
    """How often the two bases call, when sampling."""
    for base in ("base", "shy base"):
        values = stored.seed_means(base, SAMPLED, "zooms", "read")
        finding.show(f"`tool_rate` on `read`, {base}, sampled", values)


def price_suits_a_shy_base(finding: Finding, stored: Stored) -> None:
    show_habit(finding, stored)
    held = zooms_where_it_pays(finding, stored, "shy, priced")
    finding.word = SUPPORTED if held else REFUTED


def later_price_suits_a_shy_base(finding: Finding, stored: Stored) -> None:
    rates = stored.metric("shy, priced later", GLANCES)
    before = [mean_known(row[70:80]) for row in rates]
    finding.show("`tool_rate` on `glance`, steps 71 to 80, before the price", before)
    held = zooms_where_it_pays(finding, stored, "shy, priced later")
    finding.word = SUPPORTED if held else REFUTED
