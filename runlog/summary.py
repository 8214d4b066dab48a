"""What a run has to tell, for the top of its page: one sentence, three small curves, where its boxes lay.

All of it pure functions of what is stored: config (args.json), steps (metrics.jsonl), scores (eval.json),
trajectories (trajectories.jsonl).
"""

import math
from statistics import fmean, median

from grading.boxes import iou

# --------------------------------------------------------------------------------------------------
# The sentence.

HARDLY = 0.05  # a smaller share that zooms counts as none
RISE = 0.2  # a smaller change of the share that zooms counts as none
CLEAR = 0.05  # the largest p of a clear difference between two arms
ALIKE = 0.05  # an arm that is at most this far behind another is as good
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
LOOKS = {
    "yes": ": it looks",
    "no": ", as good: it does not look",
    "unclear": ": too few questions to say whether it looks",
}
WITHOUT = {"off": ", no zoom on offer", "blank": ", every crop blank"}
BLIND = "It zooms, but does not look"
# What each arm is, beside its scores.
ARM_WORDS = {
    "on": "the zoom on offer",
    "off": "no zoom on offer",
    "blank": "every crop is blank",
    "random": "crops from a random place, of the size asked for",
    "swap": "crops of another object than the one asked about",
    "oracle": "begins with perfect crops",
    "forced": "made to zoom, where it likes",
}


def sentence(args: dict, rows: list[dict], stored: dict) -> tuple[str, str]:
    """What came out of a run: the first words of a sentence, and the numbers that bear them out. ("", "")
    where nothing can be said.

    args: its config. rows: of metrics.jsonl. stored: eval.json, of train.py or of eval.py.
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
    """Before against after, on questions that were kept out of training."""
    first = stored["before"][arm]["all"]
    last = stored["after"][arm]["all"]
    gain = compare(last, first, stored.get("paired", {}).get(arm, {}).get("p"))
    right = f"right {from_to(first['accuracy'], last['accuracy'])}{bounds(last)}"
    if arm == "off":
        return "Trained without the zoom" + GAIN[gain], right
    tried = rows[0].get("tool_rate") if rows else None
    begun = max(first["tool_rate"], tried or 0.0)
    lead = zooming(first["tool_rate"], last["tool_rate"], begun)
    if (lead, gain) != ("It learned to zoom", "better"):  # there it says all
        lead += GAIN[gain]
    numbers = f"{right}, zooms {from_to(first['tool_rate'], last['tool_rate'])}"
    blank = stored["after"].get("blank", {}).get("all")
    return with_blank(lead, numbers, last, blank)


def zooming(first: float, last: float, begun: float) -> str:
    """What training did to the share that zooms. begun: the largest share that zoomed at the start, be it
    before training or, with sampling, in its first step.

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
    if "on" not in arms:
        arm, only = next(iter(arms.items()))
        words = ARM_WORDS.get(arm, arm)
        return f"Asked with {words}", f"right {percent(only['accuracy'])} %{bounds(only)}"
    on = arms["on"]
    off = arms.get("off")
    paired = stored.get("paired", {})
    numbers = f"right {percent(on['accuracy'])} %{bounds(on)}"
    if off is None:
        lead = "Asked with the zoom on offer"
    else:
        lead = OFFER[compare(on, off, paired.get("on against off", {}).get("p"))]
        numbers += f" with it, {percent(off['accuracy'])} % without"
    if on["tool_rate"] < HARDLY:
        lead = "It does not zoom"
    numbers += f", zooms {percent(on['tool_rate'])} %"
    p = paired.get("on against blank", {}).get("p")
    return with_blank(lead, numbers, on, arms.get("blank"), p)


def with_blank(
    lead: str, numbers: str, on: dict, blank: dict | None, p: float | None = None
) -> tuple[str, str]:
    """A sentence, and what blank crops say about it: does it use what they show? p: of the paired test, where
    that is known."""
    if blank is None or on["tool_rate"] < HARDLY:
        return lead, numbers
    looks = "unclear"
    if on["accuracy"] - blank["accuracy"] <= ALIKE:
        looks = "no"
        lead = BLIND
    elif compare(on, blank, p) == "better":
        looks = "yes"
    share = percent(blank["accuracy"])
    return lead, f"{numbers}, with the crop blanked {share} %{LOOKS[looks]}"


def sentence_of_steps(args: dict, rows: list[dict]) -> tuple[str, str]:
    """A run that has no scores after training: what its steps say."""
    if not rows:
        return ("Nothing to tell yet", "no step is done") if args else ("", "")
    done = rows[-1]["step"]
    steps = args.get("steps", done)
    lead = "Not scored after training"
    if done < steps:
        lead = "Still training"
    numbers = f"{done} of {steps} steps"
    shares = {"right": ends(rows, "accuracy"), "zooms": ends(rows, "tool_rate")}
    if shares["zooms"] and shares["zooms"][1] < HARDLY:
        lead += ", and it does not zoom"
    for name, both in shares.items():
        if both:
            numbers += f", {name} {from_to(*both)}"
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


