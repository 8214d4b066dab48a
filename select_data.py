"""Keep the questions where zooming is what helps (DeepEyes section 3.2; its authors never released the code).

    python select_data.py --data toy-mixture --limit 800       # with the tiny base, on a laptop
    python select_data.py --out selected --rescore --gain 0.5  # other thresholds, in seconds, without a model
    python train.py --data selected

Each sample is answered k times from the first look alone (share right: p_look) and k times with the target
region shown (p_crop). It is kept if rules can check the answer, if it is not always right at first sight, and
if the crop makes it right. Questions without target boxes pass by difficulty alone, as charts and maths do in
the paper. Scores stay in OUT; a killed run goes on where it was; `torchrun` shares the work among GPUs.
"""

import io
import json
import os
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

from config import Limits, check_at_least, fill_limits, is_name, knob, parse, rollout_limits, run_command
from safe.files import fail, read_json, write_json


@dataclass
class Selection:
    data: str = knob("toy-mixture", "toy-mixture | toy | deepeyes | seal | a folder")
    model: str = knob("tiny", "whose skill decides what is hard")
    root: str = knob("", "folder of the deepeyes or seal files")
    revision: str = knob("", "of the data on the Hub: a commit (of a model: OWNER/MODEL@COMMIT)")
    allow_outside: bool = knob(False, "rows may name pictures outside the data set's folder")
    limit: int = knob(1000, "samples to score")
    seed: int = knob(0, "of samples and sampling")
    k: int = knob(8, "answers per stage")
    own: bool = knob(False, "a third stage: k answers of the policy's own zooming (stored in the scores)")
    easiest: float = knob(0.99, "highest p_look that is kept")
    solvable: float = knob(0.7, "lowest p_crop that is kept")
    gain: float = knob(0.3, "least p_crop - p_look")
    skip_crop: str = knob("chart,thinklite_eureka", "sources that pass by difficulty alone")
    only_difficulty: bool = knob(False, "leave out the crop stage's verdict (for the ablation)")
    judge: str = knob("", "URL of an OpenAI-compatible endpoint for answers that rules can't tell")
    chunk: int = knob(32, "samples scored and stored at once; part of the seed")
    out: str = knob("selected", "folder of the results")
    rescore: bool = knob(False, "apply thresholds to the stored scores of --out")
    dry_run: bool = knob(False, "all stages on 64 samples, in OUT-dry")
    export: Literal["", "verl"] = knob("", "verl: also write the parquet that verl's DeepEyes recipe reads")


@dataclass
class Knobs(Limits, Selection):
    """The flags of this script."""


# What the scores depend on: to change one of these takes another folder.
SCORED_BY = ["data", "model", "quantize", "root", "limit", "seed", "k", "own", "judge", "chunk"]
SCORED_BY += ["look_pixels", "crop_pixels", "max_turn_tokens", "revision", "tools"]
WRITTEN = (
    "args.json",
    "summary.json",
    "summary.png",
    "scores.parquet",
    "selected.parquet",
    "verl.parquet",
)
WRITTEN += ("judge.jsonl", "parts/[0-9]*.json")
STAGE_TOKENS = 8192  # of a completion at least: the crops of all targets come first
UNSAFE = ("of the above", "none of", "all of", "both", "neither", "the following", "which of")


def read_knobs(argv: list[str]) -> Knobs:
    knobs, given = parse(Knobs, argv, __doc__)
    fill_limits(knobs, given)
    check_at_least(1, knobs, "limit k chunk batch threads max_turns")
    check_at_least(1, knobs, "look_pixels crop_pixels max_turn_tokens max_tokens")
    if knobs.dry_run:
        knobs.limit = min(64, knobs.limit)
    before = read_json(Path(knobs.out) / "args.json")
    if knobs.rescore and not before:
        fail(f"nothing to rescore: {knobs.out} holds no args.json")
    if before and not knobs.dry_run:
        before.setdefault("max_turns", 4)  # folders from when it was fixed
        before.setdefault("revision", "")
        before.setdefault("tools", "zoom")
        for name in SCORED_BY + (["max_turns"] if knobs.own else []):
            as_before = knobs.rescore and name not in given
            if name == "revision" and is_name(knobs.revision):
                as_before = True  # the folder has the commit that this stood for
            if as_before:
                setattr(knobs, name, before[name])
            elif before[name] != getattr(knobs, name):
                fail(f"{knobs.out} was scored with --{name} {before[name]}; give another --out")
    return knobs


