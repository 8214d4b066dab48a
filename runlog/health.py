"""Health checks: troubles that the last steps of a run show, each with its remedy."""

LASTING = 5  # steps that a trouble has to last


def above(key: str, limit: float):
    """A check of a step's row: is this metric larger? A metric that is absent or None is not."""
    return lambda row: (row.get(key) or 0.0) > limit


def below(key: str, limit: float):
    return lambda row: row.get(key) is not None and row[key] < limit


def teaches_little(row: dict) -> bool:
    """Are most groups dead, though the questions are not solved?"""
    return above("dead_groups", 0.8)(row) and not above("accuracy", 0.9)(row)


# trouble -> its check of a step's row, and what to do. A policy that breaks down also stops zooming and has
# dead groups, so its own troubles come first.
TROUBLES = {
    "NaN": (above("left_out", 0), "an update held NaN and was left out: lower --lr"),
    "gradient": (
        above("grad_jump", 50),
        "the gradient is more than 50 times its usual size (grad_jump): lower --lr",
    ),
    "garbage": (
        above("garbage", 0.2),
        "more than 20 % of the trajectories repeat one token (garbage): the policy breaks down; lower --lr",
    ),
    "entropy": (
        below("entropy", 0.02),
        "the entropy is below 0.02 nats: the policy has stopped exploring; lower --lr",
    ),
    "logprob gap": (
        above("logp_gap", 2.0),
        "sampler and trainer disagree by more than 2 nats on a token (logp_gap): a bug, or diverged weights",
    ),
    "collapse": (
        below("tool_rate", 0.05),
        "fewer than 5 % of the trajectories zoom (tool_rate): --curiosity 0.5, raise --group, or --bonus"
        " conditional if it is off; where crops have a price, the price may end the zooming: later"
        " --price_from, lower --crop_price, or --advantage mean",
    ),
    "same place": (
        above("repeats", 0.3),
        "more than 30 % of the second looks are at the same place (repeats): lower --max_turns, or --bonus"
        " conditional if it is off",
    ),
    "fake zoom": (
        above("blind_luck", 0.5),
        "more than half of the correct answers after a zoom never touched the target (blind_luck): lower"
        " --look_pixels",
    ),
    "dead groups": (
        teaches_little,
        "more than 80 % of the groups teach nothing, all members being correct or all wrong (dead_groups):"
        " select the data with select_data.py, or raise --group",
    ),
}
AT_ONCE = ("NaN", "gradient")  # one step is enough
BREAKDOWNS = ("NaN", "gradient", "garbage", "entropy")


def health(rows: list[dict]) -> list[tuple[str, str]]:
    """The troubles of a run that the last steps show: (name, what it is and what to try). rows: of
    metrics.jsonl.

    A breakdown does not have to last where another trouble does: its remedy has to come first.

    >>> fine = {"tool_rate": 1.0, "entropy": 0.3}
    >>> unwell = [fine] + [fine | {"tool_rate": 0.01}] * 5
    >>> health([fine] * 9), [name for name, _ in health(unwell)]
    ([], ['collapse'])
    >>> [name for name, _ in health(unwell[:-1] + [unwell[-1] | {"garbage": 0.5}])]
    ['garbage', 'collapse']
    """
    last = rows[-LASTING:]
    if not last:
        return []
    shown = [name for name, (check, _) in TROUBLES.items() if check(last[-1])]
    lasting = [name for name in shown if len(last) == LASTING and all(map(TROUBLES[name][0], last))]
    soon = BREAKDOWNS if lasting else AT_ONCE
    return [(name, TROUBLES[name][1]) for name in shown if name in (*lasting, *soon)]


def print_new_troubles(rows: list[dict], known: set[str]) -> bool:
    """Print the last steps' troubles that are not `known` yet, and add them; returns whether any was new."""
    fresh = [(name, text) for name, text in health(rows) if name not in known]
    for name, text in fresh:
        print(f"  UNWELL: {text}", flush=True)
        known.add(name)
    return bool(fresh)


def history(rows: list[dict]) -> list[dict]:
    """Every trouble that a run has had, with the first and the last step at which it showed."""
    found = {}
    for end in range(1, len(rows) + 1):
        for name, text in health(rows[max(0, end - LASTING) : end]):
            if name not in found:
                found[name] = {"name": name, "text": text, "first": first_step(name, rows[:end])}
            found[name]["last"] = rows[end - 1]["step"]
    return list(found.values())


def first_step(name: str, rows: list[dict]) -> int:
    """The step since which a trouble that the last row shows has shown without a break."""
    check = TROUBLES[name][0]
    first = len(rows) - 1
    while first > 0 and check(rows[first - 1]):
        first -= 1
    return rows[first]["step"]