def compare(one: dict, other: dict, p: float | None = None) -> str:
    """Is an arm "better" or "worse" than another, or, as far as is clear, the "same"? By the p of the paired
    test where that is known; else only where the 95 % intervals lie apart.

    >>> compare({"accuracy": 0.9, "interval": [0.8, 0.95]}, {"accuracy": 0.4, "interval": [0.3, 0.5]})
    'better'
    >>> [compare({"accuracy": 0.5}, {"accuracy": 0.6}, p) for p in (0.2, 0.01)]
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


def percent(share: float) -> str:
    return f"{100 * share:.0f}"


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


def asked(args: dict, stored: dict) -> str:
    """What was asked, in plain words: the line under the sentence.

    >>> asked({"model": "tiny", "data": "toy", "steps": 40, "prompts": 16, "group": 8}, {})
    'tiny on toy, 40 steps of 16 questions with 8 tries each.'
    """
    config = stored.get("protocol") or args
    if not config.get("data"):
        return ""
    text = f"{config.get('model')} on {config['data']}"
    if {"steps", "prompts", "group"} <= args.keys():
        text += f", {args['steps']} steps of {args['prompts']} questions with {args['group']} tries each"
        text += WITHOUT.get(args.get("tool"), "")
    tables = stored.get("arms") or stored.get("after") or stored.get("before") or {}
    for kinds in tables.values():
        if n := kinds["all"].get("n"):
            kept_out = "" if stored.get("arms") else " kept out of training"
            text += f". Scored on {n} questions{kept_out}; in brackets the 95 % interval"
            break
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


# --------------------------------------------------------------------------------------------------
# Curves.

LEAST = 8  # trajectories; a mean over fewer is noise, and not drawn
CURVES = {"accuracy": "Right", "tool_rate": "Zooms", "iou": "Crop on target (IoU)"}


def without_thin_means(row: dict, trajectories: int) -> dict:
    """A step's row without the means that rest on fewer than `LEAST` of its trajectories.

    How many zoomed is not stored, but follows: the share that zoomed, of all (where some questions offer no
    zoom, that is an upper bound). IoU is a mean over those that zoomed, or over fewer.

    >>> row = {"tool_rate": 127 / 128, "acc_zoom": 0.9, "acc_no_zoom": 0.0, "iou": 0.5}
    >>> without_thin_means(row, 128)["acc_no_zoom"], without_thin_means(row, 128)["acc_zoom"]
    (None, 0.9)
    """
    if row.get("tool_rate") is None:
        return row
    zoomed = round(row["tool_rate"] * trajectories)
    count = {"acc_zoom": zoomed, "iou": zoomed, "acc_no_zoom": trajectories - zoomed}
    thin = {key: None for key, number in count.items() if number < LEAST}
    return row | thin


def smooth(values: list[float | None], window: int = RECENT) -> list[float]:
    """Trailing mean over the last `window` steps; steps without a value take no part, and get none.

    >>> smooth([1.0, None, 3.0, 5.0], window=3)
    [1.0, nan, 2.0, 4.0]
    """
    result = []
    for i, value in enumerate(values):
        recent = [v for v in values[max(0, i + 1 - window) : i + 1] if v is not None]
        result.append(float("nan") if value is None else fmean(recent))
    return result


def svg_path(values: list[float | None]) -> str:
    """Shares as an SVG path in a square of 100 by 100: from left to right, 1 at the top, gaps where there is
    no value. "h0" makes a dot of a point that stands alone.

    >>> svg_path([0.0, 0.5, None, 1.0])
    'M0,100h0L33.33,50M100,0h0'
    """
    path = ""
    inside = False
    for i, value in enumerate(values):
        known = value is not None and not math.isnan(value)
        if known:
            x = 100 * i / max(1, len(values) - 1)
            y = 100 * (1 - min(1.0, max(0.0, value)))
            point = f"{x:.4g},{y:.4g}"
            path += f"L{point}" if inside else f"M{point}h0"
        inside = known
    return path


def small_curves(rows: list[dict]) -> list[dict]:
    """The curves of the page's top: each step as a thin line, the mean of the last few as a thick one."""
    curves = []
    for key, title in CURVES.items():
        both = ends(rows, key)
        if both is None:
            continue
        values = [row.get(key) for row in rows]
        text = "{:.2f} → {:.2f}".format(*both) if key == "iou" else from_to(*both)
        curves.append(
            {
                "key": key,
                "title": title,
                "text": text,
                "thin": svg_path(values),
                "thick": svg_path(smooth(values)),
            }
        )
    return curves


