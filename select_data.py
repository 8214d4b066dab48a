"""Keep the questions where zooming is what helps (DeepEyes section 3.2; its authors never released the code).

    python select_data.py --data toy-mixture --limit 800       # with the tiny base, on a laptop
    python select_data.py --out selected --rescore --gain 0.5  # other thresholds, in seconds, without a model
    python train.py --data selected

Each question is answered k times from the first look alone, the whole image shrunk to --look_pixels, and k
times with its target region shown. p_look and p_crop are the fractions of correct answers. A question is kept
if rules can check its answer, if the first look alone is not enough, and if the crop is. Questions without
target boxes pass by difficulty alone, as charts and maths do in the paper. Scores stay in OUT; a killed run
goes on where it was; `torchrun` spreads the work over several GPUs.
"""

import io
import json
import os
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from config import (
    URL_OF_A_JUDGE,
    Limits,
    check_at_least,
    check_data_name,
    check_limits,
    fill_limits,
    flag,
    is_name,
    parse,
    rollout_limits,
    run_command,
    where_rows_are,
)
from runlog.runs import told_in_a_line
from safe.files import fail, read_json, write_json


@dataclass(frozen=True)
class SelectConfig(Limits):
    """The flags of this script."""

    MOST_USED: ClassVar = "data model limit out k rescore export"

    data: str = flag("toy-mixture", "toy-mixture | toy | deepeyes | visualprobe | seal | a folder")
    model: str = flag("tiny", "whose skill decides what is hard")
    root: str = flag("", "folder of the deepeyes, visualprobe or seal files")
    revision: str = flag("", "of the data on the Hub: a commit (of a model: OWNER/MODEL@COMMIT)")
    allow_outside: bool = flag(False, "rows may name images outside the data set's folder")
    limit: int = flag(1000, "samples to score")
    seed: int = flag(0, "of samples and sampling")
    k: int = flag(8, "answers per stage")
    easiest: float = flag(0.99, "highest p_look that is kept")
    solvable: float = flag(0.7, "lowest p_crop that is kept")
    gain: float = flag(0.3, "least p_crop - p_look")
    skip_crop: str = flag("chart,thinklite_eureka", "sources that pass by difficulty alone")
    only_difficulty: bool = flag(False, "keep by p_look alone, whatever the crop brings (for the ablation)")
    judge: str = flag("", URL_OF_A_JUDGE)
    chunk: int = flag(32, "samples scored and stored at once; part of the seed")
    out: str = flag("selected", "folder of the results")
    rescore: bool = flag(False, "apply thresholds to the stored scores of --out")
    export: Literal["", "verl"] = flag("", "verl: also write the kept rows as a parquet file for verl")


# What the scores depend on: another value of one of these needs another folder.
SCORED_BY = ["data", "model", "quantize", "root", "limit", "seed", "k", "judge", "chunk"]
SCORED_BY += ["look_pixels", "look_share", "crop_pixels", "max_turn_tokens", "max_plain_tokens"]
SCORED_BY += ["revision", "tools"]
# What older folders lack.
OLDER = {"revision": "", "tools": "zoom", "look_share": 1.0, "max_plain_tokens": 0}
ORIENTATION = 0x0112  # the EXIF tag
EXPORTED = 64  # rows that are written at a time
STAGE_TOKENS = 8192  # of a completion at least: the crops of all targets come first
UNSAFE = ("of the above", "none of", "all of", "both", "neither", "the following", "which of")


def read_config(argv: list[str]) -> SelectConfig:
    """Parse, settle and check the flags. Exits with 2 and one clear line."""
    config, given = parse(SelectConfig, argv, __doc__)
    check_data_name(config.data)
    config = fill_limits(config, given)
    check_limits(config)
    check_at_least(1, config, "limit k chunk")
    before = read_json(Path(config.out) / "args.json")
    if config.rescore and not before:
        fail(f"nothing to rescore: {config.out} holds no args.json")
    return as_scored_before(config, given, before) if before else config


