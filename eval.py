"""Score a model, with controls that show whether it looks: the same questions with the crop real, blank,
random, perfect or another thing's, without the tool, and with the call opened for it.

    python eval.py --model runs/tiny-toy/checkpoint-120 --data toy
    python eval.py --model qwen2.5-vl-7b --data vstar --arms on,off,blank        # a benchmark of the paper
    python eval.py --model qwen2.5-vl-3b --ask photo.jpg "What does the sign say?"

OUT gets eval.json (scores and the whole protocol), records.jsonl (every answer; a killed run goes on from
there) and report.html. --data is one of the paper's benchmarks, from the Hub or a folder (--root), or a data
set of train.py, of which the held-out part is asked.
"""

import json
import random
import re
import subprocess
import sys
import time
import zlib
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from config import LIMITS, EvalConfig, rollout_limits, run_command, where_rows_are
from evaluation.settle import PAPER, read_config, read_prompt

if __name__ == "__main__":  # before the heavy imports: a mistyped flag should not cost ten seconds
    CONFIG = read_config(sys.argv[1:], __doc__)

import torch
from tqdm import tqdm

import tools
from benchmarks import BENCHMARKS, grade, load_benchmark
from benchmarks.looking import ASK_LETTER
from data import USED, Sample, fingerprint, load, opened
from engine.inputs import pixel_budgets
from evaluation.ask import ask, last_message, model_label
from evaluation.frame_check import frame_check
from evaluation.scores import (
    answer_questions,
    compare_arms,
    cut_warning,
    make_record,
    mean,
    paired_text,
    possible_arms,
    score_table,
    summarise_by_kind,
    swap_text,
)
from grading.judge import Judge
from model import family_named, find_model, load_model, prepare_libraries
from options import toolbox
from rollout import first_turns
from runlog.render import make_page
from runlog.runs import new_folder, store_answer
from safe.files import append_rows, keep_rows, read_json, write_json
from safe.lock import hold
from safe.memory import free_memory

# Options that refer to others keep their places ("both of them", "none of the above", "B or C").
REFERRING = re.compile(
    r"\b[A-E] (?:and|or) [A-E]\b|\b(?:all|none|both|neither|any|either) of\b|\b(?:both|neither|none)\W*$"
    r"|\b(?:of|the) (?:above|below)\W*$",
    re.I,
)
PAPER_DECODING = "one greedy answer a question"  # temperature 0 in its scripts
PAGE_QUESTIONS = 60  # whose trajectories the page shows, all arms side by side


# --------------------------------------------------------------------------------------------------
# Questions.


def load_questions(config: EvalConfig) -> list[Sample]:
    """What is asked, in the words that the flags want."""
    wording = read_prompt(config.prompt)
    samples = find_questions(config)
    if config.protocol == "paper":
        samples = [replace(s, question=s.question.removesuffix(ASK_LETTER)) for s in samples]
    return [replace(sample, wording=wording) for sample in samples]


def find_questions(config: EvalConfig) -> list[Sample]:
    """A benchmark's questions, or those held out of a data set."""
    where = where_rows_are(config)
    if config.data not in BENCHMARKS:
        split = None if config.split == "all" else "test"
        return load(config.data, split=split, limit=config.limit, seed=config.seed, **where)
    questions = load_benchmark(config.data, **where)
    samples = pick_samples(questions, config.limit, config.seed)
    if config.zoom:
        samples = [replace(sample, tool=True) for sample in samples]
    if config.official_order:
        return samples
    return [shuffle_options(sample, config.seed) for sample in samples]


def pick_samples(samples: list[Sample], limit: int, seed: int) -> list[Sample]:
    """At least `limit` questions (0: all), in whole groups (`meta["group"]`): a score may need them whole."""
    groups = defaultdict(list)
    for sample in samples:
        groups[sample.meta.get("group", sample.id)].append(sample)
    if not limit:
        return [sample for group in groups.values() for sample in group]
    kept = []
    for name in random.Random(seed).sample(list(groups), len(groups)):
        if len(kept) >= limit:
            break
        kept += groups[name]
    return kept


