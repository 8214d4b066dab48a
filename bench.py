"""How fast, side by side in one run: rollouts and updates, TRL's and our two engines'.

    python bench.py                                                        # the tiny model, on the CPU
    python bench.py --model qwen2.5-vl-3b --random_weights --json out.json # the real shapes, no download
    python bench.py --model qwen2.5-vl-3b --simulate                       # how full the slots are: counts
    python bench.py --whole                                                # the seconds of `python train.py`

    arm         rollout                                     update
    trl         TRL's own tool loop                         TRL's own loss
    generate    turn by turn with `generate`                train.py's plain forward pass over a padded batch
    slots       continuous batching, prompts shared         the same with prompts shared

All arms get the same model, questions and settings, and a scripted policy that fixes the length of every turn
and every box. The model computes everything, and only its choice of tokens is overruled. Arms take turns, and
the median of each counts.
"""

import copy
import json
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from unittest.mock import patch

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # TRL would spread over all cards
import torch
import trl.trainer.utils as trl_utils
from datasets import Dataset
from transformers import LogitsProcessor, LogitsProcessorList
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_template

import rollout
import tools
import train
import training.log
import training.run
import training.settle
from config import TrainConfig, flag, parse, run_command, usual_limits
from data import load
from engine.families import family_of
from engine.inputs import padded
from engine.slots import SlotEngine
from evaluation.validation import Validation
from machine.slot_simulation import simulate
from machine.time_estimate import Work, device_speed, floors
from model import config_of, family_named, load_model, lora_config, prepare_libraries
from options import controls
from runlog.tables import table
from safe.files import fail, read_rows, write_json
from safe.memory import free_memory, is_out_of_memory
from toy.world import SIZE

NAMES = ("trl", *controls.ENGINES)  # of the arms
USUAL = {"prompts": 16, "thought": 12, "look_tokens": 16, "crop_tokens": 16}
USUAL_BIG = {"prompts": 2, "thought": 100, "look_tokens": 1000, "crop_tokens": 500}


@dataclass(frozen=True)
class BenchConfig:
    model: str = flag("tiny", "preset or folder")
    random_weights: bool = flag(False, "the shapes of the model with fresh weights: needs no download")
    layers: int = flag(0, "with random weights: layers in each tower (0: all)")
    prompts: int = flag(0, "questions (0: 16 for tiny, else 2)")
    group: int = flag(8, "trajectories per question")
    zooms: int = flag(2, "most zooms of a trajectory")
    least_zooms: int = flag(0, "fewest zooms of a trajectory")
    thought: int = flag(0, "mean tokens of a turn's thought (0: 12 for tiny, else 100)")
    look_tokens: int = flag(0, "visual tokens of a first look (0: 16 for tiny, else 1000)")
    crop_tokens: int = flag(0, "visual tokens of a crop (0: 16 for tiny, else 500)")
    micro_batch: int = flag(0, "trajectories per pass of the update (0: 64 for tiny, else a group)")
    repeats: int = flag(5, "of each arm; the median counts")
    threads: int = flag(2, "CPU threads, and processes of a tiny model's slots")
    seed: int = flag(0, "of questions, boxes and lengths")
    json: str = flag("", "file for all figures")
    simulate: bool = flag(False, "instead, of --model alone: how full the slots are on real lengths, counted")
    whole: bool = flag(False, "instead, of --seed alone: where the seconds of `python train.py` go")


# --------------------------------------------------------------------------------------------------
# The scripted policy.


def make_plan(
    config: BenchConfig, tokenizer, samples, frame: tuple[int, int], crop_pixels: int
) -> list[list[list[int]]]:
    """Token ids of every turn of every trajectory: thoughts of uneven length, boxes anywhere in their frame,
    an answer."""
    rng = random.Random(config.seed)
    # A box with enough original pixels for a whole crop.
    fraction = max(0.3, math.sqrt(crop_pixels) / SIZE)
    width = round(frame[0] * fraction)
    height = round(frame[1] * fraction)
    plan = []
    for sample in [sample for sample in samples for _ in range(config.group)]:
        turns = []
        for _ in range(1 + rng.randint(config.least_zooms, config.zooms)):
            thought = " red" * max(1, round(rng.uniform(0.3, 1.7) * config.thought))
            x = rng.randint(0, frame[0] - width)
            y = rng.randint(0, frame[1] - height)
            call = {"name": tools.TOOL, "arguments": {"bbox_2d": [x, y, x + width, y + height]}}
            turns.append(f"<think>{thought}</think><tool_call>{json.dumps(call)}</tool_call>")
        answer = sample.answer if rng.random() < 0.5 else "?"  # so that advantages are not all zero
        turns[-1] = turns[-1].split("<tool_call>")[0] + f"<answer>{answer}</answer><|im_end|>"
        plan.append([tokenizer(turn, add_special_tokens=False)["input_ids"] for turn in turns])
    return plan


