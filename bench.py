"""How fast, side by side in one run: TRL's own tool loop, our two rollout engines; TRL's update, and ours.

    python bench.py                                                        # the tiny model, on the CPU
    python bench.py --model qwen2.5-vl-3b --random-weights --json out.json # the real shapes, no download

All arms get the same model, questions, settings, and a scripted policy that fixes every turn's length and every
box; the model computes all of it, only its choice of tokens is overruled. Arms take turns, medians count.
"""

import json
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import torch
import transformers
import trl.trainer.utils as trl_utils
from datasets import Dataset
from transformers import HfArgumentParser, LogitsProcessor, LogitsProcessorList
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_template

import rollout
import tools
import train
from data import load
from model import load_model, lora_config


def knob(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass
class Knobs:
    model: str = knob("tiny", "preset, folder or Hub name")
    random_weights: bool = knob(False, "the shapes of the model with fresh weights: needs no download")
    layers: int = knob(0, "keep only so many layers of language model and vision tower (0: all)")
    prompts: int = knob(16, "questions")
    group: int = knob(8, "trajectories per question")
    zooms: int = knob(2, "most zooms of a trajectory; each has 0 to so many")
    thought: int = knob(0, "mean tokens of a turn's thought (0: 12 for tiny, else 100)")
    look_tokens: int = knob(0, "visual tokens of a first look (0: 16 for tiny, else 1000)")
    crop_tokens: int = knob(0, "visual tokens of a crop (0: 16 for tiny, else 500)")
    micro_batch: int = knob(0, "trajectories per pass of the update (0: 64 for tiny, else a group)")
    repeats: int = knob(5, "of each arm; the median counts")
    threads: int = knob(2, "CPU threads")
    seed: int = knob(0, "of questions, boxes and lengths")
    json: str = knob("", "file for all figures")


# --------------------------------------------------------------------------------------------------
# The scripted policy, for an engine that asks row by row (generate) or slot by slot.


def make_plan(knobs: Knobs, tokenizer, samples, view) -> list[list[list[int]]]:
    """Token ids of every turn of every trajectory: thoughts of uneven length, boxes anywhere, an answer."""
    rng, plan = random.Random(knobs.seed), []
    filler = tokenizer("red=A", add_special_tokens=False)["input_ids"]
    width, height = view
    share = max(0.3, math.sqrt(knobs.crop_tokens * 784) / 1008)  # enough original pixels for a whole crop
    for sample in samples:
        for _ in range(knobs.group):
            turns = []
            for turn in range(1 + rng.randint(0, knobs.zooms)):
                length = max(1, round(rng.uniform(0.3, 1.7) * knobs.thought))
                ids = tokenizer("<think>", add_special_tokens=False)["input_ids"]
                ids += [rng.choice(filler) for _ in range(length)]
                ids += tokenizer("</think>", add_special_tokens=False)["input_ids"]
                turns.append(ids)
            for ids in turns[:-1]:
                w, h = round(width * share), round(height * share)
                x, y = rng.randint(0, width - w), rng.randint(0, height - h)
                call = {"name": tools.TOOL, "arguments": {"bbox_2d": [x, y, x + w, y + h]}}
                text = f"<tool_call>{json.dumps(call)}</tool_call>"
                ids += tokenizer(text, add_special_tokens=False)["input_ids"]
            answer = sample.answer if rng.random() < 0.5 else "?"
            end = tokenizer(f"<answer>{answer}</answer><|im_end|>", add_special_tokens=False)["input_ids"]
            plan.append([*turns[:-1], turns[-1] + end])
    return plan


class Script(LogitsProcessor):
    """Overrules the choices of one `generate` call: row r writes turns[r]."""

    def __init__(self, turns):
        self.turns, self.step = turns, 0

    def __call__(self, input_ids, scores):
        chosen = [ids[min(self.step, len(ids) - 1)] for ids in self.turns]
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(
            1, torch.tensor(chosen, device=scores.device)[:, None], 0.0
        )


@contextmanager
def scripted(plan):
    """Our two engines under the script."""

    class Tape(rollout.SamplingTape):
        turn = 0  # of the class: one instance a turn

        def __init__(self, *args):
            super().__init__(*args)
            self.script = Script([turns[Tape.turn] for turns in plan if len(turns) > Tape.turn])
            Tape.turn += 1

        def __call__(self, input_ids, scores):
            return self.script(input_ids, super().__call__(input_ids, scores))

    def choose(engine, scores):
        live = range(engine.live)
        turns = [plan[engine.who[s]][len(engine.episodes.trajectories[engine.who[s]].turns)] for s in live]
        chosen = [ids[min(engine.written[s], len(ids) - 1)] for s, ids in zip(live, turns)]
        return torch.tensor(chosen, device=scores.device)

    plain = rollout.SamplingTape, rollout.Slots.choose
    rollout.SamplingTape, rollout.Slots.choose = Tape, choose
    try:
        yield
    finally:
        rollout.SamplingTape, rollout.Slots.choose = plain


# --------------------------------------------------------------------------------------------------
# TRL's own loop: an environment whose tool returns the crop, and our wire format as a chat template.

TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{ '<|im_start|>system\n' + SYSTEM + '<|im_end|>\n<|im_start|>user\n' }}"
    "{%- elif message.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>' }}"
    "{%- else %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
    "{%- if message.content is string %}{{ message.content }}{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{ IMAGE }}{%- else %}{{ part.text }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
    "{%- for call in message.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}"
    "{%- endfor %}{%- if message.role == 'tool' %}{{ SUFFIX + '</tool_response>' }}{%- endif %}"
    "{{ '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)


