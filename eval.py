"""Score a model, with controls that show whether it looks: the same questions with the crop real, blank,
random or perfect.

    python eval.py --model runs/tiny-toy/checkpoint-160 --data toy
    python eval.py --model qwen2.5-vl-7b --data vstar --arms on,off,blank        # a benchmark of the paper
    python eval.py --model qwen2.5-vl-3b --ask photo.jpg "What does the sign say?"

OUT gets eval.json (scores and the whole protocol), records.jsonl (every answer; a killed run goes on from
there) and report.html. --data is one of the paper's benchmarks, from the Hub or a folder (--root), or a data
set of train.py, of which the held-out part is asked.
"""

import gc
import json
import math
import random
import re
import subprocess
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
import transformers
from tqdm import tqdm

import tools
from benchmarks import NOTES, PUBLISHED, REASONING, SCORES, TABLES, grade, load_benchmark
from data import Sample, load, opened, readable
from judge import Judge
from knobs import BIG, fail, knob, parse, run_command, write_json
from model import load_model, resolve
from report import iou, make_page, rewrite, store_trajectory
from rollout import ARMS, Trajectory, pixel_budgets, rollout

# "forced": the call is opened for the model, the box is its own. Tells *where* it zooms apart from *whether*.
ALL_ARMS = (*ARMS, "forced")
# The knobs of a rollout that train.py and eval.py must share for their scores to be comparable.
LIMITS = ("look_pixels", "crop_pixels", "max_turns", "max_turn_tokens", "max_tokens", "batch")
EVAL_SEED = 1_000_003  # the held-out questions are the same for every run
# Options that speak of others keep their places ("both of them", "none of the above", "B or C").
POINTING = re.compile(
    r"\b[A-E] (?:and|or) [A-E]\b|\b(?:all|none|both|neither|any|either) of\b|\b(?:both|neither|none)\W*$"
    r"|\b(?:of|the) (?:above|below)\W*$",
    re.I,
)
SHOWN = 60  # questions whose trajectories the page shows, all arms side by side


def best_iou(trajectory: Trajectory) -> float | None:
    """Mean over the delivered crops of the IoU with the nearest target; None without crops or targets."""
    targets = trajectory.sample.boxes
    if not targets or not trajectory.boxes:
        return None
    return fmean(max(iou(box, target) for target in targets) for box in trajectory.boxes)


def holds(trajectory: Trajectory) -> bool:
    """Is all that has to be read (`meta["glyphs"]`, else the target boxes) wholly inside some crop?"""
    wanted = trajectory.sample.meta.get("glyphs") or trajectory.sample.boxes
    return all(
        any(b[0] <= x1 and b[1] <= y1 and b[2] >= x2 and b[3] >= y2 for b in trajectory.boxes)
        for x1, y1, x2, y2 in wanted
    )