def open_ended(sample):
    """Multiple choice without its options, where the right one says enough by itself.

    >>> from data import Sample
    >>> open_ended(Sample("1", b"", "Which colour is the cup?", "red", options=("red", "blue"))).options
    ()
    >>> open_ended(Sample("1", b"", "Which of these is right?", "red", options=("red", "both"))).options
    ('red', 'both')
    """
    texts = " | ".join((sample.question, *sample.options)).lower()
    safe = sample.options and sample.answer in sample.options and not any(word in texts for word in UNSAFE)
    return replace(sample, options=()) if safe else sample


def verdict(row: dict, knobs: Knobs) -> str:
    """ "kept", or why not. row: p_look, p_crop (None without boxes), verifiable.

    >>> row = {"p_look": 0.125, "p_crop": 1.0, "verifiable": True, "source": "toy"}
    >>> [verdict(row | change, Knobs()) for change in ({}, {"p_look": 1.0}, {"p_crop": 0.1})]
    ['kept', 'too easy', 'not even with the crop']
    """
    if not row["verifiable"]:
        return "rules can't check it"
    if row["p_look"] > knobs.easiest:
        return "too easy"
    by_crop = row["p_crop"] is not None and row["source"] not in knobs.skip_crop.split(",")
    if not by_crop or knobs.only_difficulty:
        return "kept" if row["p_look"] > 0 else "too hard"
    if row["p_crop"] < knobs.solvable:
        return "not even with the crop"
    return "kept" if row["p_crop"] - row["p_look"] >= knobs.gain else "the crop does not help"


def make_stages(samples, knobs: Knobs) -> dict:
    """The name of each stage -> the samples it asks, and how."""
    boxed = [sample for sample in samples if sample.boxes]
    stages = {
        "look": (samples, {"tool": "off", "max_turns": 1}),
        "crop": (boxed, {"begin_with_targets": True, "max_turns": 1}),
    }
    if knobs.own:
        stages["own"] = (samples, {})
    return stages


def score_chunk(model, processor, samples, knobs: Knobs, seed: int, judge=None) -> list[dict]:
    """Every stage's answers and pass rate for some samples; `seed` is the chunk's, on whatever rank."""
    from grading.answers import verifiable
    from grading.correct import is_correct
    from rollout import rollout

    settings = rollout_limits(knobs)
    settings |= {"group": knobs.k, "seed": seed, "temperature": 1.0}
    settings["max_tokens"] = max(knobs.max_tokens, STAGE_TOKENS)
    rows = {}
    for sample in samples:
        rows[sample.id] = {
            "id": sample.id,
            "source": sample.source,
            "kind": sample.meta.get("kind"),
            "question": sample.question,
            "gold": sample.answer,
            "verifiable": judge is not None or verifiable(sample),
        }
    for stage, (asked, how) in make_stages(samples, knobs).items():
        for row in rows.values():
            row[f"p_{stage}"] = None
            row[f"answers_{stage}"] = []
        trajectories = rollout(model, processor, asked, **settings | how) if asked else []
        for place, sample in enumerate(asked):
            group = trajectories[place * knobs.k : (place + 1) * knobs.k]
            right = [is_correct(trajectory.answer, sample, judge) for trajectory in group]
            rows[sample.id][f"p_{stage}"] = sum(right) / knobs.k
            rows[sample.id][f"answers_{stage}"] = [trajectory.answer for trajectory in group]
    return list(rows.values())


