"""A run's result in words, for the top of its page: one sentence, the line under it, its health, and the
question that shows most.

Pure functions of what is stored: args.json, metrics.jsonl, eval.json, trajectories.jsonl.
"""

from statistics import fmean

from config import ENOUGH

# --------------------------------------------------------------------------------------------------
# The sentence.

HARDLY = 0.05  # a smaller tool_rate counts as none
RISE = 0.2  # a smaller change of tool_rate counts as none
CLEAR = 0.05  # the largest p of a clear difference between two arms
ALIKE = 0.05  # an arm whose accuracy is at most this much lower is as good
RECENT = 5  # steps, whose mean stands for the end of training

GAIN = {
    "better": ", and got better",
    "same": ", with no clear gain",
    "worse": ", and got worse",
}
OFFER = {
    "better": "The zoom helps",
    "same": "The zoom brings no clear gain",
    "worse": "The zoom does harm",
}
# What each arm is, beside its scores.
ARM_WORDS = {
    "on": "the zoom on offer",
    "off": "no zoom on offer",
    "blank": "every crop blank",
    "random": "crops from a random place, of the size asked for",
    "swap": "crops of another object than the one asked about",
    "oracle": "perfect crops to begin with",
    "forced": "the first call opened for it, with a box of its own",
}


def sentence(args: dict, rows: list[dict], stored: dict) -> tuple[str, str]:
    """What came out of a run: the first words of a sentence, and the numbers that bear them out. ("", "")
    where nothing can be said.

    args: its flags. rows: of metrics.jsonl. stored: eval.json, of train.py or of eval.py.
    """
    if stored.get("arms"):
        return sentence_of_arms(stored)
    done = rows[-1]["step"] if rows else 0
    arm = "off" if args.get("tool") == "off" else "on"
    scored = arm in stored.get("before", {}) and arm in stored.get("after", {})
    # A run that was prolonged has scores of fewer steps than it has taken
    if scored and stored.get("steps", done) >= done:
        return sentence_of_training(stored, arm, rows)
    return sentence_of_steps(args, rows)


def sentence_of_training(stored: dict, arm: str, rows: list[dict]) -> tuple[str, str]:
    """Before against after, on held-out questions."""
    before = stored["before"][arm]["all"]
    after = stored["after"][arm]["all"]
    gain = better_or_worse(after, before, stored.get("paired", {}).get(arm, {}).get("p"))
    numbers = f"accuracy {from_to(before['accuracy'], after['accuracy'])}{bounds(after)}"
    if after["n"] < ENOUGH:
        return f"Scored on {after['n']} questions: too few to tell", numbers
    if arm == "off":
        return "Trained without the zoom" + GAIN[gain], numbers
    sampled = rows[0].get("tool_rate") if rows else None
    begun = max(before["tool_rate"], sampled or 0.0)
    lead = zooming(before["tool_rate"], after["tool_rate"], begun)
    if (lead, gain) != ("It learned to zoom", "better"):  # which says all
        lead += GAIN[gain]
    numbers += f", tool_rate {from_to(before['tool_rate'], after['tool_rate'])}"
    blank = stored["after"].get("blank", {}).get("all")
    return with_blank(lead, numbers, after, blank)


def zooming(first: float, last: float, begun: float) -> str:
    """What training did to tool_rate. begun: the larger tool_rate at the start, before training (greedy) or
    in its first step (sampled).

    >>> zooming(0.0, 1.0, 0.3), zooming(0.0, 0.01, 0.3), zooming(0.0, 0.01, 0.01), zooming(0.9, 1.0, 0.9)
    ('It learned to zoom', 'It stopped zooming', 'It did not learn to zoom', 'It zooms as often as before')
    """
    if last < HARDLY:
        return "It stopped zooming" if begun >= RISE else "It did not learn to zoom"
    if last - first >= RISE:
        return "It learned to zoom"
    if first - last >= RISE:
        return "It learned to zoom less"
    return "It zooms as often as before"


def sentence_of_arms(stored: dict) -> tuple[str, str]:
    """One model's arms, side by side."""
    arms = {arm: kinds["all"] for arm, kinds in stored["arms"].items()}
    paired = stored.get("paired", {})
    arm = "on" if "on" in arms else next(iter(arms))
    lead = f"Asked with {ARM_WORDS.get(arm, arm)}"
    numbers = f"accuracy {percent(arms[arm]['accuracy'])} %{bounds(arms[arm])}"
    if arm != "on":
        return lead, numbers
    on = arms["on"]
    if off := arms.get("off"):
        lead = OFFER[better_or_worse(on, off, paired.get("on against off", {}).get("p"))]
        numbers += f" with the zoom, {percent(off['accuracy'])} % without"
    if on["tool_rate"] < HARDLY:
        lead = "It does not zoom"
    numbers += f", tool_rate {percent(on['tool_rate'])} %"
    return with_blank(lead, numbers, on, arms.get("blank"), paired.get("on against blank", {}).get("p"))


def with_blank(
    lead: str, numbers: str, on: dict, blank: dict | None, p: float | None = None
) -> tuple[str, str]:
    """A sentence, and what blank crops say about the model: does it use what crops show? p: of the paired
    test, where that is known."""
    if blank is None or on["tool_rate"] < HARDLY:
        return lead, numbers
    if on["accuracy"] - blank["accuracy"] <= ALIKE:
        lead = "It zooms, but does not look"
        looks = ", as good: it does not look"
    elif better_or_worse(on, blank, p) == "better":
        looks = ": it looks"
    else:
        looks = ": too few questions to say whether it looks"
    return lead, f"{numbers}, accuracy with blank crops {percent(blank['accuracy'])} %{looks}"