class Script(LogitsProcessor):
    """Overrules the choices of one `generate` call: row r writes turns[r]."""

    def __init__(self, turns):
        self.turns = turns
        self.step = 0

    def __call__(self, input_ids, scores):
        chosen = [ids[min(self.step, len(ids) - 1)] for ids in self.turns]
        chosen = torch.tensor(chosen, device=scores.device)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def scripted(plan, samples, group: int):
    """Our two engines under the script, as a context."""
    first = {sample.id: i * group for i, sample in enumerate(samples)}
    turn = iter(range(10**6))

    class Recorder(rollout.LogprobRecorder):  # one a turn
        def __init__(self, *args):
            super().__init__(*args)
            now = next(turn)
            self.script = Script([turns[now] for turns in plan if len(turns) > now])

        def __call__(self, input_ids, scores):
            return self.script(input_ids, super().__call__(input_ids, scores))

    draw = SlotEngine.choose

    def choose(engine, scores):
        draw(engine, scores)  # its time counts, as `generate` samples in the other arms
        chosen = []
        for slot in engine.live:
            trajectory = engine.env.trajectories[slot.trajectory]  # of this worker
            member = first[trajectory.sample.id] + slot.trajectory % group
            ids = plan[member][len(trajectory.turns)]
            chosen.append(ids[min(slot.written, len(ids) - 1)])
        return torch.tensor(chosen, device=scores.device)

    return patch.multiple(rollout, LogprobRecorder=Recorder), patch.object(SlotEngine, "choose", choose)


# --------------------------------------------------------------------------------------------------
# TRL's own loop: an environment whose tool returns the crop, and our wire format as a chat template.

TEMPLATE = """
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>system\\n' + SYSTEM + '<|im_end|>\\n<|im_start|>user\\n' }}
    {%- elif message.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>' }}
    {%- else %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
    {%- if message.content is string %}{{- message.content }}
    {%- else %}{%- for x in message.content %}{{- IMAGE if x.type == 'image' else x.text }}{%- endfor %}
    {%- endif %}
    {%- for x in message.tool_calls or [] %}{{- '<tool_call>' + (x.function | tojson) + '</tool_call>' }}
    {%- endfor %}{{- SUFFIX + '</tool_response>' if message.role == 'tool' else '' }}{{- '<|im_end|>\\n' }}
{%- endfor %}{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""


def shown_size(processor, image, pixels: int) -> tuple[int, int]:
    """The size at which a rollout shows an image within so many pixels."""
    least = processor.image_processor.size["shortest_edge"]
    return tools.fit(image.size, pixels, least, processor.family.token_side)


def stock_trainer(config: BenchConfig, model, processor, samples, settings: dict):
    """GRPOTrainer as it comes, with an image-returning tool."""
    family = processor.family
    crop_pixels = config.crop_tokens * family.token_area

    class Zoom:
        def reset(self, index, **row):
            look = row["prompt"][0]["content"][0]["image"]
            self.view = tools.View(samples[index].image, look.size, family.frame)

        def image_zoom_in_tool(self, bbox_2d: list[float]):
            """
            Zoom in on one region of the image.

            Args:
                bbox_2d: The region as [x1, y1, x2, y2].
            """
            crop, _ = self.view.crop(tuple(bbox_2d))
            crop = tools.resize(crop, shown_size(processor, crop, crop_pixels))
            return [{"type": "image", "image": crop}]

    template = TEMPLATE
    for name, text in (
        ("SYSTEM", tools.in_frame(tools.TOOL_SYSTEM, family.frame)),
        ("IMAGE", tools.IMAGE),
        ("SUFFIX", tools.TOOL_SUFFIX),
    ):
        template = template.replace(name, json.dumps(text))
    processor.chat_template = processor.tokenizer.chat_template = template
    processor.tokenizer.response_template = qwen3_template
    return GRPOTrainer(
        model=model,
        args=GRPOConfig(**settings | {"max_tool_calling_iterations": config.zooms}),
        reward_funcs=lambda completions, **_: [float(i % 2) for i in range(len(completions))],
        train_dataset=Dataset.from_list([{"prompt": "", "index": i} for i in range(len(samples))]),
        processing_class=processor,
        environment_factory=Zoom,
        peft_config=lora_config(16),
    )


def stock_rollout(trainer, samples, look_pixels: int, plan, group: int):
    """One generation of TRL's loop under the script."""
    generate = type(trainer.model).generate
    turn = iter(range(10**6))
    end = trainer._tokenizer.eos_token_id  # TRL's turns end here alone, not with the call

    def scripted_generate(*args, **kwargs):
        now = next(turn)
        script = Script([turns[now] + [end] for turns in plan if len(turns) > now])
        return generate(trainer.model, *args, logits_processor=LogitsProcessorList([script]), **kwargs)

    trainer.model.generate = scripted_generate
    rows = []
    for i, sample in enumerate(samples):
        size = shown_size(trainer.processing_class, sample.image, look_pixels)
        look = tools.View(sample.image, size).look()
        text = {"type": "text", "text": "\n" + sample.text() + tools.TOOL_SUFFIX}
        message = {"role": "user", "content": [{"type": "image", "image": look}, text]}
        rows += [{"prompt": [message], "index": i} for _ in range(group)]
    return trainer._generate_and_score_completions(rows)


