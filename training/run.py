"""A whole run: folder, model, scores before, training, scores after, page."""

import os
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from config import ARMS, TrainConfig, flags_text, rollout_limits
from data import fingerprint, readable, used_revision
from evaluation.scores import score_table
from evaluation.validation import Validation, comparison_text, load_questions
from grading.judge import Judge
from machine import memory_estimate, row_estimate, time_estimate
from model import find_model, load_model, prepare_libraries
from runlog import runs
from runlog.render import make_page
from safe.checkpoints import newest_whole, step_of
from safe.files import keep_rows, read_json, read_rows, write_json
from safe.lock import hold
from safe.signals import REQUEST, Stopped
from training.settle import WORLD, check_choices
from training.shutdown import last_line


def run(config: TrainConfig, build_trainer) -> None:
    """Do what the command says. build_trainer: of train.py."""
    with last_line(config):
        check_choices(config)  # before the data and the weights are fetched
        if config.plan:
            print(flags_text(config))
            print(row_estimate.of_config(config))
            print(memory_estimate.table(config))
            print(time_estimate.time_here(config, WORLD))
            return
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=4))
        transformers.set_seed(config.seed)
        samples, held_out = load_questions(config)
        if state.is_main_process and not config.data.startswith("toy"):
            print(row_estimate.table(samples, config), flush=True)
        find_model(config.model)  # fetched here, where the Hub's progress bars are on
        prepare_libraries(config.threads)
        # A resume takes the same commit of the data, whatever is the newest then
        config = replace(config, revision=used_revision(config.data, config.revision))
        folder = [str(runs.make_run_folder(config)) if state.is_main_process else ""]
        broadcast_object_list(folder)
        config = replace(config, out=folder[0])
        with last_line(config):  # which now knows the folder to go on with
            check_shared(Path(config.out), state)
            train(config, samples, held_out, state, build_trainer)


def check_shared(folder: Path, state: PartialState) -> None:
    """Raise ValueError in every process unless all see the run's folder.

    Machines may each have a folder of that name. On a resume one process would then go on from a checkpoint,
    another begin anew, and both wait for each other for hours.
    """
    name = [f".seen-{uuid4().hex}"]
    broadcast_object_list(name)
    mark = folder / name[0]
    if state.is_main_process:
        mark.touch()
    state.wait_for_everyone()
    sees = gather_object([mark.exists()])
    if state.is_main_process:
        mark.unlink()
    if not all(sees):
        blind = sees.index(False)
        raise ValueError(
            f"process {blind} of {len(sees)} does not see the run's folder {folder}: on several machines"
            " --out must lie on a file system that they share"
        )


def train(config: TrainConfig, samples, held_out, state: PartialState, build_trainer) -> None:
    """Train in the run's folder, between the scores before and after."""
    began = time.time()
    folder = Path(config.out)
    if state.is_main_process:
        hold(folder)
        tell_changed_rows(folder / "data.json", samples)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    REQUEST.install()
    judge = Judge(config.judge, folder / "judge.jsonl") if config.judge else None
    model, processor = load_model(config.model, quantize=config.quantize, device=str(state.device))
    validation = Validation(held_out, folder / "eval.json", rollout_limits(config), judge)
    checkpoint, rows = where_to_go_on(folder, config) if config.resume else (None, [])
    done = step_of(checkpoint) if checkpoint else 0
    if state.is_main_process:
        announce(config, len(samples), checkpoint)
        if held_out:
            print("held-out questions before training", flush=True)
            before = validation.score(model, processor, "before", ("on", "off", "forced"))
            print(score_table(before), flush=True)
        for name in ("metrics.jsonl", "trajectories.jsonl"):
            keep_rows(folder / name, lambda row: row["step"] <= done)
    state.wait_for_everyone()
    trainer = build_trainer(
        config, model, processor, samples, folder,
        judge=judge,
        probes=held_out[: runs.PROBES] or readable(samples[: runs.PROBES]),
        rows=[row for row in rows if row["step"] <= done],
    )  # fmt: skip
    if done < config.steps:
        trainer.train_patiently(checkpoint)
        done = trainer.state.global_step
    else:  # killed while it was being scored: TRL would train one step more
        trainer._load_from_checkpoint(str(checkpoint))
    if REQUEST.number:
        if state.is_main_process:
            make_page(folder)
        raise Stopped(REQUEST.number)
    if state.is_main_process:
        validation.settings["batch"] = trainer.rollout_batch  # it may have shrunk, as memory ran out
        finish(folder, trainer, validation, done)
        print(f"{time.time() - began:.0f} s in all, without loading the libraries")
    state.wait_for_everyone()
    # The first process to leave with its connections open can abort the other
    state.destroy_process_group()


def tell_changed_rows(file: Path, samples) -> None:
    """Say so if the questions to train on are no longer those of the run's beginning, kept in the file."""
    now = {"questions": len(samples), "rows": fingerprint(samples)}
    before = read_json(file) or now
    if before != now:
        print(f"the rows have changed since this run began: {before['questions']} then, {len(samples)} now")
    write_json(file, before)


def where_to_go_on(folder: Path, config: TrainConfig) -> tuple[Path | None, list[dict]]:
    """The checkpoint that a resume starts from, and the run's history so far. Raises ValueError where there
    must have been a checkpoint, or where it is beyond the steps that are wanted."""
    rows = read_rows(folder / "metrics.jsonl")
    found = newest_whole(folder, say=lambda text: print(text, flush=True))
    last = rows[-1]["step"] if rows else 0
    if found is None and last >= config.save_every:
        raise ValueError(
            f"{folder} has done {last} steps, but holds no whole checkpoint to go on from; "
            f"give another --out, or put a checkpoint back"
        )
    if found and step_of(found) > config.steps:
        raise ValueError(f"{folder} has {step_of(found)} steps already; --steps {config.steps} would go back")
    return found, rows


def announce(config: TrainConfig, questions: int, checkpoint: Path | None) -> None:
    going_on = f", going on from {checkpoint.name}" if checkpoint else ""
    print(f"{config.model} on {config.data}: {questions} questions, run {config.out}{going_on}", flush=True)
    print(f"page, from the first step on: {Path(config.out, 'report.html').resolve().as_uri()}")


def finish(folder: Path, trainer, validation: Validation, steps: int) -> None:
    """Scores with controls, curves, and where it all is. steps: done."""
    if validation.samples:
        print("held-out questions after training, with controls", flush=True)
        model = trainer.accelerator.unwrap_model(trainer.model)
        after = validation.score(model, trainer.processing_class, "after", ARMS, steps)
        rows = {f"before: {arm}": row for arm, row in validation.stored()["before"].items()}
        rows |= {f"after: {arm}": row for arm, row in after.items()}
        print(score_table(rows))
        print(comparison_text(validation.compare()))
        print(f"scores: {validation.file}")
    page = make_page(folder)
    print(f"page:   {page}\ncurves: {page.with_name('curves.png')}\nmodel:  {newest_whole(folder)}")