def stock_trainer(knobs: Knobs, model, processor, samples, settings: dict, crop_pixels: int):
    """GRPOTrainer as it comes, with an image-returning tool."""

    class Zoom:
        def reset(self, index, **row):
            self.view = tools.View(samples[index].image, row["prompt"][0]["content"][0]["image"].size)

        def image_zoom_in_tool(self, bbox_2d: list[float]):
            """
            Zoom in on one region of the picture.

            Args:
                bbox_2d: The region as [x1, y1, x2, y2].
            """
            crop, _ = self.view.crop(tuple(bbox_2d))
            return [{"type": "image", "image": tools.resize(crop, tools.fit(crop.size, crop_pixels))}]

    tokenizer = processor.tokenizer
    texts = {"SYSTEM": tools.TOOL_SYSTEM, "IMAGE": tools.IMAGE, "SUFFIX": tools.TOOL_SUFFIX}
    template = TEMPLATE
    for name, text in texts.items():
        template = template.replace(name, json.dumps(text))
    processor.chat_template, tokenizer.chat_template = template, template
    tokenizer.response_template = qwen3_template
    rows = Dataset.from_list([{"prompt": "", "index": i} for i in range(len(samples))])
    return GRPOTrainer(
        model=model,
        args=GRPOConfig(**settings | {"max_tool_calling_iterations": knobs.zooms}),
        reward_funcs=lambda completions, **_: [float(i % 2) for i in range(len(completions))],
        train_dataset=rows,
        processing_class=processor,
        environment_factory=Zoom,
        peft_config=lora_config(16),
    )


def stock_rollout(trainer, samples, looks, plan, group: int):
    """One generation of TRL's loop under the script."""
    generate, turn = type(trainer.model).generate, iter(range(10**6))
    end = trainer._tokenizer.eos_token_id  # TRL's turns end here alone, not with the call

    def scripted_generate(*args, **kwargs):
        now = next(turn)
        script = Script([turns[now] + [end] for turns in plan if len(turns) > now])
        return generate(trainer.model, *args, logits_processor=LogitsProcessorList([script]), **kwargs)

    trainer.model.generate = scripted_generate
    question = lambda sample: "\n" + sample.text() + tools.TOOL_SUFFIX  # noqa: E731
    rows = [
        {
            "prompt": [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": look}, {"type": "text", "text": question(sample)}],
                }
            ],
            "index": i,
        }
        for i, (sample, look) in enumerate(zip(samples, looks))
        for _ in range(group)
    ]
    return trainer._generate_and_score_completions(rows)


# --------------------------------------------------------------------------------------------------
# Measuring.


@contextmanager
def measured(model, figures: dict):
    """Seconds, peak memory, and what went through the model, counted by hooks."""
    counts, device = Counter(), model.device

    def text(module, args, kwargs):
        rows, length = kwargs["inputs_embeds"].shape[:2]
        counts["prefill_tokens" if length > 1 else "decode_tokens"] += rows * length
        counts["decode_steps"] += length == 1

    def vision(module, args, kwargs):
        counts["pictures"] += len(kwargs.get("grid_thw", args[1] if len(args) > 1 else ()))

    hooks = [
        model.model.language_model.register_forward_pre_hook(text, with_kwargs=True),
        model.model.visual.register_forward_pre_hook(vision, with_kwargs=True),
    ]
    reset_peak(device)
    began = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize()
    figures["seconds"].append(time.perf_counter() - began)
    figures["peak_mb"].append(peak_mb(device))
    for name, value in counts.items():
        figures[name].append(value)
    for hook in hooks:
        hook.remove()