def mean(values) -> float | None:
    values = [v for v in values if v is not None]
    return fmean(values) if values else None


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of n.

    >>> [round(v, 3) for v in wilson(0.9, 100)], [round(v, 3) for v in wilson(0.0, 10)]
    ([0.826, 0.945], [0.0, 0.278])
    """
    center, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (center - spread) / (1 + z * z / n)), min(1.0, (center + spread) / (1 + z * z / n))


def mcnemar(only_one: int, only_other: int) -> float:
    """The exact two-sided p of McNemar's test, from the questions that only one of two arms got right.

    >>> round(mcnemar(8, 1), 4), mcnemar(0, 0)
    (0.0391, 1.0)
    """
    n = only_one + only_other
    tail = sum(math.comb(n, k) for k in range(min(only_one, only_other) + 1)) / 2**n
    return min(1.0, 2 * tail)


# --------------------------------------------------------------------------------------------------
# Answers -> records -> scores.


def record(name: str, trajectory: Trajectory, arm: str, repeat: int = 0, judge=None) -> dict:
    """What is kept of an answer; every score is made from these."""
    t = trajectory
    row = {"arm": arm, "repeat": repeat, "id": t.sample.id, "gold": t.sample.answer, "answer": t.answer}
    row |= {"options": t.sample.options, "meta": t.sample.meta, "stop": t.stop, "turns": t.turns}
    row |= {"boxes": t.boxes, "errors": len(t.errors), "tokens": sum(t.sampled), "iou": best_iou(t)}
    row["holds"] = holds(t) if t.boxes and t.sample.boxes else None
    return row | grade(name, t, judge)


def group_of(row: dict):
    return row["meta"].get("group", row["id"])


def summary(records: list[dict]) -> dict:
    """Accuracy with its 95 % interval, share that zoomed, crops, IoU and whole targets, and the two signs of
    a guess: unanswered questions, and the share of the option that is chosen most. The interval counts groups
    (rotations, variants, sentences of one question) and repeats as one: they are no new questions."""
    n, right = len({row["id"] for row in records}), fmean(row["right"] for row in records)
    independent = len({group_of(row) for row in records})
    said = Counter(row["said"] for row in records if isinstance(row["said"], str))
    by_question = defaultdict(list)
    for row in records:
        by_question[row["id"]].append(row["right"])
    result = {"n": n, "accuracy": right, "interval": wilson(right, independent)}
    if len(records) > n:
        result["pass"] = fmean(map(any, by_question.values()))
    return result | {
        "tool_rate": mean(bool(row["boxes"]) for row in records),
        "crops": mean(len(row["boxes"]) for row in records),
        "iou": mean(row["iou"] for row in records),
        "holds": mean(row["holds"] for row in records),
        "tokens": mean(row["tokens"] for row in records),
        "errors": mean(row["errors"] for row in records),
        "unanswered": mean(row["answer"] is None for row in records),
        "favourite": max(said.values()) / len(records) if said else None,
    }


def by_kind(records: list[dict]) -> dict[str, dict]:
    """The summary of all, and of every `meta["kind"]`."""
    kinds = defaultdict(list)
    for row in records:
        kinds["all"].append(row)
        if kind := row["meta"].get("kind"):
            kinds[str(kind)].append(row)
    return {kind: summary(rows) for kind, rows in sorted(kinds.items())}


def paired(records: list[dict], one: str, other: str) -> dict | None:
    """The same questions in two arms, first answers: what each got right alone, and McNemar's test, in
    which a group counts once, for the arm that got more of it right."""
    right = defaultdict(dict)
    for row in records:
        if not row["repeat"]:
            right[row["arm"]][row["id"]] = row["right"], group_of(row)
    shared = right[one].keys() & right[other].keys()
    if not shared:
        return None
    ahead, gain, harm = Counter(), 0, 0
    for i in shared:
        (mine, group), (theirs, _) = right[one][i], right[other][i]
        gain, harm = gain + (mine and not theirs), harm + (theirs and not mine)
        ahead[group] += mine - theirs
    p = mcnemar(sum(v > 0 for v in ahead.values()), sum(v < 0 for v in ahead.values()))
    n = len(shared)
    return {"n": n, "gain": gain / n, "harm": harm / n, "difference": (gain - harm) / n, "p": p}


def answers(model, processor, samples, *, arm: str, seed=0, temperature=0.0, **more) -> list[Trajectory]:
    more |= {"tool": "on" if arm == "forced" else arm, "force_call": arm == "forced"}
    return rollout(model, processor, samples, temperature=temperature, seed=seed, **more)


def evaluate(model, processor, samples: list[Sample], arm: str, *, judge=None, **rollout_knobs) -> dict:
    """An arm's greedy answers: {"all": summary, kind: summary, ...}, kinds being `meta["kind"]`."""
    trajectories = answers(model, processor, samples, arm=arm, **rollout_knobs)
    return by_kind([record("", t, arm, judge=judge) for t in trajectories])


def table(result: dict) -> str:
    """The arms as a text table, accuracy (and share that zoomed) by kind of question."""
    kinds = sorted(set().union(*result.values()), key=lambda kind: (kind != "all", kind))
    widths = [max(15, len(kind) + 2) for kind in kinds]
    head = "".join(f"{kind:>{width}}" for kind, width in zip(kinds, widths))
    lines = [f"{'arm':<16}{'n':>6}{head}{'95 % of all':>16}{'IoU':>7}{'whole':>7}{'none':>7}{'same':>7}"]
    for arm, kind in result.items():
        cells = [
            f"{kind[k]['accuracy']:.3f} ({kind[k]['tool_rate']:.2f})" if k in kind else "-" for k in kinds
        ]
        cells = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths))
        aim, whole = kind.get("read", kind["all"]), kind["all"]
        interval = "{:.3f}-{:.3f}".format(*whole["interval"]) if "interval" in whole else "-"
        rest = (aim["iou"], aim["holds"], whole.get("unanswered"), whole.get("favourite"))
        rest = "".join(f"{'-' if v is None else format(v, '.2f'):>7}" for v in rest)
        lines.append(f"{arm:<16}{whole['n']:>6}{cells}{interval:>16}{rest}")
    aimed = "read questions" if "read" in kinds else "all"
    legend = "accuracy (share that zoomed). IoU of crops and targets; whole: all there is to read is in the"
    legend += (
        f" crops ({aimed}).\nnone: share without an answer. same: of the option said most (near 1: a guess)"
    )
    return "\n".join([*lines, legend])