def may_shuffle(sample: Sample) -> bool:
    """Can the options change places? Not if the benchmark rotates them already, if they are mere letters (of
    an image), or if they refer to one another.

    >>> may_shuffle(Sample("1", b"", "Which?", "a", options=("red", "blue")))
    True
    >>> may_shuffle(Sample("2", b"", "Which?", "a", options=("red", "none of the above")))
    False
    """
    texts = [option.strip() for option in sample.options]
    if len(texts) < 2 or sample.meta.get("fixed"):
        return False
    only_letters = all(re.fullmatch("[A-Z]", text) for text in texts)
    return not only_letters and not any(map(REFERRING.search, texts))


def shuffle_options(sample: Sample, seed: int) -> Sample:
    """The options in an order that depends on the sample's id and the seed, if they may be shuffled.

    >>> shuffle_options(Sample("7", b"", "Which?", "a", options=("a", "b", "c")), 0).options
    ('a', 'c', 'b')
    """
    if not may_shuffle(sample):
        return sample
    rng = random.Random(f"{seed}-{sample.id}")
    return replace(sample, options=tuple(rng.sample(sample.options, len(sample.options))))


def arms_to_ask(config: EvalConfig, samples: list[Sample]) -> str:
    """The arms that differ for these questions."""
    wanted = list(dict.fromkeys(config.arms.split(",")))
    arms = possible_arms(samples, wanted)
    if left_out := [arm for arm in wanted if arm not in arms]:
        print(f"no question has a box to show for it: without the arms {', '.join(left_out)}")
    if not any(sample.tool for sample in samples) and len(arms) > 1:
        print("the zoom is offered to no question (see --zoom): one arm, off")
        arms = ["off"]
    if not arms:
        raise ValueError("no arm is left that these questions can be asked in")
    return ",".join(arms)


# --------------------------------------------------------------------------------------------------
# The protocol, and the folder of the results.