def score_all(samples, knobs: Knobs, parts: Path) -> None:
    """Score chunk by chunk, each a file of its own, written at once or not at all; a rank takes its share."""
    import torch
    from accelerate import PartialState
    from tqdm import tqdm

    from data import opened
    from grading.judge import Judge
    from model import load_model, prepare_libraries

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=4))
    prepare_libraries(knobs.threads)
    chunks = list(range(0, len(samples), knobs.chunk))[state.process_index :: state.num_processes]
    todo = [start for start in chunks if not (parts / f"{start:06}.json").exists()]
    if todo:
        model, processor = load_model(knobs.model, quantize=knobs.quantize or None, device=str(state.device))
    judge = Judge(knobs.judge, parts.parent / "judge.jsonl") if knobs.judge else None
    bar = tqdm(todo, unit="chunk", initial=len(chunks) - len(todo), total=len(chunks))
    for start in bar if state.is_main_process else todo:
        chunk = [s for s in map(opened, samples[start : start + knobs.chunk]) if s]
        rows = score_chunk(model, processor, chunk, knobs, knobs.seed * 1_000_003 + start, judge)
        write_json(parts / f"{start:06}.json", rows)
    state.wait_for_everyone()
    # The first process to leave with its connections open can abort the other
    state.destroy_process_group()
    if not state.is_main_process:
        sys.exit()


def picture_cell(sample) -> dict:
    """A picture as parquet keeps it: the path of a file, the bytes of anything else."""
    if isinstance(sample.image, str):
        return {"path": str(Path(sample.image).resolve()), "bytes": None}
    if isinstance(sample.image, bytes):
        return {"path": None, "bytes": sample.image}
    picture = sample.image() if callable(sample.image) else sample.image
    buffer = io.BytesIO()
    kind = picture.format or "PNG"
    picture.save(buffer, kind, **{"quality": "keep"} if kind == "JPEG" else {})
    return {"path": None, "bytes": buffer.getvalue()}


def count_verdicts(rows: list[dict]) -> dict[str, int]:
    """How many rows have which verdict, most frequent first."""
    return dict(Counter(row["verdict"] for row in rows).most_common())


def write_selected(samples, file: Path) -> None:
    """The samples that are kept, as train.py reads them; no file if there are none."""
    from datasets import Dataset

    if not samples:
        file.unlink(missing_ok=True)
        return
    names = ("id", "question", "answer", "source", "tool")
    columns = {name: [getattr(sample, name) for sample in samples] for name in names}
    columns["options"] = [list(sample.options) for sample in samples]
    columns["boxes"] = [list(map(list, sample.boxes)) for sample in samples]
    columns["meta"] = [json.dumps(sample.meta) for sample in samples]
    columns["image"] = list(map(picture_cell, samples))
    Dataset.from_dict(columns).to_parquet(str(file))


def write_results(rows: list[dict], samples: dict, knobs: Knobs, out: Path) -> dict:
    """scores.parquet, selected.parquet, summary.json and .png; returns the summary."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    for row in rows:
        row["verdict"] = verdict(row, knobs)
    kept = [samples[row["id"]] for row in rows if row["verdict"] == "kept"]
    Dataset.from_list(rows).to_parquet(str(out / "scores.parquet"))
    write_selected(kept, out / "selected.parquet")
    summary = {"scored": len(rows), "kept": len(kept), "verdicts": count_verdicts(rows)}
    for name in ("source", "kind"):
        values = sorted({row[name] for row in rows if row[name]})
        summary[f"by {name}"] = {
            value: count_verdicts([row for row in rows if row[name] == value]) for value in values
        }
    write_json(out / "summary.json", summary)
    draw(rows, out / "summary.png")
    if knobs.export:
        export_verl(kept, out / "verl.parquet")
    return summary


def draw(rows: list[dict], file: Path) -> None:
    """Histograms of the pass rates and their difference, and how many fell where, by source."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(17, 4), constrained_layout=True, width_ratios=(1, 1, 1, 2))
    boxed = [row for row in rows if row["p_crop"] is not None]
    panels = {"from one look (p_look)": [row["p_look"] for row in rows]}
    panels["with the target shown (p_crop)"] = [row["p_crop"] for row in boxed]
    panels["gain (p_crop - p_look)"] = [row["p_crop"] - row["p_look"] for row in boxed]
    for axis, (title, values) in zip(axes, panels.items()):
        axis.hist(values, bins=17, range=(-1 if "gain" in title else 0, 1), color="tab:blue")
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("samples")
    groups = sorted({row["kind"] or row["source"] for row in rows})
    left = [0] * len(groups)
    for reason, count in count_verdicts(rows).items():
        named = Counter(row["kind"] or row["source"] for row in rows if row["verdict"] == reason)
        widths = [named[group] for group in groups]
        axes[3].barh(groups, widths, left=left, label=f"{reason} ({count})")
        left = [start + width for start, width in zip(left, widths)]
    axes[3].legend(fontsize=8)
    axes[3].set_title("verdicts", fontsize=10)
    figure.savefig(file, dpi=80)
    plt.close(figure)