def as_scored_before(config: SelectConfig, given: set[str], before: dict) -> SelectConfig:
    """The config that the stored scores of its folder depend on. Ends the script if the flags ask for another
    one. before: the folder's args.json."""
    before = OLDER | before
    taken = {}
    for name in SCORED_BY:
        is_free = config.rescore and name not in given
        if name == "revision" and is_name(config.revision):
            is_free = True  # the folder has the commit that this stood for
        if is_free:
            taken[name] = before[name]
        elif before[name] != getattr(config, name):
            fail(f"{config.out} was scored with --{name} {before[name]}; give another --out")
    return replace(config, **taken)


def open_ended(sample):
    """Multiple choice without its options, if the correct option answers the question without the others.

    >>> from data import Sample
    >>> open_ended(Sample("1", b"", "Which colour is the cup?", "red", options=("red", "blue"))).options
    ()
    >>> open_ended(Sample("1", b"", "Which of these is right?", "red", options=("red", "both"))).options
    ('red', 'both')
    """
    texts = " | ".join((sample.question, *sample.options)).lower()
    safe = sample.options and sample.answer in sample.options and not any(word in texts for word in UNSAFE)
    return replace(sample, options=()) if safe else sample


def outcome_of(row: dict, config: SelectConfig) -> str:
    """ "kept", or why not. row: p_look, p_crop (None without boxes), verifiable, source.

    >>> row = {"p_look": 0.125, "p_crop": 1.0, "verifiable": True, "source": "toy"}
    >>> [outcome_of(row | change, SelectConfig()) for change in ({}, {"p_look": 1.0}, {"p_crop": 0.1})]
    ['kept', 'too easy', 'not even with the crop']
    """
    if not row["verifiable"]:
        return "rules can't check it"
    if row["p_look"] > config.easiest:
        return "too easy"
    by_crop = row["p_crop"] is not None and row["source"] not in config.skip_crop.split(",")
    if not by_crop or config.only_difficulty:
        return "kept" if row["p_look"] > 0 else "too hard"
    if row["p_crop"] < config.solvable:
        return "not even with the crop"
    return "kept" if row["p_crop"] - row["p_look"] >= config.gain else "the crop does not help"


def score_chunk(model, processor, samples, config: SelectConfig, seed: int, judge=None) -> list[dict]:
    """The rows of some samples: all answers in both stages, and the fraction that is correct. seed: of this
    chunk, the same on whatever process."""
    from grading.correct import is_correct, verifiable
    from rollout import rollout
    from safe.memory import in_memory

    settings = rollout_limits(config)
    settings |= {"group": config.k, "seed": seed, "temperature": 1.0, "max_turns": 1}
    settings["max_tokens"] = max(config.max_tokens, STAGE_TOKENS)
    rows = {}
    for sample in samples:
        rows[sample.id] = {
            "id": sample.id,
            "source": sample.source,
            "kind": sample.meta.get("kind"),
            "question": sample.question,
            "gold": sample.answer,
            "verifiable": judge is not None or verifiable(sample),
            "p_look": None,
            "answers_look": [],
            "p_crop": None,
            "answers_crop": [],
        }
    boxed = [sample for sample in samples if sample.boxes]
    stages = {"look": (samples, {"tool": "off"}), "crop": (boxed, {"begin_with_targets": True})}
    for stage, (asked, how) in stages.items():
        if not asked:
            continue
        sample = partial(rollout, model, processor, asked, **settings | how)
        trajectories = in_memory(sample, settings["batch"], least=config.k)
        for index, sample in enumerate(asked):
            group = trajectories[index * config.k : (index + 1) * config.k]
            correct = [is_correct(trajectory.answer, sample, judge) for trajectory in group]
            rows[sample.id][f"p_{stage}"] = sum(correct) / config.k
            rows[sample.id][f"answers_{stage}"] = [trajectory.answer for trajectory in group]
    return list(rows.values())