# --------------------------------------------------------------------------------------------------
# Boxes around their target, and questions that were asked again and again.

MOST_BOXES = 60  # drawn of each part of a run
REACH = (
    1.5,
    12,
)  # sides of a target: the least and the most that is shown to each side of its centre
PARTS = {1: ("so far",), 2: ("early", "late"), 3: ("early", "middle", "late")}


def around_target(box, targets) -> tuple[float, ...]:
    """A box as its target sees it: the target's centre is 0, 0 and its sides are 1. Of several targets the
    one that it overlaps most; of those that it doesn't touch, the nearest.

    >>> around_target((100, 100, 300, 200), [(100, 100, 200, 200), (900, 900, 990, 990)])
    (-0.5, -0.5, 1.5, 0.5)
    """
    x1, y1, x2, y2 = max(targets, key=lambda target: (iou(box, target), -distance(box, target)))
    width = max(1, x2 - x1)
    height = max(1, y2 - y1)
    x = (x1 + x2) / 2
    y = (y1 + y2) / 2
    left, top, right, bottom = box
    return (left - x) / width, (top - y) / height, (right - x) / width, (bottom - y) / height


def distance(one, other) -> float:
    """Between the centres of two boxes."""
    x = one[0] + one[2] - other[0] - other[2]
    y = one[1] + one[3] - other[1] - other[3]
    return math.hypot(x, y) / 2


def box_clouds(rows: list[dict]) -> list[dict]:
    """The boxes of stored groups around their targets, for each part of a run: early, middle, late; [] where
    there are none."""
    rows = [row for row in rows if not row.get("probe")]
    steps = sorted({row["step"] for row in rows})
    names = PARTS[min(3, len(steps))] if steps else ()
    clouds = []
    for number, name in enumerate(names):
        start = number * len(steps) // len(names)
        end = (number + 1) * len(steps) // len(names)
        part = steps[start:end]
        cloud = box_cloud([row for row in rows if row["step"] in part and row["targets"]])
        clouds.append(cloud | {"name": name, "first": part[0], "last": part[-1]})
    return clouds if any(cloud["count"] for cloud in clouds) else []


def box_cloud(rows: list[dict]) -> dict:
    """How many boxes there are, and up to `MOST_BOXES` of them around their targets; the share that touches
    a target, the mean IoU, and the median box."""
    boxes = []
    overlaps = []
    for row in rows:
        boxes += [around_target(box, row["targets"]) for box in row["boxes"]]
        overlaps += [max(iou(box, target) for target in row["targets"]) for box in row["boxes"]]
    if not boxes:
        return {"count": 0, "boxes": []}
    return {
        "count": len(boxes),
        "boxes": boxes[:: math.ceil(len(boxes) / MOST_BOXES)],
        "touch": fmean(overlap > 0 for overlap in overlaps),
        "iou": fmean(overlaps),
        "median": [median(side) for side in zip(*boxes)],
    }


def reach(clouds: list[dict]) -> float:
    """How far to show around a target, in its sides: so far that the median boxes have room.

    >>> reach([{"median": [-1, -1, 2, 1]}, {"median": [-0.5, -0.5, 0.5, 0.5]}])
    3.0
    """
    least, most = REACH
    furthest = max((abs(v) for cloud in clouds for v in cloud.get("median", ())), default=least)
    return min(most, max(least, 1.5 * furthest))


def asked_again(rows: list[dict]) -> dict:
    """The questions that were asked at every stored step: their ids, the one that tells most first (wrong at
    first, right at last), and how many were right at the first and at the last step.

    >>> def row(step, name, right):
    ...     return {"id": name, "step": step, "probe": True, "reward": {"accuracy": right}, "boxes": []}
    >>> asked_again([row(1, "a", 1.0), row(1, "b", 0.0), row(9, "a", 1.0), row(9, "b", 1.0)])
    {'ids': ['b', 'a'], 'first': 1, 'last': 2}
    """
    answers = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        if row.get("probe"):
            answers.setdefault(row["id"], []).append(row)
    ends_of = {name: (of_one[0], of_one[-1]) for name, of_one in answers.items()}
    right = {name: [row["reward"]["accuracy"] > 0 for row in both] for name, both in ends_of.items()}

    def tells(name: str) -> tuple:
        first, last = ends_of[name]
        zooms = bool(last["boxes"]) - bool(first["boxes"])
        return right[name][1] - right[name][0], zooms

    return {
        "ids": sorted(answers, key=tells, reverse=True),
        "first": sum(first for first, _ in right.values()),
        "last": sum(last for _, last in right.values()),
    }
