# trouble -> what it looks like in a step's row, and what to do. It counts when it lasts for `LASTING` steps.
LASTING = 5
TROUBLES = {
    "collapse": (
        lambda row: row["tool_rate"] is not None and row["tool_rate"] < 0.05,
        "fewer than 5 % of the trajectories zoom: raise --group or --prompts, or try --curiosity 0.5",
    ),
    "spam": (
        lambda row: row["repeats"] > 0.3,
        "more than 30 % of the trajectories zoom on one box again: --bonus conditional, fewer --max_turns",
    ),
    "fake zoom": (
        lambda row: row["blind_luck"] is not None and row["blind_luck"] > 0.5,
        "more than half of the right answers after a zoom never touched the target: lower --look_pixels",
    ),
    "dead groups": (
        lambda row: row["dead_groups"] > 0.8 and row.get("accuracy", 0) < 0.9,  # else it is all solved
        "more than 80 % of the groups teach nothing (all right or all wrong): select the data, or --refill",
    ),
    "entropy": (
        lambda row: row["entropy"] is not None and row["entropy"] < 0.02,
        "the entropy is below 0.02: the policy has stopped exploring; lower --lr",
    ),
    "garbage": (
        lambda row: row["garbage"] > 0.2,
        "more than 20 % of the trajectories repeat one token: the policy is breaking down; lower --lr",
    ),
    "gradient": (
        lambda row: (row.get("grad_jump") or 0) > 50,
        "the gradient is more than 50 times its usual size: lower --lr",
    ),
    "no numbers": (
        lambda row: row.get("left_out", 0) > 0,
        "an update was no number and was left out: lower --lr",
    ),
    "logprob gap": (
        lambda row: (row["logp_gap"] or 0) > 2.0,
        "sampler and trainer disagree by more than 2 nats on a token: a bug, or diverged weights",
    ),
}


AT_ONCE = ("gradient", "no numbers")  # troubles that one step shows; others have to last


def health(rows: list[dict]) -> list[tuple[str, str]]:
    """The troubles of a run that the last steps show: (name, what it is and what to try).

    >>> fine = dict(tool_rate=1.0, repeats=0.0, blind_luck=None, dead_groups=0.1, entropy=0.3, garbage=0.0,
    ...             logp_gap=0.0)
    >>> health([fine] * 9), [name for name, _ in health([fine] + [fine | {"tool_rate": 0.01}] * 5)]
    ([], ['collapse'])
    """
    found = []
    last = rows[-LASTING:]
    for name, (seen, text) in TROUBLES.items():
        if name in AT_ONCE:
            shows = bool(last) and seen(last[-1])
        else:
            shows = len(last) == LASTING and all(map(seen, last))
        if shows:
            found.append((name, text))
    return found


def print_new_troubles(rows: list[dict], known: set[str]) -> bool:
    """Print the last steps' troubles that are not `known` yet, and add them; returns whether any was new."""
    fresh = [(name, text) for name, text in health(rows) if name not in known]
    for name, text in fresh:
        print(f"  UNWELL: {text}", flush=True)
        known.add(name)
    return bool(fresh)


def history(rows: list[dict]) -> list[dict]:
    """Every trouble a run has had, with the steps at which it showed."""
    found = {}
    for i in range(1, len(rows) + 1):
        for name, text in health(rows[max(0, i - LASTING) : i]):
            first = i - 1 if name in AT_ONCE else i - LASTING
            trouble = found.setdefault(name, {"name": name, "text": text, "first": rows[first]["step"]})
            trouble["last"] = rows[i - 1]["step"]
    return list(found.values())