def reset_peak(device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew


def peak_mb(device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def device_speed(device, dtype) -> tuple[float, float]:
    """Bytes/s of a large copy (read and write counted), and operations/s of a large matrix product."""
    big = torch.empty(2**27 if device.type == "cuda" else 2**25, dtype=torch.float32, device=device)
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)

    def best(work) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return min(times)

    return 2 * big.nbytes / best(big.clone), 2 * side**3 / best(lambda: a @ a)


def floors(model, trajectories, group: int, bytes_s: float, ops_s: float) -> dict:
    """The least seconds that a rollout and an update of these trajectories could take on this device.

    Weights are read once a decode step and each token costs two operations a weight, attention left out. The
    update runs forward and backward (to the inputs: the weights are frozen) over each distinct token once.
    """
    size = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    text, vision = size(model.model.language_model) + size(model.lm_head), size(model.model.visual)
    pictures = [t.images for t in trajectories]
    patches = lambda image: image.width * image.height // 196  # noqa: E731
    looks, crops = (
        sum(map(patches, part))
        for part in ([p[0] for p in pictures[::group]], sum([p[1:] for p in pictures], []))
    )
    given = sum(len(t.prompt_ids) for t in trajectories[::group]) + sum(
        t.sampled.count(0) for t in trajectories
    )
    written = sum(t.sampled.count(1) for t in trajectories)
    steps = max(t.sampled.count(1) for t in trajectories)
    see, read = 2 * vision * (looks + crops) / ops_s, 2 * text * given / ops_s
    write = max(steps * text * model.dtype.itemsize / bytes_s, 2 * text * written / ops_s)
    return {"rollout": see + read + write, "update": see + 4 * text * (given + written) / ops_s}


def update(trainer, batch: dict, parts: int, optimizer) -> None:
    """Forward, backward and optimiser step over a batch in `parts` micro-batches."""
    trainer.current_gradient_accumulation_steps = parts
    pieces = trl_utils.split_tensor_dict(trl_utils.split_pixel_values_by_grid(batch), parts)
    for piece in pieces:
        trainer.compute_loss(trainer.model, trl_utils.unsplit_pixel_values_by_grid(piece)).backward()
    optimizer.step()
    optimizer.zero_grad()


def build(knobs: Knobs, run: Path):
    """Both trainers on models of equal weights, our samples, and the script."""
    look, crop = knobs.look_tokens * 784, knobs.crop_tokens * 784
    turn = 2 * knobs.thought + 60
    limits = {"look_pixels": look, "crop_pixels": crop, "max_turns": knobs.zooms + 1, "max_turn_tokens": turn}
    own = train.Knobs(
        model=knobs.model, prompts=knobs.prompts, group=knobs.group, micro_batch=knobs.micro_batch,
        max_tokens=(knobs.zooms + 1) * (turn + 2 * knobs.crop_tokens + 100), show_every=10**9, **limits,
    )  # fmt: skip
    samples = load("toy", limit=knobs.prompts, seed=knobs.seed)
    samples = [replace(sample, image=sample.open()) for sample in samples]  # drawing is nobody's business here
    trainers = []
    for make in ("ours", "stock"):
        model, processor = load_model(
            knobs.model,
            random_weights=knobs.random_weights,
            **{"layers": knobs.layers} if knobs.layers else {},
        )
        if make == "ours":
            trainers.append(train.build_trainer(own, model, processor, samples, run))
            continue
        settings = trainers[0].args.to_dict()
        names = (
            "output_dir per_device_train_batch_size gradient_accumulation_steps num_generations bf16 use_cpu "
            "max_completion_length gradient_checkpointing report_to remove_unused_columns loss_type beta"
        )
        trainers.append(
            stock_trainer(knobs, model, processor, samples, {n: settings[n] for n in names.split()}, crop)
        )
    ours = trainers[0]
    ours.state.global_step = 1  # step 0 would write pictures
    views = [tools.View(s.open(), tools.fit(s.open().size, look)) for s in samples]
    plan = make_plan(knobs, ours.processing_class.tokenizer, samples, views[0].shown)
    return *trainers, samples, [view.look() for view in views], plan


def compare(knobs: Knobs, run: Path) -> dict:
    """All arms in turn, several times."""
    ours, stock, samples, looks, plan = build(knobs, run)
    bare = {"trl": stock.model.get_base_model(), "ours": ours.model.get_base_model()}
    rows = [{"prompt": "", "index": i} for i in range(knobs.prompts) for _ in range(knobs.group)]
    kept = {}
    plain = train.rollout
    train.rollout = lambda *args, **kwargs: kept.setdefault("trajectories", plain(*args, **kwargs))

    def roll(engine):
        kept.pop("trajectories", None)
        ours.knobs.engine = engine
        with scripted(plan):
            kept["batch"] = ours._generate_and_score_completions(rows)

    rollouts = {"trl": lambda: stock_rollout(stock, samples, looks, plan, knobs.group)}
    rollouts |= {engine: (lambda engine=engine: roll(engine)) for engine in rollout.ENGINES}
    parts = knobs.prompts * knobs.group // knobs.micro_batch
    optimizers = {
        name: torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=0.0)
        for name, trainer in (("trl", stock), ("ours", ours))
    }
    updates = {
        "trl": lambda: update(stock, kept["batch"], parts, optimizers["trl"]),
        "ours": lambda: update(ours, kept["batch"], parts, optimizers["ours"]),
    }
    for trainer in (ours, stock):
        trainer.model.train()
    figures = {
        "rollout": defaultdict(lambda: defaultdict(list)),
        "update": defaultdict(lambda: defaultdict(list)),
    }
    for repeat in range(knobs.repeats + 1):  # the first is a warm-up
        for kind, arms in (("rollout", rollouts), ("update", updates)):
            for name, work in arms.items():
                taken = figures[kind][name] if repeat else defaultdict(list)
                with measured(bare["trl" if name == "trl" else "ours"], taken):
                    work()
        print(f"repeat {repeat} of {knobs.repeats}", file=sys.stderr, flush=True)
    train.rollout = plain
    speed = device_speed(ours.model.device, ours.model.dtype)
    written = sum(sum(t.sampled) for t in kept["trajectories"])
    return {
        "figures": {
            kind: {name: {k: median(v) for k, v in taken.items()} for name, taken in arms.items()}
            for kind, arms in figures.items()
        },
        "seconds": {k: {n: t["seconds"] for n, t in arms.items()} for k, arms in figures.items()},
        "floor_seconds": floors(bare["ours"], kept["trajectories"], knobs.group, *speed),
        "device_bytes_s": speed[0],
        "device_ops_s": speed[1],
        "trajectories": len(plan),
        "model_tokens": written,
        "crops": sum(len(t.boxes) for t in kept["trajectories"]),
    }


