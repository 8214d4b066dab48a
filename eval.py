"""Score a model, with controls that show whether it looks: the same questions with the crop real, blank,
random, perfect or another thing's, without the tool, and with the call opened for it.

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
import sys
import zlib
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

from config import (
    ARMS,
    BENCHMARK_KINDS,
    LIMITS,
    EvalConfig,
    check_at_least,
    check_data_name,
    fill_limits,
    parse,
    rollout_limits,
    run_command,
    usual_limits,
)
from safe.files import fail, read_json, write_json

# Options that speak of others keep their places ("both of them", "none of the above", "B or C").
POINTING = re.compile(
    r"\b[A-E] (?:and|or) [A-E]\b|\b(?:all|none|both|neither|any|either) of\b|\b(?:both|neither|none)\W*$"
    r"|\b(?:of|the) (?:above|below)\W*$",
    re.I,
)
THOUGHT_TOKENS = 4096  # at least, on benchmarks of reasoning; others give 16,384 and more
# The paper's script for V*: 16,384 visual tokens for the look and each crop, 10,240 tokens a turn, 11 turns.
# It bounds no whole; 20,480 is what training gave.
PAPER = {
    "look_pixels": 16384 * 28 * 28,
    "crop_pixels": 16384 * 28 * 28,
    "max_turns": 11,
    "max_turn_tokens": 10240,
    "max_tokens": 20480,
    "official_order": True,
}
PAGE_QUESTIONS = 60  # whose trajectories the page shows, all arms side by side


def check_words(config: EvalConfig, given: set[str]) -> None:
    """End the script for a name that there is not, or a flag that another one needs."""
    if unknown := set(config.arms.split(",")) - set(ARMS):
        fail(f"unknown arm {', '.join(sorted(unknown))}; known: {', '.join(ARMS)}")
    if "ask" in given and not config.ask:
        fail('--ask: which image? --ask photo.jpg "What does the sign say?"')
    if config.ask and not Path(config.ask[0]).is_file():
        fail(f"no such image: {config.ask[0]}")
    if not config.ask:
        check_data_name(config.data, BENCHMARK_KINDS)
    foreign = config.ask or config.data in BENCHMARK_KINDS
    if foreign and "model" not in given:
        fail("--model: which? The tiny model has seen nothing but the toy, no photograph")


def read_config(argv: list[str]) -> EvalConfig:
    """Parse, settle and check the flags."""
    config, given = parse(EvalConfig, argv, __doc__)
    check_words(config, given)
    toolbox.named(config.tools)  # raises ValueError for names that there are not
    if config.prompt:
        read_prompt(config.prompt)
        if "arms" not in given and not config.ask:
            fail("--prompt needs --arms: on if its words offer the zoom, off if they don't")
    config = fill_limits(config, given)
    usual = usual_values(config, given)
    config = replace(config, **{name: value for name, value in usual.items() if name not in given})
    check_at_least(1, config, "look_pixels crop_pixels max_turns max_turn_tokens max_tokens batch")
    check_at_least(1, config, "threads repeats")
    if not 0 <= config.temperature < math.inf:
        fail("--temperature must be a number from 0 (greedy) on")
    is_benchmark = config.data in BENCHMARK_KINDS
    if config.limit < 0 or (config.limit == 0 and not is_benchmark):
        fail("--limit must be at least 1 (0, all questions, for benchmarks)")
    if config.repeats > 1 and not config.temperature:
        fail("--repeats of a greedy model are all the same: give a --temperature")
    return config


def usual_values(config: EvalConfig, given: set[str]) -> dict:
    """What is usual for this data and protocol, where nothing else is given."""
    usual = dict(PAPER) if config.protocol == "paper" else {}
    if config.data in BENCHMARK_KINDS:
        usual["limit"] = 0
    if BENCHMARK_KINDS.get(config.data) == "reasoning":  # a chain of thought that is cut counts as wrong
        turn = max(usual.get("max_turn_tokens", config.max_turn_tokens), THOUGHT_TOKENS)
        turn = config.max_turn_tokens if "max_turn_tokens" in given else turn
        usual["max_turn_tokens"] = turn
        usual["max_tokens"] = max(usual.get("max_tokens", config.max_tokens), turn)
        usual["arms"] = "on,off" if config.zoom else "off"
    if config.repeats > 1:
        usual["temperature"] = 1.0
    look = config.look_pixels if "look_pixels" in given else usual.get("look_pixels", config.look_pixels)
    usual_look = usual_limits("").look_pixels
    if look > usual_look:  # the cache grows with the look
        usual["batch"] = max(2, config.batch * usual_look // look)
    return usual


# --------------------------------------------------------------------------------------------------
# The heavy imports come after the words are checked: a mistyped flag should not cost ten seconds.

if __name__ == "__main__":
    check_words(*parse(EvalConfig, sys.argv[1:], __doc__))  # read_knobs does all of it, when it can

import torch
from tqdm import tqdm

import tools
from benchmarks import BENCHMARKS, grade, load_benchmark
from benchmarks.looking import ASK_LETTER
from data import USED, Sample, load, opened
from engine.inputs import pixel_budgets
from evaluation.ask import ask, last_message, model_label
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
)
from grading.judge import Judge
from model import family_named, find_model, load_model, prepare_libraries
from options import toolbox
from runlog.render import make_page
from runlog.runs import store_answer
from safe.files import append_rows, keep_rows
from safe.lock import hold


def may_shuffle(sample: Sample) -> bool:
    """Can the options change places? Not where they are rotated already, are mere letters (of an image), or
    name each other.

    >>> may_shuffle(Sample("1", b"", "Which?", "a", options=("red", "blue")))
    True
    >>> may_shuffle(Sample("2", b"", "Which?", "a", options=("red", "none of the above")))
    False
    """
    texts = [option.strip() for option in sample.options]
    if len(texts) < 2 or sample.meta.get("fixed"):
        return False
    only_letters = all(re.fullmatch("[A-Z]", text) for text in texts)
    return not only_letters and not any(map(POINTING.search, texts))


def shuffle_options(sample: Sample, seed: int) -> Sample:
    """The options in an order of the sample's own, where they may be shuffled.

    >>> shuffle_options(Sample("7", b"", "Which?", "a", options=("a", "b", "c")), 0).options
    ('a', 'c', 'b')
    """
    if not may_shuffle(sample):
        return sample
    rng = random.Random(f"{seed}-{sample.id}")
    return replace(sample, options=tuple(rng.sample(sample.options, len(sample.options))))


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


def read_prompt(file: str) -> tuple[str, str]:
    """The system prompt and the user's text, with "{question}" in it, of a file; ends the script if it has
    no such text. Without a line of --- it is all the user's."""
    try:
        text = Path(file).read_text(encoding="utf-8").strip("\n")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--prompt {file}: can't be read ({type(error).__name__})")
    system, found, user = text.partition("\n---\n")
    if not found:
        system = tools.PLAIN_SYSTEM
        user = text
    if user.count("{question}") != 1:
        fail(f"--prompt {file}: the user's text (after a line ---) must hold {{question}} once")
    if "<|" in text:
        fail(f"--prompt {file}: no special tokens such as <|im_start|>; turns and image are added")
    return system, user