def verl_row(sample, number: int) -> dict:
    """A sample in the columns of verl's DeepEyes recipe."""
    import tools

    suffix = tools.TOOL_SUFFIX if sample.tool else tools.BOXED_SUFFIX
    system = tools.TOOL_SYSTEM if sample.tool else tools.PLAIN_SYSTEM
    text = sample.text()
    return {
        "prompt": [
            {"role": "system", "content": system},
            {"role": "user", "content": f"<image>\n{text}{suffix}"},
        ],
        "images": [picture_cell(sample)],
        "reward_model": {"ground_truth": sample.answer, "style": "model"},
        "extra_info": {
            "question": text,
            "answer": sample.answer,
            "index": number,
            "split": "train",
        },
        "data_source": sample.source,
        "ability": "vl_agent" if sample.tool else "vl_reasoning",
        "env_name": "visual_toolbox_v2" if sample.tool else "",
    }


def export_verl(samples, file: Path) -> None:
    from datasets import Dataset

    rows = [verl_row(sample, number) for number, sample in enumerate(samples)]
    Dataset.from_list(rows).to_parquet(str(file))


def forget(out: Path) -> None:
    """Delete what an earlier dry run has written, and nothing else."""
    for name in WRITTEN:
        for file in out.glob(name):
            file.unlink()


def main(knobs: Knobs) -> None:
    from data import DEEPEYES, USED, load
    from safe.lock import hold

    out = Path(f"{knobs.out}-dry" if knobs.dry_run else knobs.out)
    parts = out / "parts"
    first = os.environ.get("RANK", "0") == "0"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        if first:
            hold(out)
        if first and knobs.dry_run:
            forget(out)
        if first:
            write_json(out / "args.json", asdict(knobs))
    except OSError as error:
        fail(f"can't write to {out}: {error.strerror}")
    split = None if not knobs.data.startswith("toy") else "train"
    samples = load(
        knobs.data,
        split=split,
        limit=knobs.limit,
        seed=knobs.seed,
        root=knobs.root or None,
        revision=knobs.revision,
        allow_outside=knobs.allow_outside,
    )
    if DEEPEYES in USED:  # a rerun takes the same, whatever is the newest then
        knobs.revision = USED[DEEPEYES]
        write_json(out / "args.json", asdict(knobs))
    samples = [open_ended(sample) for sample in samples]
    if not knobs.rescore:
        score_all(samples, knobs, parts)
    rows = [row for file in sorted(parts.glob("*.json")) for row in json.loads(file.read_text())]
    summary = write_results(rows, {sample.id: sample for sample in samples}, knobs, out)
    for reason, count in summary["verdicts"].items():
        print(f"{count:>7}  {reason}")
    print(f"{summary['kept']} of {summary['scored']} kept: {out / 'selected.parquet'}")
    print(f"scores: {out / 'scores.parquet'}\npicture: {out / 'summary.png'}")
    by_path = any(isinstance(sample.image, str) for sample in samples)
    outside = " --allow_outside" if by_path else ""  # the rows name the pictures where they are
    print(f"train: python train.py --data {out}{outside}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    run_command(main, read_knobs)