def own_scores(name: str, records: list[dict]) -> dict:
    """The benchmark's own scores, means over the repeats."""
    repeats = [[row for row in records if row["repeat"] == k] for k in sorted({r["repeat"] for r in records})]
    scores = [SCORES[name](rows) for rows in repeats]
    return {key: mean(each.get(key) for each in scores) for key in scores[0]}


def results(name: str, records: list[dict], protocol: dict) -> dict:
    """All there is to say about the records, as it goes to eval.json."""
    arms = list(dict.fromkeys(row["arm"] for row in records))
    own = {arm: [row for row in records if row["arm"] == arm] for arm in arms}
    result = {"protocol": protocol, "arms": {arm: by_kind(rows) for arm, rows in own.items()}}
    if name in SCORES:
        result["scores"] = {arm: own_scores(name, rows) for arm, rows in own.items()}
    one = "on" if "on" in arms else arms[0]
    pairs = {f"{one} against {arm}": paired(records, one, arm) for arm in arms if arm != one}
    result["paired"] = {pair: found for pair, found in pairs.items() if found}
    if name in NOTES:
        result["note"] = NOTES[name]
    if name in PUBLISHED:
        result["published, percent, not measured here"] = PUBLISHED[name]
    return result


def report_text(result: dict) -> str:
    """The table, the paired answers, the benchmark's own scores, and the whole protocol."""
    lines = [table(result["arms"])]
    for arm, scores in result.get("scores", {}).items():
        lines.append(f"{arm}: " + ", ".join(f"{key} {value:.3f}" for key, value in scores.items()))
    for arm, kinds in result["arms"].items():
        if "pass" in kinds["all"]:
            k = result["protocol"]["repeats"]
            lines.append(
                f"{arm}: avg@{k} {kinds['all']['accuracy']:.3f}, pass@{k} {kinds['all']['pass']:.3f}"
            )
    for pair, found in result["paired"].items():
        one, other = pair.split(" against ")
        lines.append(
            f"{pair}: {found['difference']:+.3f}; right with {one} alone {found['gain']:.3f}, with"
            f" {other} alone {found['harm']:.3f} (McNemar p = {found['p']:.2g}, {found['n']} questions)"
        )
    if "note" in result:
        lines.append("note: " + result["note"])
    if published := result.get("published, percent, not measured here"):
        lines.append(
            "the paper's figures, not measured here: " + ", ".join(f"{m} {v}" for m, v in published.items())
        )
    lines.append("protocol: " + ", ".join(f"{key} {value}" for key, value in result["protocol"].items()))
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------
# The command.


@dataclass
class Knobs:
    model: str = knob(
        "tiny", "preset, folder of a model, or checkpoint of a run (whose pixel and turn limits are used)"
    )
    data: str = knob("toy", "toy | toy-mixture | deepeyes | seal | a folder | " + " | ".join(TABLES))
    root: str = knob("", "folder with the files of the benchmark or data set (default: the Hub's copy)")
    arms: str = knob("on,off,blank,random,oracle,forced", "which of " + ", ".join(ALL_ARMS))
    limit: int = knob(500, "how many questions (benchmarks: 0 is all, their default)")
    seed: int = knob(EVAL_SEED, "picks the questions; the default are, on the toy, those of train.py")
    repeats: int = knob(1, "answers a question: avg@k and pass@k")
    temperature: float = knob(0.0, "0 is greedy (1 if --repeats is more than 1)")
    official_order: bool = knob(False, "options in the benchmark's order, to compare with published numbers")
    zoom: bool = knob(False, "offer the zoom to reasoning benchmarks, too")
    judge: str = knob("", "URL of an OpenAI-compatible endpoint for answers that rules can't tell")
    ask: list[str] = field(
        default_factory=list,
        metadata={
            "help": 'a picture and a question: answer it, and show how: --ask photo.jpg "What ...?"',
            "nargs": "*",
        },
    )
    out: str = knob("", "folder of the results (default: runs/eval-MODEL-DATA)")
    quantize: Literal["", "4bit"] = knob("", "4 bits")
    look_pixels: int = knob(112 * 112, "pixel budget of the first look (big models: 784000)")
    crop_pixels: int = knob(134 * 134, "pixel budget of a crop (big models: 313600)")
    max_turns: int = knob(4, "model turns per question (big models: 5)")
    max_turn_tokens: int = knob(48, "tokens the model may write in one turn (big models: 384)")
    max_tokens: int = knob(320, "tokens of a whole completion, observations included (big models: 2048)")
    engine: Literal["slots", "generate"] = knob("slots", "of the rollout")
    batch: int = knob(256, "questions at once (big models: 64)")
    threads: int = knob(2, "CPU threads, and processes of a tiny model's rollout")