def report(result: dict) -> str:
    """The table, as Markdown."""
    lines, figures = [], result["figures"]
    lines.append(
        "| rollout | trajectories/s | model tokens/s | prefill tokens | pictures encoded | decode steps | s | peak MB | times TRL | times the floor |"
    )  # noqa: E501
    lines.append("|---|" + "---:|" * 9)
    for name, row in figures["rollout"].items():
        s = row["seconds"]
        cells = [f"{result['trajectories'] / s:.1f}", f"{result['model_tokens'] / s:.0f}"]
        cells += [f"{row[key]:.0f}" for key in ("prefill_tokens", "pictures", "decode_steps")]
        cells += [f"{s:.2f}", f"{row['peak_mb']:.0f}", f"{figures['rollout']['trl']['seconds'] / s:.1f}"]
        lines.append(
            f"| {name} | " + " | ".join([*cells, f"{s / result['floor_seconds']['rollout']:.1f}"]) + " |"
        )
    lines += [
        "",
        "| update | tokens through the model | pictures encoded | s | peak MB | times TRL | times the floor |",
    ]
    lines.append("|---|" + "---:|" * 6)
    for name, row in figures["update"].items():
        s = row["seconds"]
        cells = [
            f"{row['prefill_tokens']:.0f}",
            f"{row['pictures']:.0f}",
            f"{s:.2f}",
            f"{row['peak_mb']:.0f}",
        ]
        cells += [
            f"{figures['update']['trl']['seconds'] / s:.1f}",
            f"{s / result['floor_seconds']['update']:.1f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = HfArgumentParser(Knobs, description=__doc__, formatter_class=train.Help)
    (knobs,) = parser.parse_args_into_dataclasses()
    tiny = knobs.model == "tiny"
    for name, small, large in (("thought", 12, 100), ("look_tokens", 16, 1000), ("crop_tokens", 16, 500)):
        setattr(knobs, name, getattr(knobs, name) or (small if tiny else large))
    knobs.micro_batch = knobs.micro_batch or (min(64, knobs.prompts * knobs.group) if tiny else knobs.group)
    if knobs.prompts * knobs.group % knobs.micro_batch:
        sys.exit(f"bench.py: error: --micro_batch {knobs.micro_batch} must divide prompts * group")
    torch.set_num_threads(knobs.threads)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(knobs, Path(folder))
    figures = result["figures"]
    ratio = lambda kind, name: figures[kind]["trl"]["seconds"] / figures[kind][name]["seconds"]  # noqa: E731
    head = {
        "rollout_vs_trl": {name: ratio("rollout", name) for name in rollout.ENGINES},
        "update_vs_trl": ratio("update", "ours"),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {knobs.threads} threads",
        "knobs": asdict(knobs),
    }
    print(report(result))
    if knobs.json:
        Path(knobs.json).write_text(json.dumps(head | result, indent=1) + "\n")
        print(f"written: {knobs.json}")


if __name__ == "__main__":
    main()