def sentence_of_steps(args: dict, rows: list[dict]) -> tuple[str, str]:
    """A run that has no scores after training: what its steps say."""
    if not rows:
        return ("Nothing to tell yet", "no step is done") if args else ("", "")
    done = rows[-1]["step"]
    steps = args.get("steps", done)
    lead = "Still training" if done < steps else "Not scored after training"
    numbers = f"{done} of {steps} steps"
    for key in ("accuracy", "tool_rate"):
        both = ends(rows, key)
        if both:
            numbers += f", {key} {from_to(*both)}"
        if both and key == "tool_rate" and both[1] < HARDLY:
            lead += ", and it does not zoom"
    return lead, numbers + " while training"


def ends(rows: list[dict], key: str) -> tuple[float, float] | None:
    """A metric's first value, and the mean of its last ones; None where it has none.

    >>> ends([{"iou": None}, {"iou": 0.25}, {"iou": 0.5}, {"iou": 1.0}], "iou"), ends([{}], "iou")
    ((0.25, 0.75), None)
    """
    known = [row[key] for row in rows if row.get(key) is not None]
    if not known:
        return None
    later = known[1:][-RECENT:] or known
    return known[0], fmean(later)


def better_or_worse(one: dict, other: dict, p: float | None = None) -> str:
    """Is an arm "better" or "worse" than another, or, as far as is clear, the "same"? By the p of the paired
    test where that is known; else only where the 95 % intervals lie apart.

    >>> better_or_worse({"accuracy": 0.9, "interval": [0.8, 0.95]}, {"accuracy": 0.4, "interval": [0.3, 0.5]})
    'better'
    >>> [better_or_worse({"accuracy": 0.5}, {"accuracy": 0.6}, p) for p in (0.2, 0.01)]
    ['same', 'worse']
    """
    if p is not None:
        clear = p < CLEAR
    elif one.get("interval") and other.get("interval"):
        lower, higher = sorted((one["interval"], other["interval"]))
        clear = lower[1] < higher[0]
    else:
        clear = False
    if not clear:
        return "same"
    return "better" if one["accuracy"] > other["accuracy"] else "worse"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.0f}"


def from_to(first: float, last: float) -> str:
    """
    >>> from_to(0.42, 0.94)
    '42 → 94 %'
    """
    return f"{percent(first)} → {percent(last)} %"


def bounds(scores: dict) -> str:
    """The 95 % interval, in brackets; "" where it isn't known.

    >>> bounds({"interval": [0.918, 0.96]})
    ' (92 to 96)'
    """
    if not scores.get("interval"):
        return ""
    low, high = scores["interval"]
    return f" ({percent(low)} to {percent(high)})"


# --------------------------------------------------------------------------------------------------
# Beside the sentence.


def asked(args: dict, stored: dict) -> str:
    """What was asked, in plain words: the line under the sentence.

    >>> asked({"model": "tiny", "data": "toy", "steps": 40, "prompts": 16, "group": 8}, {})
    'tiny on toy, 40 steps of 16 questions with 8 trajectories each.'
    """
    config = stored.get("protocol") or args
    if not config.get("data"):
        return ""
    text = f"{config.get('model')} on {config['data']}"
    if {"steps", "prompts", "group"} <= args.keys():
        text += (
            f", {args['steps']} steps of {args['prompts']} questions with {args['group']} trajectories each"
        )
        if args.get("tool") in ("off", "blank"):
            text += f", {ARM_WORDS[args['tool']]}"
    arms = stored.get("arms") or stored.get("after") or stored.get("before") or {}
    count = next(filter(None, (kinds["all"].get("n") for kinds in arms.values())), None)
    if count:
        held_out = "" if stored.get("arms") else "held-out "
        text += f". Scored on {count} {held_out}question{'s' * (count > 1)}; in brackets the 95 % interval"
    return text + "."


def health_word(troubles: list[dict], last: int | None) -> str:
    """A run's health at its last step, in a word. troubles: with the steps at which each showed last.

    >>> [health_word(troubles, 9) for troubles in ([], [{"last": 9}], [{"last": 5}])]
    ['Well', 'Unwell', 'Well again']
    """
    if last is None:
        return "No step yet"
    if not troubles:
        return "Well"
    return "Unwell" if any(trouble["last"] == last for trouble in troubles) else "Well again"


def asked_again(rows: list[dict]) -> dict:
    """The questions that were asked at every stored step: their ids, the one that changed most first (wrong
    at first, correct at last), and how many were correct at the first and at the last step.

    >>> def row(step, name, accuracy):
    ...     return {"id": name, "step": step, "probe": True, "reward": {"accuracy": accuracy}, "boxes": []}
    >>> asked_again([row(1, "a", 1.0), row(1, "b", 0.0), row(9, "a", 1.0), row(9, "b", 1.0)])
    {'ids': ['b', 'a'], 'first': 1, 'last': 2}
    """
    answers = {}  # id -> its first and its last row
    for row in sorted(rows, key=lambda row: row["step"]):
        if row.get("probe"):
            first, _ = answers.get(row["id"], (row, row))
            answers[row["id"]] = (first, row)
    correct = {i: [row["reward"]["accuracy"] > 0 for row in both] for i, both in answers.items()}

    def change(i: str) -> tuple[int, int]:
        first, last = answers[i]
        return correct[i][1] - correct[i][0], bool(last["boxes"]) - bool(first["boxes"])

    return {
        "ids": sorted(answers, key=change, reverse=True),
        "first": sum(first for first, _ in correct.values()),
        "last": sum(last for _, last in correct.values()),
    }