def load_questions(config: EvalConfig) -> list[Sample]:
    """What is asked, in the words that were asked for."""
    samples = find_questions(config)
    if config.protocol == "paper":
        samples = [replace(s, question=s.question.removesuffix(ASK_LETTER)) for s in samples]
    if config.prompt:
        wording = read_prompt(config.prompt)
        samples = [replace(sample, wording=wording) for sample in samples]
    return samples


def find_questions(config: EvalConfig) -> list[Sample]:
    """A benchmark's questions, or those held out of a data set."""
    root = config.root or None
    if config.data not in BENCHMARKS:
        split = None if config.split == "all" else "test"
        settings = {"root": root, "revision": config.revision}
        settings["allow_outside"] = config.allow_outside
        return load(config.data, split=split, limit=config.limit, seed=config.seed, **settings)
    questions = load_benchmark(config.data, root, config.revision)
    samples = pick_samples(questions, config.limit, config.seed)
    if config.zoom:
        samples = [replace(sample, tool=True) for sample in samples]
    if config.official_order:
        return samples
    return [shuffle_options(sample, config.seed) for sample in samples]


def options_order(config: EvalConfig, samples: list[Sample]) -> str:
    """How the options stand, for the protocol."""
    if not any(sample.options for sample in samples):
        return "none"
    if not any(map(may_shuffle, samples)):
        return "as they stand"
    return "official order" if config.official_order else "shuffled by item"