def score_all(samples, config: SelectConfig, parts: Path) -> None:
    """Score chunk by chunk. Each chunk is a file, written whole; each process takes every n-th chunk."""
    import torch
    from accelerate import PartialState
    from tqdm import tqdm

    from data import opened
    from grading.judge import Judge
    from model import load_model, prepare_libraries

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=4))
    prepare_libraries(config.threads)
    chunks = list(range(0, len(samples), config.chunk))[state.process_index :: state.num_processes]
    todo = [start for start in chunks if not (parts / f"{start:06}.json").exists()]
    if todo:
        placed = {"quantize": config.quantize, "device": str(state.device)}
        model, processor = load_model(config.model, **placed)
    judge = Judge(config.judge, parts.parent / "judge.jsonl") if config.judge else None
    bar = tqdm(todo, unit="chunk", initial=len(chunks) - len(todo), total=len(chunks))
    for start in bar if state.is_main_process else todo:
        chunk = [s for s in map(opened, samples[start : start + config.chunk]) if s]
        rows = score_chunk(model, processor, chunk, config, config.seed * 1_000_003 + start, judge)
        write_json(parts / f"{start:06}.json", rows)
    state.wait_for_everyone()
    # The first process to leave with open connections could abort the others.
    state.destroy_process_group()
    if not state.is_main_process:
        sys.exit()


def image_cell(sample) -> dict:
    """An image as a cell of a parquet file: the path of a file, or the bytes of any other image."""
    image = sample.image() if callable(sample.image) else sample.image
    if isinstance(image, str):
        return {"path": str(Path(image).resolve()), "bytes": None}
    if isinstance(image, bytes):
        return {"path": None, "bytes": image}
    buffer = io.BytesIO()
    kind = image.format or "PNG"
    image.save(buffer, kind, **{"quality": "keep"} if kind == "JPEG" else {})
    return {"path": None, "bytes": buffer.getvalue()}


def count_outcomes(rows: list[dict]) -> dict[str, int]:
    """How many rows have which outcome, the most frequent first."""
    return dict(Counter(row["verdict"] for row in rows).most_common())


def write_selected(samples, file: Path) -> None:
    """The kept samples as train.py reads them; without any, the file is removed."""
    from datasets import Dataset

    if not samples:
        file.unlink(missing_ok=True)
        return
    names = ("id", "question", "answer", "source", "tool")
    columns = {name: [getattr(sample, name) for sample in samples] for name in names}
    columns["accepted"] = [list(sample.accepted) for sample in samples]
    columns["options"] = [list(sample.options) for sample in samples]
    columns["boxes"] = [list(map(list, sample.boxes)) for sample in samples]
    columns["meta"] = [json.dumps(sample.meta) for sample in samples]
    columns["image"] = list(map(image_cell, samples))
    Dataset.from_dict(columns).to_parquet(str(file))


def write_results(rows: list[dict], samples: dict, config: SelectConfig, out: Path) -> dict:
    """scores.parquet, selected.parquet, summary.json and .png; returns the summary."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    for row in rows:
        row["verdict"] = outcome_of(row, config)
    kept = [samples[row["id"]] for row in rows if row["verdict"] == "kept"]
    Dataset.from_list(rows).to_parquet(str(out / "scores.parquet"))
    write_selected(kept, out / "selected.parquet")
    summary = {"scored": len(rows), "kept": len(kept), "verdicts": count_outcomes(rows)}
    for name in ("source", "kind"):
        values = sorted({row[name] for row in rows if row[name]})
        summary[f"by {name}"] = {
            value: count_outcomes([row for row in rows if row[name] == value]) for value in values
        }
    write_json(out / "summary.json", summary)
    if config.export:
        export_verl(kept, out / "verl.parquet")
    return summary


def verl_image(sample) -> dict:
    """An image's bytes, since verl opens no paths. Where another reader would see it turned, or in other
    colours than it is shown here, it is written anew as PNG."""
    from PIL import Image

    cell = image_cell(sample)
    data = cell["bytes"] or Path(cell["path"]).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        turned = image.getexif().get(ORIENTATION, 1) != 1
        recoloured = image.mode != "RGB" or image.has_transparency_data
    if turned or recoloured:
        buffer = io.BytesIO()
        sample.open().save(buffer, "PNG")
        data = buffer.getvalue()
    return {"path": None, "bytes": data}


def verl_row(sample, number: int) -> dict:
    """A sample in the columns of verl's DeepEyes recipe. `extra_info` holds what else a reward may need."""
    import tools

    suffix = tools.TOOL_SUFFIX if sample.tool else tools.BOXED_SUFFIX
    system = tools.TOOL_SYSTEM if sample.tool else tools.PLAIN_SYSTEM
    text = sample.text()
    return {
        "prompt": [
            {"role": "system", "content": system},
            {"role": "user", "content": f"<image>\n{text}{suffix}"},
        ],
        "images": [verl_image(sample)],
        "reward_model": {"ground_truth": sample.answer, "style": "model"},
        "extra_info": {
            "id": sample.id,
            "index": number,
            "split": "train",
            "question": text,
            "without_options": sample.question,
            "answer": sample.answer,
            "accepted": list(sample.accepted),
            "options": list(sample.options),
            "boxes": [list(box) for box in sample.boxes],
            "tool": sample.tool,
        },
        "data_source": sample.source,
        "ability": "vl_agent" if sample.tool else "vl_reasoning",
        "env_name": "visual_toolbox_v2" if sample.tool else "",
    }