# --------------------------------------------------------------------------------------------------
# The update.


def stock_batch(trajectories, processor, device) -> dict:
    """Our trajectories as the batch that TRL's own rollout would have made of them, for its own loss."""
    pad = processor.tokenizer.pad_token_id
    prompts = [t.prompt_ids for t in trajectories]
    completions = [t.completion_ids for t in trajectories]
    images = [image for t in trajectories for image in t.images]
    batch = {
        "prompt_ids": padded(prompts, pad, "left"),
        "prompt_mask": padded([[1] * len(ids) for ids in prompts], 0, "left"),
        "completion_ids": padded(completions, pad),
        "completion_mask": padded([[1] * len(ids) for ids in completions], 0),
        "tool_mask": padded([t.sampled for t in trajectories], 0),
        "advantages": torch.tensor([t.advantage for t in trajectories]),
        "num_items_in_batch": torch.tensor(float(sum(sum(t.sampled) for t in trajectories))),
        **processor.image_processor(images, return_tensors="pt"),
    }
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    batch["mm_token_type_ids"] = (ids == processor.image_token_id).int()
    batch = {name: value.to(device) for name, value in batch.items()}
    return batch | {"num_images": [len(t.images) for t in trajectories]}


def split_stock_batch(batch: dict, parts: int) -> list[dict]:
    """A stock batch in micro-batches, as TRL cuts it."""
    pieces = trl_utils.split_tensor_dict(trl_utils.split_pixel_values_by_grid(batch), parts)
    return [trl_utils.unsplit_pixel_values_by_grid(piece) for piece in pieces]


def update(trainer, micro_batches: list, optimizer) -> None:
    """Forward, backward and optimiser step over these micro-batches."""
    trainer.current_gradient_accumulation_steps = len(micro_batches)
    for micro_batch in micro_batches:
        trainer.compute_loss(trainer.model, micro_batch).backward()
    optimizer.step()
    optimizer.zero_grad()


# --------------------------------------------------------------------------------------------------
# Measuring.