def revision_of(source: Path) -> str:
    """The commit of a model in the Hub's cache; "" for one that lies elsewhere.

    >>> revision_of(Path("/hub/models--Qwen--X/snapshots/66285546d2b8/")), revision_of(Path("runs/x"))
    ('66285546d2b8', '')
    """
    return source.name if source.parent.name == "snapshots" else ""


def make_protocol(config: EvalConfig, samples: list[Sample]) -> dict:
    """All that a number depends on; runs of one protocol share a folder, and go on where they stopped."""
    limits = [name for name in LIMITS if name not in ("threads", "engine", "quantize", "tools")]
    named = ["model", "data", "root", "arms", "seed", "repeats", *limits]
    # Named only where they are used.
    named += ["split"] if config.split == "all" else []
    named += ["protocol"] if config.protocol == "paper" else []
    named += ["prompt"] if config.prompt else []
    named += ["tools"] if config.tools != "zoom" else []
    named += ["quantize", "temperature", "zoom", "judge"]
    protocol = {name: getattr(config, name) for name in named}
    protocol["options"] = options_order(config, samples)
    protocol["engine"] = config.engine
    schemas = [tool.schema for tool in toolbox.named(config.tools)]
    prompts = (
        tools.prompt("", schemas=schemas)
        + tools.prompt("", tool=False)
        + tools.prompt("", tool=False, boxed=True)
        + tools.observation(schemas=schemas)
    )
    prompts += "".join(samples[0].wording or ())
    prompts = tools.in_frame(prompts, family_named(config.model).frame)
    protocol["prompts"] = f"{zlib.crc32(prompts.encode()):08x}"
    source = Path(find_model(config.model))
    weights = sorted(source.glob("*.safetensors")) if source.is_dir() else []
    protocol["weights"] = max((int(file.stat().st_mtime) for file in weights), default=config.model)
    protocol["revision"] = revision_of(source)
    protocol["data_revision"] = ", ".join(USED.values())
    protocol["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    protocol["questions"] = len(samples)
    protocol["commit"] = commit()
    return protocol


def commit() -> str:
    """The commit of this code, with a mark if files have been changed since."""
    git = partial(subprocess.run, capture_output=True, text=True, cwd=Path(__file__).parent)
    try:
        name = git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except OSError:  # no git on this machine
        return "unknown"
    return (name or "unknown") + ("-changed" if changed else "")


def make_folder(config: EvalConfig, protocol: dict) -> Path:
    """The folder of the results; a default name taken by another protocol gets a number."""
    wanted = stored_form(protocol)
    if config.out:
        check_folder(Path(config.out), wanted)
        out = Path(config.out)
    else:
        asked = Path(config.data).name.replace(":", "-")
        usual = f"runs/eval-{model_label(config.model)}-{asked}"
        out = Path(usual)
        number = 2
        while is_foreign(out) or read_json(out / "protocol.json") not in ({}, wanted):
            out = Path(f"{usual}-{number}")
            number += 1
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"can't write to {out}: {error.strerror}")
    return out


def is_foreign(out: Path) -> bool:
    """Does a folder hold results that are not of this script's doing?"""
    if (out / "protocol.json").exists():
        return False
    return any((out / name).exists() for name in ("args.json", "eval.json", "records.jsonl"))


def check_folder(out: Path, wanted: dict) -> None:
    """End the script if the folder that was asked for holds something else."""
    if is_foreign(out):
        fail(f"{out} is the folder of another run; give another --out")
    before = read_json(out / "protocol.json")
    changed = [key for key in wanted if wanted[key] != before.get(key)]
    if before and before != wanted:
        fail(f"{out} holds answers to another protocol ({', '.join(changed)} differ); give another --out")


