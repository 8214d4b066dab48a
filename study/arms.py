"""The runs of the study: what differs between them, and what each is asked afterwards.

An arm is trained once a seed. The thresholds by which it is judged stand in study/verdicts.py.
"""

from dataclasses import dataclass

QUESTIONS = 400  # held out, the same for every run
PER_SIZE = 80  # on the curve of letter sizes
SIZES = (36, 50, 70, 90, 110, 130, 150, 170, 190, 210)  # px
PLAIN = "toy"
ALL_KINDS = "toy-mixture:kinds=read+compare+glance+legible"
LETTERS = "toy:kinds=read,letters=38-200"
MORE_TILES = "toy:tiles=5-6"
SMALLER = "toy:kinds=read,letters=28-32"


# What a line of the study keeps of metrics.jsonl, step by step
KEPT = [
    "tool_rate",
    "calls",
    "delivered",
    "iou",
    "tokens",
    "accuracy",
    "dead_groups",
]
for kind in ("read", "compare", "glance", "legible"):
    KEPT += [f"tool_rate_{kind}", f"accuracy_{kind}"]


def priced(price: float = 0.05, begin: int = 40) -> str:
    """The flags of a price on the crops of correct answers, from a step on."""
    return f"--data {ALL_KINDS} --bonus none --crop_price {price} --price_from {begin}"


def of_size(pixels: int) -> str:
    """The data set whose letters are all so high."""
    return f"toy:kinds=read,letters={pixels}-{pixels}"


def ask(arms: str, *data: str) -> tuple:
    """Pairs of a data set and an arm of eval.py; "sampled" is the arm "on" at temperature 1.

    >>> ask("on off", "toy")
    (('toy', 'on'), ('toy', 'off'))
    """
    return tuple((name, arm) for name in data for arm in arms.split())


CURVE = ask("on off", *map(of_size, SIZES))
EDGES = (3136, 6272, 9408)  # crop pixels; the default, 12,544, is in "bonus" and "no bonus"


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone."""

    name: str
    flags: str  # of train.py; {folder} is where the runs are
    steps: int
    asked: tuple = ()  # after training
    seeds: int = 5
    skills: bool = False  # measure the base's own skills, too


# A folder would start from the flags of a big model.
AS_TINY = (
    "--look_pixels 12544 --crop_pixels 12544 --max_turns 4 --max_turn_tokens 48 --max_tokens 320 "
    "--batch 256 --threads 2 --lr 1.5e-3 --lr_schedule linear --lora 16 --micro_batch 64"
)
PRICES = (0.02, 0.1, 0.2)  # of a crop; the usual one, 0.05, is in "priced"
COLD = f"--model {{folder}}/cold-base {AS_TINY}"
SHY = f"--model {{folder}}/shy-base {AS_TINY}"
WHEN_NOT = ask("on forced", ALL_KINDS) + CURVE
SOME = ask("on", ALL_KINDS)
TABLE_5 = ask("on forced", PLAIN)
MOST = TABLE_5 + ask("sampled", PLAIN) + ask("on forced", MORE_TILES, SMALLER)
ARMS = [
    Arm("priced", f"{priced()} --advantage mean", 120, WHEN_NOT),
    Arm("paid", f"--data {ALL_KINDS}", 120, WHEN_NOT),
    Arm("bonus", "", 60, MOST, skills=True),
    Arm("no bonus", "--bonus none", 60, TABLE_5),
    Arm("unconditional", "--bonus unconditional", 60, TABLE_5, seeds=3),
    Arm("wide look", "--look_pixels 254016", 40, seeds=3),
    Arm("bonus, blank", "--tool blank", 40, TABLE_5),
    Arm("no bonus, blank", "--tool blank --bonus none", 40, TABLE_5),
    Arm("zoom", f"--data {LETTERS}", 60, ask("on", LETTERS)),
    Arm("text alone", f"--data {LETTERS} --tool off", 60, ask("off", LETTERS)),
    *(Arm(f"bonus, {n}", f"--crop_pixels {n}", 40, seeds=3) for n in EDGES),
    *(Arm(f"no bonus, {n}", f"--crop_pixels {n} --bonus none", 40, seeds=3) for n in EDGES),
    Arm("unfiltered", "--data toy-mixture", 115, TABLE_5),
    Arm("selected", "--data {folder}/selected", 60, TABLE_5),
    Arm("by difficulty", "--data {folder}/difficulty", 60, TABLE_5, seeds=3),
    Arm("zoom, no bonus", f"--data {LETTERS} --bonus none", 60, ask("on", LETTERS), seeds=3),
    Arm("cold", f"{COLD} --data toy", 60, TABLE_5),
    Arm("priced by deviation", priced(), 120, SOME, seeds=3),
    Arm("unpriced", f"--data {ALL_KINDS} --bonus none --advantage mean", 120, SOME + CURVE),
    Arm("shy", f"{SHY} --data toy", 60, TABLE_5, seeds=3),
    Arm("shy, no bonus", f"{SHY} --data toy --bonus none", 60, TABLE_5, seeds=3),
    Arm("shy, priced", f"{SHY} {priced()} --advantage mean", 120, SOME, seeds=3),
    Arm("shy, priced later", f"{SHY} {priced(begin=80)} --advantage mean", 160, SOME, seeds=3),
    *(Arm(f"priced, {p}", f"{priced(p)} --advantage mean", 120, SOME) for p in PRICES),
    Arm("bonus, longer", "", 160, TABLE_5, seeds=3),
    Arm("bonus, blank, longer", "--tool blank", 160, TABLE_5, seeds=3),
    Arm("unpriced by deviation", f"--data {ALL_KINDS} --bonus none", 120, SOME, seeds=3),
    Arm("unpriced, plain", "--bonus none --advantage mean", 120, TABLE_5, seeds=3),
    Arm("priced at once", "--data toy-mixture --bonus none --crop_price 0.05", 60, TABLE_5),
]
# What the bases are asked, before any training.
BASES = {
    "base": MOST
    + CURVE
    + ask("off oracle swap", PLAIN)
    + ask("on off forced", ALL_KINDS)
    + ask("on off", LETTERS),
    "cold base": TABLE_5,
    "shy base": TABLE_5 + ask("sampled", PLAIN) + ask("forced", ALL_KINDS),
}
# What a crop of another size is worth to the base: the name of its line -> crop pixels.
CROPS = {f"base, {n}": n for n in EDGES}
BASES |= dict.fromkeys(CROPS, ask("forced", PLAIN))


def in_turn(arms: list[Arm]) -> list[tuple[Arm, int]]:
    """Every (arm, seed), three seeds of each first: a study cut short is short everywhere."""
    turns = []
    for seeds in (range(3), range(3, 5)):
        for arm in arms:
            turns += [(arm, seed) for seed in seeds if seed < arm.seeds]
    return turns