@contextmanager
def measured(model):
    """Yields a dict that has, at the end, the seconds, the peak of memory, and what went through the model,
    counted by hooks."""
    counts = Counter()
    on_gpu = model.device.type == "cuda"

    def count_tokens(module, args):
        rows, length = args[0].shape[:2]
        counts["prefill_tokens" if length > 1 else "decode_tokens"] += rows * length
        counts["decode_steps"] += length == 1

    def count_images(module, args, kwargs):
        counts["images"] += len(kwargs.get("grid_thw", args[1] if len(args) > 1 else ()))

    first = model.model.language_model.layers[0].input_layernorm  # every engine passes here
    hooks = [first.register_forward_pre_hook(count_tokens)]
    hooks.append(model.model.visual.register_forward_pre_hook(count_images, with_kwargs=True))
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    began = time.perf_counter()
    try:
        yield counts
        if on_gpu:
            torch.cuda.synchronize()
        counts["seconds"] = time.perf_counter() - began
        counts["peak_mb"] = peak_mb(on_gpu)
    finally:
        for hook in hooks:
            hook.remove()


def peak_mb(on_gpu: bool) -> float:
    """Of the card, or of this process."""
    if on_gpu:
        return torch.cuda.max_memory_allocated() / 2**20
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def work_of(trajectories, group: int, family) -> Work:
    """What these trajectories, in groups of so many, cost at least."""
    firsts = trajectories[::group]
    encoded = [t.images[0] for t in firsts]
    for trajectory in trajectories:
        encoded += trajectory.images[1:]
    written = [t.sampled.count(1) for t in trajectories]
    observed = sum(t.sampled.count(0) for t in trajectories)
    return Work(
        patches=4 * sum(map(family.tokens, encoded)),
        given=sum(len(t.prompt_ids) for t in firsts) + observed,
        written=sum(written),
        steps=max(written),
    )


def train_config(config: BenchConfig) -> TrainConfig:
    """The same settings as flags of train.py."""
    area = family_named(config.model).token_area
    turn = 2 * config.thought + 60
    return TrainConfig(
        model=config.model,
        prompts=config.prompts,
        group=config.group,
        micro_batch=config.micro_batch,
        batch=usual_limits(config.model).batch,
        show_every=10**9,
        look_pixels=config.look_tokens * area,
        crop_pixels=config.crop_tokens * area,
        max_turns=config.zooms + 1,
        max_turn_tokens=turn,
        max_tokens=(config.zooms + 1) * (turn + 2 * config.crop_tokens + 100),
    )


def build(config: BenchConfig, run: Path):
    """Both trainers on models of equal weights, the samples, and the script."""
    ours_config = train_config(config)
    samples = load("toy", limit=config.prompts, seed=config.seed)
    samples = [replace(sample, image=sample.open()) for sample in samples]  # drawing does not count
    model, processor = load_model(config.model, random_weights=config.random_weights, layers=config.layers)
    other = twin(model)
    ours = train.build_trainer(ours_config, model, processor, samples, run)
    ours.state.global_step = 1  # step 0 would write images
    names = """output_dir per_device_train_batch_size gradient_accumulation_steps num_generations bf16 use_cpu
        max_completion_length gradient_checkpointing report_to remove_unused_columns loss_type beta"""
    settings = {name: getattr(ours.args, name) for name in names.split()}
    stock = stock_trainer(config, other, copy.deepcopy(processor), samples, settings)
    for trainer in (ours, stock):
        trainer.model.train()
        if trainer.args.gradient_checkpointing:  # `train` would switch it on, and is never called
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
            trainer.model.enable_input_require_grads()
    look = shown_size(processor, samples[0].image, ours_config.look_pixels)
    frame = processor.family.frame or look
    plan = make_plan(config, processor.tokenizer, samples, frame, ours_config.crop_pixels)
    return ours, stock, samples, plan


def twin(model):
    """A second model on the same weights, for adapters of its own: two of a 3B would not fit a small card."""
    memo = {}
    for weight in (*model.parameters(), *model.buffers()):
        memo[id(weight)] = weight
    return copy.deepcopy(model, memo)