def stored_form(record: dict) -> dict:
    """A record as it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(record))


def attempt(answer, samples: list[Sample]) -> tuple[list, list[tuple[Sample, str]]]:
    """What `answer` makes of some samples; where they fail together they are tried by halves.

    Returns the results, and the samples that failed by themselves with the reasons.
    """
    if not samples:
        return [], []
    try:
        return answer(samples), []
    except Exception as error:  # out of memory, an image that breaks the processor: others must not suffer
        reason = f"{type(error).__name__}: {error}"
    gc.collect()  # only here, where the failed attempt's frames are gone, is its memory free again
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(samples) == 1:
        return [], [(samples[0], reason)]
    half = len(samples) // 2
    first, first_failed = attempt(answer, samples[:half])
    second, second_failed = attempt(answer, samples[half:])
    return first + second, first_failed + second_failed


class Job:
    """A batch of questions in one arm, less those that have been answered already.

    These are left out after the cut into batches, so that a batch keeps its seed on a restart.
    """

    def __init__(
        self, config: EvalConfig, samples: list[Sample], arm: str, repeat: int, start: int, done: set
    ):
        batch = samples[start : start + config.batch]
        self.arm = arm
        self.repeat = repeat
        self.seed = 10**6 * repeat + start
        self.samples = [sample for sample in batch if (arm, repeat, sample.id) not in done]


def make_jobs(config: EvalConfig, samples: list[Sample], done: set) -> list[Job]:
    """All batches that are left; done: (arm, repeat, id) of the answers that are stored."""
    return [
        Job(config, samples, arm, repeat, start, done)
        for arm in config.arms.split(",")
        for repeat in range(config.repeats)
        for start in range(0, len(samples), config.batch)
    ]


def answer_job(job: Job, samples: list[Sample], model, processor, config: EvalConfig, judge) -> list[tuple]:
    """Trajectories of these samples in the job's arm, each with its record."""
    settings = rollout_limits(config) | {"temperature": config.temperature, "seed": job.seed}
    trajectories = answer_questions(model, processor, samples, job.arm, **settings)
    answers = []
    for trajectory in trajectories:
        if config.protocol == "paper" or config.prompt:
            trajectory.answer = trajectory.answer or last_message(trajectory)
        missed = judge.missed if judge else 0
        grades = grade(config.data, trajectory, judge, config.protocol)
        if judge and judge.missed > missed:
            grades |= {"unjudged": True}
        answers.append((trajectory, make_record(trajectory, grades, job.arm, job.repeat)))
    return answers


def answer_all(config: EvalConfig, samples: list[Sample], out: Path, protocol: dict) -> list[dict]:
    """Ask what has not been answered yet, a batch at a time; every batch is stored at once."""
    # What a judge that was away should have graded is asked again
    records = keep_rows(out / "records.jsonl", lambda row: not (config.judge and row.get("unjudged")))
    done = {(record["arm"], record["repeat"], record["id"]) for record in records}
    keep_rows(out / "trajectories.jsonl", lambda row: (row["arm"], 0, row["id"]) in done)
    (out / "failed.jsonl").unlink(missing_ok=True)
    jobs = make_jobs(config, samples, done)
    missing = sum(len(job.samples) for job in jobs)
    if not missing:
        return records
    prepare_libraries(config.threads)
    model, processor = load_model(config.model, quantize=config.quantize or None)
    pixel_budgets(processor, config.look_pixels, config.crop_pixels)
    write_json(out / "protocol.json", protocol)
    judge = Judge(config.judge, out / "judge.jsonl") if config.judge else None
    on_page = {sample.id for sample in samples[:PAGE_QUESTIONS]}
    failures = 0
    with tqdm(total=len(records) + missing, initial=len(records), unit="answer") as bar:
        for job in jobs:
            answer = partial(answer_job, job, model=model, processor=processor, config=config, judge=judge)
            answers, failed = attempt(answer, [sample for sample in map(opened, job.samples) if sample])
            if failed and not answers and not records:
                raise ValueError(f"not one question of the first batch could be answered: {failed[0][1]}")
            for sample, reason in failed:
                append_rows(out / "failed.jsonl", {"arm": job.arm, "id": sample.id, "reason": reason})
            failures += len(failed)
            append_rows(out / "records.jsonl", *[record for _, record in answers])
            for trajectory, record in answers:
                records.append(stored_form(record))
                if trajectory.sample.id in on_page and job.repeat == 0:
                    right = float(record["right"])
                    store_answer(out, trajectory, right, job.arm, processor.tokenizer)
            right = [record["right"] for record in records if record["arm"] == job.arm]
            bar.update(len(job.samples))
            bar.set_postfix_str(f"{job.arm}: {fmean(right):.3f} right" if right else "")
            del answers  # with their images, before the next ones are opened
    if judge and judge.missed:
        times = f"the judge was away {judge.outages} times"
        print(f"{judge.missed} answers were graded by the rules alone, as {times};")
        print("the same command asks for them again")
    if failures:
        print(f"{failures} answers failed and are not counted; they are named in {out / 'failed.jsonl'}")
    return records


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
# Results.