def stored_scores(file: Path) -> dict:
    return json.loads(file.read_text()) if file.exists() else {}


def read_knobs(argv: list[str]) -> Knobs:
    """Parse and check the knobs. A checkpoint's limits are those of its run, where none are given."""
    knobs, given = parse(Knobs, argv, __doc__)
    run = stored_scores(Path(knobs.model).parent / "args.json")
    for name in set(LIMITS) - given:
        usual = getattr(knobs, name) if knobs.model == "tiny" else BIG[name]
        setattr(knobs, name, run.get(name, usual))
    if unknown := set(knobs.arms.split(",")) - set(ALL_ARMS):
        fail(f"unknown arm {', '.join(sorted(unknown))}; known: {', '.join(ALL_ARMS)}")
    for name in (*LIMITS, "threads", "repeats"):
        if getattr(knobs, name) < 1:
            fail(f"--{name} must be at least 1")
    if not 0 <= knobs.temperature < math.inf:
        fail("--temperature must be a number from 0 (greedy) on")
    if "batch" not in given and knobs.look_pixels > BIG["look_pixels"]:  # the cache grows with the look
        knobs.batch = max(2, knobs.batch * BIG["look_pixels"] // knobs.look_pixels)
    if knobs.ask and len(knobs.ask) != 2:
        fail('--ask takes a picture and a question: --ask photo.jpg "What does the sign say?"')
    if knobs.ask and not Path(knobs.ask[0]).is_file():
        fail(f"no such picture: {knobs.ask[0]}")
    if knobs.data in TABLES and "limit" not in given:
        knobs.limit = 0
    if knobs.limit < 0 or (knobs.limit == 0 and knobs.data not in TABLES):
        fail("--limit must be at least 1 (0, all questions, for benchmarks)")
    if knobs.repeats > 1 and "temperature" not in given:
        knobs.temperature = 1.0
    if knobs.repeats > 1 and not knobs.temperature:
        fail("--repeats of a greedy model are all the same: give a --temperature")
    if knobs.data in REASONING and "arms" not in given:
        knobs.arms = "on,off" if knobs.zoom else "off"
    return knobs


def shuffled(sample: Sample, seed: int) -> Sample:
    """The options in an order of the sample's own; not where they are rotated already, or name each other.

    >>> shuffled(Sample("7", b"", "Which?", "a", options=("a", "b", "c")), 0).options
    ('a', 'c', 'b')
    """
    texts = [option.strip() for option in sample.options]
    if len(texts) < 2 or sample.meta.get("fixed") or all(re.fullmatch("[A-Z]", text) for text in texts):
        return sample
    if any(map(POINTING.search, texts)):
        return sample
    order = random.Random(f"{seed}-{sample.id}").sample(sample.options, len(sample.options))
    return replace(sample, options=tuple(order))


def pick(samples: list[Sample], limit: int, seed: int) -> list[Sample]:
    """So many questions, whole groups (`meta["group"]`) together where a score needs them whole."""
    groups = defaultdict(list)
    for sample in samples:
        groups[sample.meta.get("group", sample.id)].append(sample)
    kept = []
    for name in random.Random(seed).sample(list(groups), len(groups)) if limit else groups:
        if limit and len(kept) >= limit:
            break
        kept += groups[name]
    return kept


def questions(knobs: Knobs) -> list[Sample]:
    root = knobs.root or None
    if knobs.ask:
        return readable([Sample("ask", knobs.ask[0], knobs.ask[1], "", source="ask")])
    if knobs.data not in TABLES:
        return load(knobs.data, split="test", limit=knobs.limit, seed=knobs.seed, root=root)
    samples = pick(load_benchmark(knobs.data, root), knobs.limit, knobs.seed)
    if knobs.zoom:
        samples = [replace(sample, tool=True) for sample in samples]
    return samples if knobs.official_order else [shuffled(sample, knobs.seed) for sample in samples]


def make_protocol(knobs: Knobs, samples: list[Sample]) -> dict:
    """All that a number depends on; runs of one protocol share a folder, and go on where they stopped."""
    source = Path(resolve(knobs.model))
    weights = sorted(source.glob("*.safetensors")) if source.is_dir() else []
    named = ("model", "data", "root", "arms", "seed", "repeats", *LIMITS)
    protocol = {
        name: getattr(knobs, name) for name in (*named, "quantize", "temperature", "zoom", "judge", "ask")
    }
    free = any(
        shuffled(replace(s, id=f"{s.id}{i}"), 0).options != s.options for s in samples[:200] for i in range(9)
    )
    order = "as they stand" if not free else "official order" if knobs.official_order else "shuffled by item"
    protocol |= {"options": order if any(s.options for s in samples) else "none", "engine": knobs.engine}
    texts = [
        tools.prompt("", tool=True),
        tools.prompt("", tool=False),
        tools.prompt("", tool=False, boxed=True),
    ]
    protocol["prompts"] = f"{zlib.crc32(''.join([*texts, tools.observation()]).encode()):08x}"  # of tools.py
    protocol["weights"] = max((int(file.stat().st_mtime) for file in weights), default=knobs.model)
    protocol["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return protocol | {"questions": len(samples), "commit": commit()}


def commit() -> str:
    """The commit of this code, with a mark if files have been changed since."""
    here, run = Path(__file__).parent, partial(subprocess.run, capture_output=True, text=True)
    try:
        name = run(["git", "rev-parse", "--short", "HEAD"], cwd=here).stdout.strip()
        changed = run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=here).stdout.strip()
    except OSError:  # no git on this machine
        return "unknown"
    return (name or "unknown") + ("-changed" if changed else "")


def make_folder(knobs: Knobs, protocol: dict) -> Path:
    """The folder of the results; a default name taken by another protocol gets a number."""
    model = Path(knobs.model)
    label = f"{model.parent.name}-{model.name}" if model.name.startswith("checkpoint-") else model.name
    name = f"runs/eval-{label}-{'ask' if knobs.ask else Path(knobs.data).name}"
    wanted, number = json.loads(json.dumps(protocol)), 1
    while True:
        out = Path(knobs.out or (name if number == 1 else f"{name}-{number}"))
        before, number = stored_scores(out / "protocol.json"), number + 1
        foreign = not before and any((out / n).exists() for n in ("args.json", "eval.json", "records.jsonl"))
        if not foreign and before in ({}, wanted):
            break
        if knobs.out and foreign:
            fail(f"{out} is the folder of another run; give another --out")
        if knobs.out:
            changed = ", ".join(key for key in wanted if wanted[key] != before.get(key))
            fail(f"{out} holds answers to another protocol ({changed} differ); give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"can't write to {out}: {error.strerror}")
    return out


def attempt(ask, samples: list[Sample]) -> tuple[list, list[tuple[Sample, str]]]:
    """What `ask` makes of some samples; where they fail together they are tried by halves."""
    try:
        return (ask(samples) if samples else []), []
    except Exception as error:  # out of memory, a picture that breaks the processor: others must not suffer
        reason = f"{type(error).__name__}: {error}"
    gc.collect()  # only here, where the failed attempt's frames are gone, is its memory free again
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(samples) == 1:
        return [], [(samples[0], reason)]
    half = len(samples) // 2
    (first, bad), (second, worse) = attempt(ask, samples[:half]), attempt(ask, samples[half:])
    return first + second, bad + worse


def answer_all(knobs: Knobs, samples: list[Sample], out: Path, protocol: dict) -> list[dict]:
    """Ask what has not been answered yet, a batch at a time; every batch is stored at once."""
    records = rewrite(out / "records.jsonl", lambda row: True)
    done = {(row["arm"], row["repeat"], row["id"]) for row in records}
    rewrite(out / "trajectories.jsonl", lambda row: (row["arm"], 0, row["id"]) in done)
    (out / "failed.jsonl").unlink(missing_ok=True)
    jobs = [
        (arm, repeat, start)  # batches are cut before what is done is left out: the seed is the batch's own
        for arm in knobs.arms.split(",")
        for repeat in range(knobs.repeats)
        for start in range(0, len(samples), knobs.batch)
    ]
    waiting = [[s for s in samples[b : b + knobs.batch] if (a, r, s.id) not in done] for a, r, b in jobs]
    if not any(waiting):
        return records
    torch.set_num_threads(knobs.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, processor = load_model(knobs.model, quantize=knobs.quantize or None)
    pixel_budgets(processor, knobs.look_pixels, knobs.crop_pixels)
    write_json(out / "protocol.json", protocol)
    judge = Judge(knobs.judge, out / "judge.jsonl") if knobs.judge else None
    limits = {name: getattr(knobs, name) for name in (*LIMITS, "engine", "temperature")} | {
        "lanes": knobs.threads
    }
    shown, failed = {sample.id for sample in samples[:SHOWN]}, []

    def ask(some, arm, repeat, seed):
        trajectories = answers(model, processor, some, arm=arm, seed=seed, **limits)
        return [(t, record(knobs.data, t, arm, repeat, judge)) for t in trajectories]

    total = len(records) + sum(map(len, waiting))
    with tqdm(total=total, initial=len(records), unit="answer") as bar:
        for (arm, repeat, start), asked in zip(jobs, waiting):
            batch = [s for s in map(opened, asked) if s]
            found, bad = attempt(partial(ask, arm=arm, repeat=repeat, seed=10**6 * repeat + start), batch)
            if bad and not found and not records:
                raise ValueError(f"not one question of the first batch could be answered: {bad[0][1]}")
            failed += [{"arm": arm, "id": sample.id, "reason": reason} for sample, reason in bad]
            with (out / "records.jsonl").open("a") as file:
                file.write("".join(json.dumps(row) + "\n" for _, row in found))
            if failed:
                (out / "failed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in failed))
            for t, row in found:
                if t.sample.id in shown and repeat == 0:
                    show(out, t, row, processor.tokenizer)
            records += [json.loads(json.dumps(row)) for _, row in found]
            right = [row["right"] for row in records if row["arm"] == arm]
            bar.update(len(asked))
            bar.set_postfix_str(f"{arm}: {fmean(right):.3f} right" if right else "")
            del batch, found  # with their pictures, before the next ones are opened
    if failed:
        print(f"{len(failed)} answers failed and are not counted; they are named in {out / 'failed.jsonl'}")
    return records


def possible_arms(knobs: Knobs, samples: list[Sample]) -> str:
    """The arms that differ for these questions."""
    arms = knobs.arms.split(",")
    if "oracle" in arms and not any(sample.boxes for sample in samples):
        print("no question has a target box: without the oracle arm")
        arms.remove("oracle")
    if not any(sample.tool for sample in samples) and len(arms) > 1:
        print("the zoom is offered to no question (see --zoom): one arm, off")
        arms = ["off"]
    if not arms:
        raise ValueError("no arm is left that these questions can be asked in")
    return ",".join(dict.fromkeys(arms))


def show(out: Path, trajectory: Trajectory, row: dict, tokenizer) -> None:
    """Store a trajectory for the page, its pictures at most 640 px wide."""
    stem = "".join(c if c.isalnum() else "-" for c in trajectory.sample.id)[-80:] + "-" + row["arm"]
    small = replace(trajectory, images=[picture.copy() for picture in trajectory.images])
    for picture in small.images:
        picture.thumbnail((640, 640))
    names = [f"{stem}-{i}.png" for i in range(len(small.images))]
    reward = {"accuracy": float(row["right"]), "format": 0.0, "tool": 0.0, "total": float(row["right"])}
    store_trajectory(
        out, small, names, tokenizer, step=0, probe=False, arm=row["arm"], advantage=None, reward=reward
    )


def main(knobs: Knobs) -> None:
    samples = questions(knobs)
    if knobs.ask:
        knobs.arms, knobs.data = "on", "ask"
    if not samples:
        raise ValueError(f"{knobs.data}: no question that can be asked")
    knobs.arms = possible_arms(knobs, samples)
    out = make_folder(knobs, protocol := make_protocol(knobs, samples))
    records = answer_all(knobs, samples, out, protocol)
    if not records:
        raise ValueError("no question could be answered: not one of the pictures can be read")
    if knobs.ask:
        row = records[-1]
        print("\n".join(row["turns"]) + f"\n\nanswer: {row['answer']} ({len(row['boxes'])} zooms)")
    else:
        result = results(knobs.data, records, protocol)
        write_json(out / "eval.json", result)
        print(report_text(result))
        print(f"scores: {out / 'eval.json'}\nanswers: {out / 'records.jsonl'}")
    print(f"page:   {make_page(out)}")


if __name__ == "__main__":
    run_command(main, read_knobs)