class Arms:
    """What is compared. The updates share the trajectories of the last rollout."""

    def __init__(self, config: BenchConfig, run: Path):
        self.config = config
        self.ours, self.stock, self.samples, self.plan = build(config, run)
        self.optimizers = {}
        for trainer in (self.ours, self.stock):
            trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
            self.optimizers[trainer] = torch.optim.AdamW(trained, lr=0.0)
        self.groups = []

    def trajectories(self) -> list:
        return [trajectory for group in self.groups for trajectory in group]

    def set_flags(self, **flags) -> None:
        """Of our own trainer."""
        self.ours.config = replace(self.ours.config, **flags)

    def rollout(self, name: str) -> None:
        if name == "trl":
            look = self.ours.config.look_pixels
            stock_rollout(self.stock, self.samples, look, self.plan, self.config.group)
            return
        self.set_flags(engine=name)
        recorder, choose = scripted(self.plan, self.samples, self.config.group)
        with recorder, choose:
            self.groups = self.ours.sample_groups(self.samples)

    def prepare_updates(self) -> None:
        """Micro-batches for all; TRL's would have been made of its own rollout, so that does not count."""
        trajectories = self.trajectories()
        batch = stock_batch(trajectories, self.ours.processing_class, self.ours.model.device)
        self.stock_parts = split_stock_batch(batch, len(trajectories) // self.config.micro_batch)
        self.parts = train.split_groups(self.groups, self.config.micro_batch)

    def update(self, name: str) -> None:
        if name == "trl":
            update(self.stock, self.stock_parts, self.optimizers[self.stock])
        else:
            self.set_flags(engine=name)
            update(self.ours, self.parts, self.optimizers[self.ours])


def measure(arms: Arms, repeats: int, threads: int) -> dict:
    """All arms in turn, several times: {"rollout": {"trl": {"seconds": [...], ...}, ...}, "update": ...}.

    Repeat 0 warms up and counts tokens, in one process and without CUDA graphs, where the hooks see all.
    """
    found = {kind: {name: defaultdict(list) for name in NAMES} for kind in ("rollout", "update")}
    for repeat in range(repeats + 1):
        arms.set_flags(threads=threads if repeat else 1)
        SlotEngine.use_graphs = repeat > 0
        for kind, by_name in found.items():
            if kind == "update":
                arms.prepare_updates()
            for name in list(by_name):
                figures = measure_arm(arms, kind, name)
                if figures is None:
                    del by_name[name]
                    continue
                for figure, value in figures.items():
                    if (figure in ("seconds", "peak_mb")) == (repeat > 0):
                        by_name[name][figure].append(value)
        print(f"repeat {repeat} of {repeats}", file=sys.stderr, flush=True)
    return found


def measure_arm(arms: Arms, kind: str, name: str) -> dict | None:
    """The figures of an arm; None for a plain update whose logits (B, T, V) do not fit into memory."""
    trainer = arms.stock if name == "trl" else arms.ours
    try:
        with measured(trainer.model.get_base_model()) as figures:
            getattr(arms, kind)(name)
        return figures
    except RuntimeError as error:
        if (kind, name) != ("update", "generate") or not is_out_of_memory(error):
            raise
    trainer.model.zero_grad()
    free_memory()
    print("out of memory in the plain update: it is left out", file=sys.stderr, flush=True)
    return None


def run_arms(config: BenchConfig, run: Path) -> dict:
    """What is measured, for --json."""
    arms = Arms(config, run)
    found = measure(arms, config.repeats, config.threads)
    base = arms.ours.model.get_base_model()
    speed = device_speed(base.device, base.dtype)
    trajectories = arms.trajectories()
    work = work_of(trajectories, config.group, family_of(base))
    medians = {}
    for kind, by_name in found.items():
        medians[kind] = {}
        for name, figures in by_name.items():
            medians[kind][name] = {figure: median(values) for figure, values in figures.items()}
    return {
        "rollout_vs_trl": {name: times_trl(medians, "rollout", name) for name in controls.ENGINES},
        "update_vs_trl": times_trl(medians, "update", "slots"),
        "device": device_name(config.threads),
        "flags": asdict(config),
        "figures": medians,
        "floor_seconds": floors(work, base.config, speed, base.dtype.itemsize),
        "trajectories": len(trajectories),
        "model_tokens": sum(sum(t.sampled) for t in trajectories),
        "crops": sum(len(t.boxes) for t in trajectories),
    }


def times_trl(figures: dict, kind: str, name: str) -> float:
    """How many times as fast as TRL's."""
    return figures[kind]["trl"]["seconds"] / figures[kind][name]["seconds"]


def device_name(threads: int) -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {threads} threads"


def report(result: dict) -> str:
    """The two tables, as Markdown."""
    tables = []
    for kind, arms in result["figures"].items():
        cells = {name: cells_of(result, kind, name) for name in arms}
        rows = [[name, *cells[name].values()] for name in arms]
        tables.append(table([[kind, *cells["trl"]], *rows], markdown=True))
    return "\n\n".join(tables)


def cells_of(result: dict, kind: str, name: str) -> dict[str, str]:
    """The row of an arm: title of the column -> text."""
    figures = result["figures"][kind][name]
    seconds = figures["seconds"]
    cells = {}
    if kind == "rollout":
        cells["trajectories/s"] = f"{result['trajectories'] / seconds:.1f}"
        cells["model tokens/s"] = f"{result['model_tokens'] / seconds:.0f}"
        cells["decode steps"] = f"{figures['decode_steps']:.0f}"
    cells["prefill tokens" if kind == "rollout" else "tokens computed"] = f"{figures['prefill_tokens']:.0f}"
    cells["images encoded"] = f"{figures.get('images', 0):.0f}"
    cells["peak MB"] = f"{figures['peak_mb']:.0f}"
    cells["s"] = f"{seconds:.2f}"
    cells["times TRL's speed"] = f"{times_trl(result['figures'], kind, name):.1f}"
    cells["times the floor"] = f"{seconds / result['floor_seconds'][kind]:.1f}"
    return cells


def read_config(argv: list[str]) -> BenchConfig:
    """Parse, settle and check the flags; 0 stands for what is usual for the model's size."""
    config, _ = parse(BenchConfig, argv, __doc__)
    usual = USUAL if config.model == "tiny" else USUAL_BIG
    config = replace(config, **{name: getattr(config, name) or value for name, value in usual.items()})
    most = config.prompts * config.group
    if not config.micro_batch:
        config = replace(config, micro_batch=min(64, most) if config.model == "tiny" else config.group)
    if most % config.micro_batch:
        fail(f"--micro_batch {config.micro_batch} must divide prompts * group")
    if not 0 <= config.least_zooms <= config.zooms:
        fail("--least_zooms must be between 0 and --zooms")
    return config


# --------------------------------------------------------------------------------------------------
# A whole run.


def whole_run(folder: Path, seed: int) -> str:
    """Where the seconds of `python train.py` go: a table that adds up."""
    began = time.perf_counter()
    seconds = Counter()

    def timed(owner, name: str, part: str):
        plain = getattr(owner, name)

        def wrapped(*args, **kwargs):
            start = time.perf_counter()
            try:
                return plain(*args, **kwargs)
            finally:
                seconds[part] += time.perf_counter() - start

        return patch.object(owner, name, wrapped)

    with (
        timed(Validation, "score", "scoring"),
        timed(train.ZoomGRPOTrainer, "_save_checkpoint", "checkpoints"),
        timed(train.ZoomGRPOTrainer, "store_for_page", "groups for the page"),
        timed(training.log, "make_page", "pages"),
        timed(training.run, "make_page", "pages"),
        timed(training.run, "load_model", "loading"),
    ):
        flags = ["--seed", str(seed), "--out", str(folder / "run")]
        training.run.run(training.settle.read_config(flags), train.build_trainer)
    whole = time.perf_counter() - began
    steps = read_rows(folder / "run/metrics.jsonl")
    seconds["rollouts"] = sum(row["sec_rollout"] for row in steps)
    # The clock of an update runs from the end of the rollout: storing a group lies before that
    seconds["updates"] = sum(row["sec_train"] for row in steps)
    seconds["rest"] = whole - seconds.total()
    rows = [["part", "seconds", "fraction"]]
    rows += [[part, f"{value:.1f}", f"{value / whole:.2f}"] for part, value in seconds.most_common()]
    return table([*rows, ["all", f"{whole:.1f}", "1.00"]], markdown=True)


def main(config: BenchConfig) -> None:
    if config.simulate:
        print(simulate(config_of(config.model)))
        return
    if config.whole:
        with tempfile.TemporaryDirectory() as folder:
            print(whole_run(Path(folder), config.seed))
        return
    prepare_libraries(config.threads)
    print("loading the model; repeat 0 warms up and is not counted", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        result = run_arms(config, Path(folder))
    print(report(result))
    if config.json:
        write_json(Path(config.json), result)
        print(f"written: {config.json}")


if __name__ == "__main__":
    run_command(main, read_config)