def own_scores(name: str, records: list[dict]) -> dict:
    """The benchmark's own scores, means over the repeats."""
    scores = []
    for repeat in sorted({record["repeat"] for record in records}):
        rows = [record for record in records if record["repeat"] == repeat]
        scores.append(BENCHMARKS[name].scores(rows))
    return {key: mean(each.get(key) for each in scores) for key in scores[0]}


def make_result(name: str, records: list[dict], protocol: dict) -> dict:
    """All there is to say about the records, as it goes to eval.json."""
    by_arm = defaultdict(list)
    for record in records:
        by_arm[record["arm"]].append(record)
    result = {"protocol": protocol}
    result["arms"] = {arm: summarise_by_kind(rows) for arm, rows in by_arm.items()}
    benchmark = BENCHMARKS.get(name)
    if benchmark and benchmark.scores:
        result["scores"] = {arm: own_scores(name, rows) for arm, rows in by_arm.items()}
    one = "on" if "on" in by_arm else next(iter(by_arm))
    result["paired"] = {}
    for other in by_arm:
        compared = compare_arms(records, one, other) if other != one else None
        if compared:
            result["paired"][f"{one} against {other}"] = compared
    if benchmark:
        result["note"] = benchmark.note
        figures = dict(zip(("Qwen2.5-VL-7B", "DeepEyes-7B"), benchmark.published))
        result["published, percent, not measured here"] = figures
        result["unlike the paper"] = unlike_paper(protocol)
    return result


def unlike_paper(protocol: dict) -> list[str]:
    """In what a run differs from what the paper's figures were measured with: the model first.

    >>> unlike_paper({"model": "tiny", "look_pixels": 16384 * 28 * 28, "max_turns": 4, "options": "none"})
    ['model tiny', 'max_turns 4 (paper: 11)']
    """
    found = [f"model {protocol.get('model')}"]
    for name, value in PAPER.items():
        if protocol.get(name, value) != value:
            found.append(f"{name} {protocol[name]} (paper: {value})")
    if protocol.get("options") == "shuffled by item":
        found.append("options shuffled (paper: as the benchmark has them)")
    return found


def result_text(result: dict) -> str:
    """The table, the paired answers, the benchmark's own scores, and the whole protocol."""
    lines = [score_table(result["arms"])]
    if cut := cut_warning(result["arms"]):
        lines.append(cut)
    for arm, scores in result.get("scores", {}).items():
        lines.append(f"{arm}: " + ", ".join(f"{key} {value:.3f}" for key, value in scores.items()))
    for arm, kinds in result["arms"].items():
        overall = kinds["all"]
        if "pass" in overall:
            k = result["protocol"]["repeats"]
            lines.append(f"{arm}: avg@{k} {overall['accuracy']:.3f}, pass@{k} {overall['pass']:.3f}")
    for pair, found in result["paired"].items():
        one, other = pair.split(" against ")
        lines.append(paired_text(one, other, found))
    if result.get("note"):
        lines.append("note: " + result["note"])
    if published := result.get("published, percent, not measured here"):
        figures = ", ".join(f"{model} {value}" for model, value in published.items())
        lines.append("the paper's figures, not measured here: " + figures)
        lines.append("this run is unlike theirs in: " + ", ".join(result["unlike the paper"]))
    lines.append("protocol: " + ", ".join(f"{key} {value}" for key, value in result["protocol"].items()))
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------
# The command.


def main(config: EvalConfig) -> None:
    if config.ask:
        wording = read_prompt(config.prompt) if config.prompt else None
        print(f"page:   {ask(config, wording)}")
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
    if config.judge:  # what it should have graded, and could not
        protocol["unjudged"] = sum(bool(record.get("unjudged")) for record in records)
    result = make_result(config.data, records, protocol)
    write_json(out / "eval.json", result)
    print(result_text(result))
    print(f"scores: {out / 'eval.json'}\nanswers: {out / 'records.jsonl'}")
    print(f"page:   {make_page(out)}")


if __name__ == "__main__":
    run_command(main, read_config)