def make_protocol(config: EvalConfig, samples: list[Sample]) -> dict:
    """All that a score depends on. Runs of one protocol share a folder, and go on where they stopped."""
    usual = EvalConfig()
    names = ["model", "data", "root", "arms", "seed", "repeats"]
    names += [name for name in LIMITS if name not in ("threads", "engine", "quantize", "tools")]
    # Older folders lack these, so they are named only where they are used.
    for name in ("split", "protocol", "prompt", "tools"):
        if getattr(config, name) != getattr(usual, name):
            names.append(name)
    names += ["quantize", "temperature", "zoom", "judge"]
    source = Path(find_model(config.model))
    weights = sorted(source.glob("*.safetensors")) if source.is_dir() else []
    return {name: getattr(config, name) for name in names} | {
        "options": options_order(config, samples),
        "engine": config.engine,
        "prompts": prompts_hash(config, samples[0]),
        "weights": max((int(file.stat().st_mtime) for file in weights), default=config.model),
        "revision": revision_of(source),
        "data_revision": ", ".join(USED.values()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "questions": len(samples),
        "rows": fingerprint(samples),
        "commit": commit(),
    }


def options_order(config: EvalConfig, samples: list[Sample]) -> str:
    """The order of the options, for the protocol."""
    if not any(sample.options for sample in samples):
        return "none"
    if not any(map(may_shuffle, samples)):
        return "as they stand"
    return "official order" if config.official_order else "shuffled by item"


def prompts_hash(config: EvalConfig, sample: Sample) -> str:
    """A hash of all that the model is told beside the questions."""
    schemas = [tool.schema for tool in toolbox.named(config.tools)]
    prompts = tools.prompt("", schemas=schemas)
    prompts += tools.prompt("", tool=False)
    prompts += tools.prompt("", tool=False, boxed=True)
    prompts += tools.observation(schemas=schemas)
    prompts += "".join(sample.wording or ())
    prompts = tools.in_frame(prompts, family_named(config.model).frame)
    return f"{zlib.crc32(prompts.encode()):08x}"


def revision_of(source: Path) -> str:
    """The commit of a model in the Hub's cache; "" for a model that lies elsewhere.

    >>> revision_of(Path("/hub/models--Qwen--X/snapshots/66285546d2b8/")), revision_of(Path("runs/x"))
    ('66285546d2b8', '')
    """
    return source.name if source.parent.name == "snapshots" else ""


def commit() -> str:
    """The commit of this code, with a mark if files have been changed since."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=-changed"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:  # no git on this machine
        return "unknown"
    return done.stdout.strip() or "unknown"


def make_folder(config: EvalConfig, protocol: dict) -> Path:
    """The folder of the results. A usual name that is taken by another protocol gets a number; an --out that
    is taken ends the script."""
    data = Path(config.data).name.replace(":", "-")
    usual = f"runs/eval-{model_label(config.model)}-{data}"
    return new_folder(usual, config.out, partial(folder_fault, protocol=stored_form(protocol)))


def folder_fault(folder: Path, protocol: dict) -> str:
    """Why results of this protocol can't go into a folder; "" if they can."""
    before = read_json(folder / "protocol.json")
    if not before:
        names = ("args.json", "eval.json", "records.jsonl")
        return "is the folder of another run" if any((folder / name).exists() for name in names) else ""
    if before == protocol:
        return ""
    older = {"rows": protocol["rows"]}  # what the folders of before lack
    changed = [key for key in protocol if protocol[key] != (older | before).get(key)]
    changed = [key for key in changed if key != "rows"] or changed  # other flags ask other rows
    return "" if not changed else f"holds answers to another protocol ({', '.join(changed)} differ)"


def stored_form(record: dict) -> dict:
    """A record as it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(record))


# --------------------------------------------------------------------------------------------------
# Answers.


class Job(NamedTuple):
    """A batch of questions in one arm, without those that are answered already."""

    arm: str
    repeat: int
    seed: int
    samples: list[Sample]


def make_jobs(config: EvalConfig, samples: list[Sample], done: set) -> list[Job]:
    """All batches. done: (arm, repeat, id) of the stored answers.

    The stored answers are left out after the cut into batches, so that a batch keeps its seed on a restart.
    """
    jobs = []
    for arm in config.arms.split(","):
        for repeat in range(config.repeats):
            for start in range(0, len(samples), config.batch):
                batch = samples[start : start + config.batch]
                left = [sample for sample in batch if (arm, repeat, sample.id) not in done]
                jobs.append(Job(arm, repeat, 10**6 * repeat + start, left))
    return jobs


def by_halves(f, items: list) -> tuple[list, list[tuple]]:
    """`f` of a list of items, itself a list; where that fails, `f` of each half, and so on.

    Returns the results, and the items that failed even alone, each with the reason.
    """
    if not items:
        return [], []
    try:
        return f(items), []
    # Out of memory, or an image that breaks the processor: the other items must not suffer.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    free_memory()  # not earlier: here the frames of the failed call are gone
    if len(items) == 1:
        return [], [(items[0], reason)]
    half = len(items) // 2
    first, first_failed = by_halves(f, items[:half])
    second, second_failed = by_halves(f, items[half:])
    return first + second, first_failed + second_failed


def answer_job(
    job: Job, samples: list[Sample], model, processor, config: EvalConfig, judge, known: dict
) -> list[tuple]:
    """Trajectories of these samples of the job, each with its record. known: of greedy answers, the first
    turns of the arm "on", which other arms take over."""
    settings = rollout_limits(config) | {"temperature": config.temperature, "seed": job.seed}
    began = time.perf_counter()
    trajectories = answer_questions(model, processor, samples, job.arm, known=known, **settings)
    seconds = (time.perf_counter() - began) / len(samples)
    is_last = job.arm == config.arms.split(",")[-1]
    if job.arm == "on" and not is_last and not config.temperature:
        known |= first_turns(trajectories)
    answers = []
    for trajectory in trajectories:
        if config.protocol == "paper" or config.prompt:
            trajectory.answer = trajectory.answer or last_message(trajectory)
        missed = judge.missed if judge else 0
        grades = grade(config.data, trajectory, judge, config.protocol) | {"seconds": round(seconds, 3)}
        if judge and judge.missed > missed:
            grades |= {"unjudged": True}
        answers.append((trajectory, make_record(trajectory, grades, job.arm, job.repeat)))
    return answers


def answer_all(config: EvalConfig, samples: list[Sample], out: Path, protocol: dict) -> list[dict]:
    """The records of all answers, old and new. What is not stored yet is asked; a batch is stored at once."""
    # An answer that was graded while the judge was away is asked again.
    records = keep_rows(out / "records.jsonl", lambda row: not (config.judge and row.get("unjudged")))
    done = {(record["arm"], record["repeat"], record["id"]) for record in records}
    keep_rows(out / "trajectories.jsonl", lambda row: (row["arm"], 0, row["id"]) in done)
    (out / "failed.jsonl").unlink(missing_ok=True)
    jobs = make_jobs(config, samples, done)
    missing = sum(len(job.samples) for job in jobs)
    if not missing:
        return records
    prepare_libraries(config.threads)
    model, processor = load_model(config.model, quantize=config.quantize)
    pixel_budgets(processor, config.look_pixels, config.crop_pixels)
    write_json(out / "protocol.json", protocol)
    frame = frame_check(model, processor, config)
    print(frame.text() + ("" if frame.is_good() else ": its crops may show something else than it asks for"))
    write_json(out / "frame.json", frame._asdict())
    judge = Judge(config.judge, out / "judge.jsonl") if config.judge else None
    on_page = {sample.id for sample in samples[:PAGE_QUESTIONS]}
    failures = 0
    unreadable = set()
    known = {}  # first turns of the arm "on"
    with tqdm(total=len(records) + missing, initial=len(records), unit="answer") as bar:
        for job in jobs:
            answer = partial(
                answer_job, job, model=model, processor=processor, config=config, judge=judge, known=known
            )
            wanted = [sample for sample in job.samples if sample.id not in unreadable]
            readable = [sample for sample in map(opened, wanted) if sample]
            lost = {sample.id for sample in wanted} - {sample.id for sample in readable}
            for name in sorted(lost):
                append_rows(out / "failed.jsonl", {"arm": "all", "id": name, "reason": "can't be opened"})
            unreadable |= lost
            answers, failed = by_halves(answer, readable)
            if failed and not answers and not records:
                raise ValueError(f"not one question of the first batch could be answered: {failed[0][1]}")
            for sample, reason in failed:
                append_rows(out / "failed.jsonl", {"arm": job.arm, "id": sample.id, "reason": reason})
            failures += len(failed)
            append_rows(out / "records.jsonl", *[record for _, record in answers])
            records += [stored_form(record) for _, record in answers]
            for trajectory, record in answers:
                if trajectory.sample.id in on_page and job.repeat == 0:
                    store_answer(out, trajectory, float(record["right"]), job.arm, processor.tokenizer)
            del answers  # with their images, before the next ones are opened
            bar.update(len(job.samples))
            right = [record["right"] for record in records if record["arm"] == job.arm]
            bar.set_postfix_str(f"{job.arm}: accuracy {fmean(right):.3f}" if right else "")
    if judge and judge.missed:
        print(f"{judge.say_missed()}; the same command asks for them again")
    if unreadable:
        named = f"they are named in {out / 'failed.jsonl'}"
        print(f"{len(unreadable)} of {len(samples)} questions are left out, as they can't be opened; {named}")
    if failures:
        print(f"{failures} answers failed and are not counted; they are named in {out / 'failed.jsonl'}")
    return records


# --------------------------------------------------------------------------------------------------
# Results.


def benchmark_scores(name: str, records: list[dict]) -> dict:
    """The benchmark's own scores, means over the repeats."""
    scores = []
    for repeat in sorted({record["repeat"] for record in records}):
        rows = [record for record in records if record["repeat"] == repeat]
        scores.append(BENCHMARKS[name].scores(rows))
    return {key: mean(row.get(key) for row in scores) for key in scores[0]}


def make_result(name: str, records: list[dict], protocol: dict) -> dict:
    """All there is to say about the records, as it goes to eval.json. name: of the data."""
    by_arm = defaultdict(list)
    for record in records:
        by_arm[record["arm"]].append(record)
    result = {"protocol": protocol}
    result["arms"] = {arm: summarise_by_kind(rows) for arm, rows in by_arm.items()}
    benchmark = BENCHMARKS.get(name)
    if benchmark and benchmark.scores:
        result["scores"] = {arm: benchmark_scores(name, rows) for arm, rows in by_arm.items()}
    one = "on" if "on" in by_arm else next(iter(by_arm))
    result["paired"] = {}
    for other in by_arm:
        compared = compare_arms(records, one, other) if other != one else None
        if compared:
            result["paired"][f"{one} against {other}"] = compared
    if benchmark:
        result["note"] = benchmark.note
    if benchmark and benchmark.published:
        figures = dict(zip(("Qwen2.5-VL-7B", "DeepEyes-7B"), benchmark.published))
        result["published, percent, not measured here"] = figures
        result["unlike the paper"] = unlike_paper(protocol)
    return result


def unlike_paper(protocol: dict) -> list[str]:
    """In what a run differs from the paper's measurements: the model first.

    >>> unlike_paper({"model": "tiny", "look_pixels": 16384 * 28 * 28, "max_turns": 4, "options": "none"})
    ['model tiny', 'max_turns 4 (paper: 11)']
    """
    found = [f"model {protocol.get('model')}"]
    for name, value in PAPER.items():
        if protocol.get(name, value) != value:
            found.append(f"{name} {protocol[name]} (paper: {value})")
    if protocol.get("temperature"):
        found.append(f"temperature {protocol['temperature']} (paper: 0)")
    if protocol.get("options") == "shuffled by item":
        found.append("options shuffled (paper: as the benchmark has them)")
    return found


def result_text(result: dict) -> str:
    """The table, the paired answers, the benchmark's own scores, and the whole protocol."""
    arms = result["arms"]
    lines = [score_table(arms), cut_warning(arms)]
    for arm, scores in result.get("scores", {}).items():
        lines.append(f"{arm}: " + ", ".join(f"{key} {value:.3f}" for key, value in scores.items()))
    for arm, kinds in arms.items():
        overall = kinds["all"]
        if "pass" in overall:
            lines.append(repeats_text(arm, overall, result["protocol"]["repeats"]))
    for pair, found in result["paired"].items():
        one, other = pair.split(" against ")
        lines.append(paired_text(one, other, found))
    lines.append(swap_text(arms.get("swap", {})))
    if result.get("note"):
        lines.append("note: " + result["note"])
    if published := result.get("published, percent, not measured here"):
        figures = ", ".join(f"{model} {value}" for model, value in published.items())
        lines.append(f"the paper's figures ({PAPER_DECODING}), not measured here: {figures}")
        lines.append("this run is unlike theirs in: " + ", ".join(result["unlike the paper"]))
    known = (f"{key} {value}" for key, value in result["protocol"].items() if value != "")
    lines.append("protocol: " + ", ".join(known))
    return "\n".join(filter(None, lines))


def repeats_text(arm: str, summary: dict, k: int) -> str:
    """The scores of k sampled answers a question, and what an answer took."""
    low, high = summary["interval"]
    text = f"{arm}: avg@{k} {summary['accuracy']:.3f} ({low:.3f} to {high:.3f}, over questions)"
    text += f", pass@{k} {summary['pass']:.3f}; {summary['tokens']:.0f} tokens"
    seconds = summary.get("seconds")  # folders of before lack it
    return text + (f" and {seconds:.2f} s an answer" if seconds is not None else " an answer")


# --------------------------------------------------------------------------------------------------
# The command.


def main(config: EvalConfig) -> None:
    toolbox.named(config.tools)  # raises ValueError for unknown names
    if config.ask:
        print(f"page:   {ask(config, read_prompt(config.prompt))}")
        return
    samples = load_questions(config)
    if not samples:
        raise ValueError(f"{config.data}: no question that can be asked")
    config = replace(config, arms=arms_to_ask(config, samples))
    protocol = make_protocol(config, samples)
    out = make_folder(config, protocol)
    hold(out)
    records = answer_all(config, samples, out, protocol)
    if not records:
        raise ValueError("no question could be answered: not one of the images can be read")
    if config.judge:  # answers that it should have graded, and could not
        protocol["unjudged"] = sum(bool(record.get("unjudged")) for record in records)
    result = make_result(config.data, records, protocol)
    write_json(out / "eval.json", result)
    print(result_text(result))
    print(f"scores: {out / 'eval.json'}\nanswers: {out / 'records.jsonl'}")
    print(f"page:   {make_page(out)}")


if __name__ == "__main__":
    run_command(main, lambda _: CONFIG)