def verl_schema():
    """The columns of `verl_row`, the same for every data set: of empty lists alone no type could be told."""
    import pyarrow

    text = pyarrow.string()
    message = pyarrow.struct({"role": text, "content": text})
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": text})
    numbers = pyarrow.list_(pyarrow.float64())
    extra = dict.fromkeys(("id", "split", "question", "without_options", "answer"), text)
    extra["index"] = pyarrow.int64()
    extra["accepted"] = pyarrow.list_(text)
    extra["options"] = pyarrow.list_(text)
    extra["boxes"] = pyarrow.list_(numbers)
    extra["tool"] = pyarrow.bool_()
    columns = dict.fromkeys(("data_source", "ability", "env_name"), text)
    columns["prompt"] = pyarrow.list_(message)
    columns["images"] = pyarrow.list_(image)
    columns["reward_model"] = pyarrow.struct({"ground_truth": text, "style": text})
    columns["extra_info"] = pyarrow.struct(extra)
    return pyarrow.schema(columns)


def export_verl(samples, file: Path) -> None:
    """The kept samples as verl reads them. A few at a time: all images together may not fit into memory."""
    from pyarrow import Table
    from pyarrow.parquet import ParquetWriter

    with ParquetWriter(file, verl_schema()) as writer:
        for start in range(0, len(samples), EXPORTED):
            part = enumerate(samples[start : start + EXPORTED], start)
            rows = [verl_row(sample, number) for number, sample in part]
            writer.write_table(Table.from_pylist(rows, writer.schema))


def main(config: SelectConfig) -> None:
    from data import fingerprint, load, used_revision
    from safe.lock import hold

    out = Path(config.out)
    parts = out / "parts"
    is_first = os.environ.get("RANK", "0") == "0"
    with told_in_a_line(out):
        parts.mkdir(parents=True, exist_ok=True)
        if is_first:
            hold(out)
    split = None if not config.data.startswith("toy") else "train"
    samples = load(config.data, split=split, limit=config.limit, seed=config.seed, **where_rows_are(config))
    # A rerun takes the same commit of the data, whatever is the newest then.
    config = replace(config, revision=used_revision(config.data, config.revision))
    rows_now = fingerprint(samples)
    before = read_json(out / "args.json").get("rows", rows_now)  # older folders lack it
    if before != rows_now:
        fail(f"the rows of {config.data} have changed since {out} was scored; give another --out")
    if is_first:
        write_json(out / "args.json", asdict(config) | {"rows": rows_now})
    samples = [open_ended(sample) for sample in samples]
    if not config.rescore:
        score_all(samples, config, parts)
    rows = [row for file in sorted(parts.glob("*.json")) for row in json.loads(file.read_text())]
    summary = write_results(rows, {sample.id: sample for sample in samples}, config, out)
    for reason, count in summary["verdicts"].items():
        print(f"{count:>7}  {reason}")
    print(f"{summary['kept']} of {summary['scored']} kept")
    print(f"scores: {out / 'scores.parquet'}")
    if not summary["kept"]:
        print("nothing to train on; --rescore tries other thresholds: --easiest, --solvable, --gain")
        return
    by_path = any(isinstance(sample.image, str) for sample in samples)
    outside = " --allow_outside" if by_path else ""  # the rows name the images where they are
    print(f"selected: {out / 'selected.parquet'}\ntrain: python train.py --data {out}{outside}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    run_command(main, read_config)
