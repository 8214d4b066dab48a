"""The interleaved loop: think -> zoom -> look at the crop -> ... -> answer.

    python rollout.py                   # one question of the toy, turn by turn, as it happened
    python rollout.py --model runs/tiny-toy/checkpoint-120 --kind compare

`ZoomEnv` is the environment: `reset` shows a question, `step` takes a turn of the model, carries out its
call and returns the crop. It records all trajectories. One of two engines runs the model: `GenerateEngine`
below, turn by turn on Hugging Face `generate`, easy to check, or `engine.slots.SlotEngine`, with continuous
batching, which is faster and samples from the same distribution.

What makes both cheap: the prompt with its image is run once per sample and copied to the group, the
key/value cache lives on between turns, only the new observation (one crop) goes through the model, and
finished trajectories leave the batch. What makes them right: token in, token out. Sampled ids are never
decoded and encoded again, every image's pads are appended together with the image or not at all, and
the sampler's logprobs come from the same weights that train.
"""

import random
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from PIL import Image
from tqdm import tqdm
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

import tools
from config import Limits, look_budget, rollout_limits, run_command
from data import LARGE_PIXELS, Sample, load
from engine.inputs import encode_images, expand_image_tokens, image_inputs, padded, pixel_budgets
from engine.lora import sampling_mode
from engine.slots import Chunk, SlotEngine
from engine.workers import count_workers, run_in_workers
from grading.answers import find_answer
from grading.boxes import Box
from model import load_model, prepare_libraries
from options import controls, toolbox
from reward import Reward, score
from runlog.print_trajectory import ViewConfig, print_group, read_config

SMALL_PIXELS = 2**16  # of a look that is kept for other arms


@dataclass
class Trajectory:
    """What happened with one question: asked, written, zoomed on, shown in return, and what it earned.

    `len(images) == 1 + delivered`, always; with the zoom alone that is 1 + len(boxes).
    """

    sample: Sample
    prompt_ids: list[int]
    # The model's tokens, with the observations between them.
    completion_ids: list[int] = field(default_factory=list)
    # 1: sampled by the model, and trained on. 0: an observation, or an opening written for it.
    sampled: list[int] = field(default_factory=list)
    # Of the model's own tokens, under the policy that sampled them; else 0.0.
    logprobs: list[float] = field(default_factory=list)
    # As shown: the first look, then each delivered crop.
    images: list[Image.Image] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)  # what the model wrote, turn by turn
    calls: list[tools.Call] = field(default_factory=list)
    answer: str | None = None
    stop: str = ""  # "answer" | "no_call" | "turns" | "length" | "budget"
    reward: Reward | None = None  # set by train.py
    advantage: float = 0.0  # of the reward, within its group; set by train.py
    old_logprobs: torch.Tensor | None = None  # of the policy before the update; set by train.py
    base_logprobs: torch.Tensor | None = None  # of the model before training; set by train.py
    # What the vision tower makes of `images`, if kept for the update.
    features: list[torch.Tensor] = field(default_factory=list)
    frame: tuple[int, int] | None = None  # (width, height) of the frame of the model's boxes

    @property
    def boxes(self) -> list[Box]:
        """The regions that zooms have shown, ORIGINAL pixels."""
        return [call.region for call in self.calls if call.region]

    @property
    def errors(self) -> list[str]:
        """What refused calls were told."""
        return [call.error for call in self.calls if call.error]

    @property
    def used(self) -> list[str]:
        """The tools of the calls that came back with an image, in order."""
        return [call.name for call in self.calls if not call.error]

    @property
    def delivered(self) -> int:
        return len(self.used)

    def append_unsampled(self, ids: list[int]) -> None:
        """Append tokens that the model has not sampled: nothing of them is trained on."""
        self.completion_ids += ids
        self.sampled += [0] * len(ids)
        self.logprobs += [0.0] * len(ids)


class FirstTurn(NamedTuple):
    """How a greedy trajectory begins, in every arm in which its model is told the same."""

    look: Image.Image | None  # if it is small: for many questions, large ones would take much memory
    ids: list[int]
    logprobs: list[float]


def first_turns(trajectories: list[Trajectory]) -> dict[str, FirstTurn]:
    """Of greedy trajectories with the tool on offer, by their samples' ids: for `rollout`'s `known`."""
    found = {}
    for trajectory in trajectories:
        look = trajectory.images[0]
        length = [*trajectory.sampled, 0].index(0)
        turn = (trajectory.completion_ids[:length], trajectory.logprobs[:length])
        small = look.width * look.height <= SMALL_PIXELS
        found[trajectory.sample.id] = FirstTurn(look if small else None, *turn)
    return found


# --------------------------------------------------------------------------------------------------
# The environment, the same for either engine.


class ZoomEnv:
    """Questions, crops and the record of a batch of trajectories: no model, no mathematics."""

    def __init__(
        self,
        processor,
        limits: Limits,
        *,
        group: int = 1,
        tool: str = "on",
        seed: int | None = None,
        begin_with_targets: bool = False,
        keep_features: bool = False,
        known: dict[str, FirstTurn] | None = None,
        bar=None,
    ):
        self.processor = processor
        self.known = known or {}
        self.tokenizer = processor.tokenizer
        self.limits = limits
        self.offered = toolbox.named(limits.tools)
        self.schemas = [each.schema for each in self.offered]
        self.group = group
        self.tool = tool
        self.seed = seed
        self.begin_with_targets = begin_with_targets
        self.with_features = keep_features
        self.bar = bar
        vocabulary = self.tokenizer.get_vocab()
        self.im_end = vocabulary["<|im_end|>"]
        self.pad_id = self.tokenizer.pad_token_id
        self.end_ids = [vocabulary[token] for token in tools.TURN_ENDS if token in vocabulary]
        self.banned_ids = [vocabulary[token] for token in tools.BANNED if token in vocabulary]
        self.trajectories: list[Trajectory] = []
        self.views: list[tools.View | None] = []  # one for each trajectory, while it runs
        self.rngs: list[random.Random] = []  # of the random crops, one for each trajectory

    def reset(self, sample: Sample, opening: list[int]) -> list[int]:
        """Open a sample's image, take the first look, and start its group: the indices of those that are to
        go on, all of them where no first turn is known.

        opening: ids that the completions start with, written for the model.
        """
        before = self.known.get(sample.id)
        view = self.open_view(sample, before)
        look = before.look if before and before.look else view.look()
        offered = sample.tool and self.tool != "off"
        prompt = tools.prompt(
            sample.text(),
            tool=offered,
            boxed=not sample.tool,
            wording=sample.wording,
            schemas=self.schemas,
        )
        prompt = tools.in_frame(prompt, view.frame)
        ids = expand_image_tokens(self.processor, prompt, [look])
        going = []
        for member in range(self.group):
            number = len(self.trajectories)
            # Lists of its own for every member: siblings share nothing that can change.
            trajectory = Trajectory(sample, list(ids), images=[look])
            trajectory.frame = view.frame
            trajectory.append_unsampled(opening)
            self.trajectories.append(trajectory)
            self.views.append(view)
            self.rngs.append(random.Random(f"{self.seed}-{sample.id}-{member}"))
            if self.begin_with_targets:
                controls.show_targets(self, trajectory, view)
            if before and offered == sample.tool:
                self.repeat_turn(number, before)
            if not trajectory.stop:
                going.append(number)
        if view.original and view.original.width * view.original.height > LARGE_PIXELS:
            view.original = None  # opened again for each crop: a batch of them would not fit
        return going

    def open_view(self, sample: Sample, before: FirstTurn | None) -> tools.View:
        """A sample's image, which a known look leaves unopened, and the size of its first look."""
        if before and before.look:
            return tools.View(None, before.look.size, self.processor.family.frame)
        original = sample.open()
        # A row without the tool can't zoom: it is not shown a share, but all that the budget allows.
        limits = self.limits if sample.tool else replace(self.limits, look_share=1.0)
        shown = self.shown_size(original, look_budget(limits, original.size))
        return tools.View(original, shown, self.processor.family.frame)

    def repeat_turn(self, i: int, before: FirstTurn) -> None:
        """Let trajectory i write the first turn that is known of it, if its opening is how that begins."""
        opened = len(self.trajectories[i].completion_ids)
        same = self.trajectories[i].completion_ids == before.ids[:opened]
        if same and len(before.ids) > opened and before.ids[-1] in self.end_ids:
            self.step(i, before.ids[opened:], before.logprobs[opened:])

    def shown_size(self, image: Image.Image, pixels: int) -> tuple[int, int]:
        least = self.processor.image_processor.size["shortest_edge"]
        return tools.fit(image.size, pixels, least, self.processor.family.token_side)

    def keep_features(self, numbers: list[int], features: list[torch.Tensor]) -> None:
        """Note the features of the next images of these trajectories, which share them."""
        if self.with_features:
            # Out of the card's memory: until the update they are many, and of no use there.
            features = [each.cpu() for each in features]
            for i in numbers:
                self.trajectories[i].features += features

    def tokens_left(self, i: int) -> int:
        """Tokens that trajectory i may write in its next turn."""
        trajectory = self.trajectories[i]
        written = len(trajectory.completion_ids)
        if self.limits.max_plain_tokens and not trajectory.sample.tool:  # its only turn
            return max(0, self.limits.max_plain_tokens - written)
        return max(0, min(self.limits.max_tokens - written, self.limits.max_turn_tokens))

    def step(self, i: int, tokens: list[int], logprobs: list[float]) -> Chunk | None:
        """Note the turn that trajectory i has just written, and carry out its call; None: it is over.

        An observation that leaves no room to go on is dropped whole: half an image would shift the positions
        of all that follows.
        """
        trajectory = self.trajectories[i]
        self.append_turn(trajectory, tokens, logprobs)
        trajectory.stop = self.why_stop(trajectory, tokens)
        if trajectory.stop:
            return self.finish(i)
        call = self.carry_out(i)
        images = [] if call.error else [call.picture]
        text = tools.observation(call.error, trajectory.sample.wording, self.schemas)
        ids = expand_image_tokens(self.processor, text, images)
        # A turn that stopped at </tool_call> is closed for the model.
        if tokens[-1] != self.im_end:
            ids = [self.im_end, *ids]
        if len(trajectory.completion_ids) + len(ids) >= self.limits.max_tokens:
            trajectory.stop = "budget"
            return self.finish(i)
        trajectory.append_unsampled(ids)
        trajectory.calls.append(call)
        trajectory.images += images
        return Chunk(ids, images)

    def append_turn(self, trajectory: Trajectory, tokens, logprobs) -> None:
        """Append what the model wrote; the text of a first turn includes what was written before it."""
        ids = tokens
        if not trajectory.turns and not self.begin_with_targets:
            ids = trajectory.completion_ids + tokens
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        trajectory.turns.append(text)
        trajectory.completion_ids = trajectory.completion_ids + tokens
        trajectory.sampled += [1] * len(tokens)
        trajectory.logprobs += logprobs

    def why_stop(self, trajectory: Trajectory, tokens: list[int]) -> str:
        """Set the answer; why the trajectory ends here, or "" to carry out its call. In the paper's order."""
        text = trajectory.turns[-1]
        offered = trajectory.sample.tool and self.tool != "off"
        trajectory.answer = find_answer(text, boxed=not trajectory.sample.tool)
        if trajectory.answer is not None:
            return "answer"  # an answer wins over a call in the same turn
        if not tokens or tokens[-1] not in self.end_ids:
            return "length"
        if not offered or tools.find_call(text) is None:
            return "no_call"
        return "turns" if len(trajectory.turns) == self.limits.max_turns else ""

    def carry_out(self, i: int) -> tools.Call:
        """Carry out the last call of trajectory i; its crop as it is shown, replaced in a control arm."""
        view = self.views[i]
        trajectory = self.trajectories[i]
        if view.original is None:
            view = replace(view, original=trajectory.sample.open())
        call = tools.carry_out(view, trajectory.turns[-1], self.offered)
        if call.error:
            return call
        if call.region and self.tool in ("random", "swap", "oracle"):
            region = controls.replaced_region(self.tool, view, trajectory, call, self.rngs[i])
            call.picture = view.original.crop(region)
        size = self.shown_size(call.picture, self.limits.crop_pixels)
        call.picture = tools.resize(call.picture, size)
        if self.tool == "blank":
            call.picture = Image.new("RGB", call.picture.size, toolbox.GREY)
        return call

    def finish(self, i: int) -> None:
        self.views[i] = None  # frees the original in full size
        if self.bar is not None:
            self.bar.update()


# --------------------------------------------------------------------------------------------------
# The plain engine.


class LogprobRecorder(LogitsProcessor):
    """Temperature and banned ids for `generate`, and a record of the sampled tokens' logprobs.

    It holds one (rows, vocabulary) tensor, where `output_logits=True` would keep one for every step.
    The logprobs are those of the policy before the ban, which is what the trainer recomputes; a trained
    model gives banned ids nothing.
    """

    def __init__(self, temperature: float, banned_ids: list[int]):
        self.temperature = temperature or 1.0
        self.banned_ids = banned_ids
        self.last = None  # (R, V) logprobs of the tokens that are being chosen
        self.taken = []  # a (R,) tensor for each token

    def take(self, token_ids: torch.Tensor) -> None:  # (R,)
        taken = self.last.gather(1, token_ids[:, None])
        self.taken.append(taken[:, 0])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # Only now do we know what was sampled from the scores of the last call.
        if self.last is not None:
            self.take(input_ids[:, -1])
        scores = scores.float() / self.temperature  # (R, V)
        self.last = scores.log_softmax(-1)
        scores[:, self.banned_ids] = -torch.inf
        return scores

    def logprobs(self, sequences: torch.Tensor) -> torch.Tensor:  # -> (R, new tokens)
        self.take(sequences[:, -1])
        return torch.stack(self.taken, 1)


class GenerateEngine:
    """The engine on `generate`: all live trajectories write a turn, then all get their observations.

    Rows of the tensors are the live trajectories.
    """

    def __init__(self, model, env: ZoomEnv, temperature: float, batch: int):
        self.model = model
        self.env = env
        self.temperature = temperature
        self.processor = env.processor
        self.samples_at_once = max(1, batch // env.group)

    def run(self, samples: list[Sample], openings: list[list[int]]) -> list[Trajectory]:
        """All trajectories of these samples' groups; openings: ids that a sample's completions start with."""
        n = self.samples_at_once
        for start in range(0, len(samples), n):
            self.run_batch(samples[start : start + n], openings[start : start + n])
        return self.env.trajectories

    def run_batch(self, samples, openings) -> None:
        live = []  # indices of trajectories
        for sample, opening in zip(samples, openings):
            live += self.env.reset(sample, opening)
        if not live:
            return
        ids, mask, cache = self.prefill(live)
        features = []  # of the images that are not in the cache yet
        while live:
            ids, mask, cache, turns = self.write_turns(live, ids, mask, cache, features)
            going = []  # rows
            observations = []
            for row, (i, turn) in enumerate(zip(live, turns)):
                observation = self.env.step(i, *turn)
                if observation is not None:
                    going.append(row)
                    observations.append(observation)
            live = [live[row] for row in going]
            if not live:
                return
            if len(going) < len(ids):
                cache.batch_select_indices(torch.tensor(going, device=ids.device))
            features = self.look_at(live, [each.images for each in observations])
            new_ids, new_mask = self.pad([each.ids for each in observations])
            ids = torch.cat([ids[going], new_ids], 1)
            mask = torch.cat([mask[going], new_mask], 1)

    def pad(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask (R, longest), padded on the left: the last column of a batch that goes on must be real
        in every row."""
        ids = padded(rows, side="left").to(self.model.device)
        mask = (ids >= 0).long()
        return ids.where(ids >= 0, self.env.pad_id), mask

    def look_at(self, live: list[int], images: list[list[Image.Image]]) -> list[torch.Tensor]:
        """The features of the new images of these trajectories, in order."""
        features = encode_images(self.model, self.processor, sum(images, []))
        unclaimed = iter(features)
        for i, own in zip(live, images):
            self.env.keep_features([i], [next(unclaimed) for _ in own])
        return features

    def prefill(self, live: list[int]):
        """Run each sample's prompt and image once, and copy the cache to its group. The last token is left
        out: `generate` wants at least one new token to start from."""
        group = self.env.group
        firsts = [self.env.trajectories[i] for i in live[::group]]
        features = self.look_at(live[::group], [first.images for first in firsts])
        for start, first in zip(range(0, len(live), group), firsts):
            self.env.keep_features(live[start + 1 : start + group], first.features)
        images = [image for first in firsts for image in first.images]
        prompts = [first.prompt_ids + first.completion_ids for first in firsts]
        ids, mask = self.pad(prompts)  # (S, P)
        cache = DynamicCache(config=self.model.config.get_text_config())
        self.model.model.rope_deltas = None
        known = ids[:, :-1]
        self.model(
            input_ids=known,
            attention_mask=mask[:, :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **image_inputs(self.model, self.processor, known, images, features),
        )
        cache.batch_repeat_interleave(group)
        ids = ids.repeat_interleave(group, 0)  # (S * G, P)
        mask = mask.repeat_interleave(group, 0)
        return ids, mask, cache

    def write_turns(self, live, ids, mask, cache, features):
        """One turn for every live row. Returns the grown ids, mask (0 after a row's end) and cache, and the
        turns: (ids, logprobs) for every row."""
        env = self.env
        left = [env.tokens_left(i) for i in live]
        images = [image for i in live for image in env.trajectories[i].images]
        recorder = LogprobRecorder(self.temperature, env.banned_ids)
        # Stale deltas of another batch would shift every position, silently.
        self.model.model.rope_deltas = None
        # All is explicit here: what is left out comes from the model's own config, and those on the Hub bring
        # a repetition penalty, a top_k of 1 and a temperature near 0.
        config = GenerationConfig(
            max_new_tokens=max(1, *left),
            eos_token_id=env.end_ids,
            pad_token_id=env.pad_id,
            do_sample=self.temperature > 0,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            return_dict_in_generate=True,
        )
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=config,
            logits_processor=LogitsProcessorList([recorder]),
            **image_inputs(self.model, self.processor, ids, images, features),
        )
        new = out.sequences[:, ids.shape[1] :]  # (R, n)
        logprobs = recorder.logprobs(out.sequences).tolist()
        new_mask = torch.zeros_like(new)
        turns = []
        for row, tokens in enumerate(new.tolist()):
            ends = (k + 1 for k, token in enumerate(tokens) if token in env.end_ids)
            length = min(next(ends, len(tokens)), left[row])
            new_mask[row, :length] = 1
            turns.append((tokens[:length], logprobs[row][:length]))
        mask = torch.cat([mask, new_mask], 1)
        cache = out.past_key_values
        return out.sequences, mask, cache, turns


# --------------------------------------------------------------------------------------------------
# Entry point.


def rollout(
    model,
    processor,
    samples: list[Sample],
    *,
    group: int = 1,
    tool: str = "on",
    max_turns: int = 5,
    max_turn_tokens: int = 512,
    max_tokens: int = 4096,
    temperature: float = 1.0,
    seed: int | None = None,
    engine: str = "generate",
    look_pixels: int | None = None,
    crop_pixels: int | None = None,
    look_share: float = 1.0,
    max_plain_tokens: int = 0,
    batch: int = 256,
    threads: int = 1,
    tools: str = "zoom",
    progress: bool = False,
    force_call: bool = False,
    begin_with_targets: bool = False,
    keep_features: bool = False,
    known: dict[str, FirstTurn] | None = None,
) -> list[Trajectory]:
    """Roll out `group` trajectories for every sample; a sample's group comes back consecutive.

    tool: "on", "off" (no tool on offer), or a control, in which the crop is replaced: "blank" (grey),
    "random" (a region of the same size anywhere), "swap" (another thing of the sort), "oracle" (the
    target). tools: what is on offer, by the names in toolbox.py. max_turns: model turns, so at most one
    zoom less. max_tokens: completion tokens, the model's and the observations'. temperature: 0 is greedy.
    engine: "generate" or "slots". look_pixels, crop_pixels: pixel budgets of the first look and of each
    crop (None: the processor's own). look_share: the first look has at most this fraction of the image's own
    pixels. max_plain_tokens: of a sample without the tool (0: max_turn_tokens). batch: trajectories at once.
    threads: a tiny model's samples are shared among this many CPU processes. force_call: after its first
    (greedy) thought open a call for the model; the box is its own. begin_with_targets: begin with calls on
    the sample's targets and their crops, as if the model had made them. keep_features: trajectories keep what
    the vision tower made of their images. known: `first_turns` of the arm "on", which a greedy rollout of
    group 1 takes over. Raises ValueError for a bad flag, and for a sample whose image can't be read.
    """
    look_pixels, crop_pixels = pixel_budgets(processor, look_pixels, crop_pixels)
    limits = Limits(look_pixels, crop_pixels, max_turns, max_turn_tokens, max_tokens, max_plain_tokens)
    limits = replace(limits, look_share=look_share, batch=batch, engine=engine, threads=threads, tools=tools)
    controls.check_arguments(tool, group, limits)
    if known and (group > 1 or temperature or begin_with_targets):
        raise ValueError("known: only a greedy rollout of group 1, from its beginning, repeats first turns")
    settings = {"tool": tool, "seed": seed, "begin_with_targets": begin_with_targets, "known": known}
    openings = [[] for _ in samples]
    hidden = None if progress else True  # None: on a terminal it is shown
    bar = tqdm(total=len(samples) * group, unit="trajectory", disable=hidden, leave=False)
    with sampling_mode(model, seed), bar:
        if force_call:
            first_turn = ZoomEnv(processor, replace(limits, max_turns=1), **settings)
            thoughts = run_engine(model, first_turn, samples, openings, 0.0)
            openings = controls.forced_openings(processor.tokenizer, thoughts)
        settings |= {"group": group, "keep_features": keep_features, "bar": bar}
        env = ZoomEnv(processor, limits, **settings)
        return run_engine(model, env, samples, openings, temperature)


def run_engine(model, env: ZoomEnv, samples, openings, temperature: float) -> list[Trajectory]:
    """Run these samples through the environment, on the engine that the limits name."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    limits = env.limits
    if limits.engine == "generate":
        batch = min(limits.batch, len(samples) * env.group)
        return GenerateEngine(base, env, temperature, batch).run(samples, openings)
    workers = count_workers(limits.threads, base, samples, limits.batch // env.group)
    most = -(-len(samples) // workers) * env.group  # that a worker will have
    slots = min(limits.batch // workers, most)
    engine = SlotEngine(base, env, temperature, slots)
    return run_in_workers(engine, samples, openings, workers)


# --------------------------------------------------------------------------------------------------
# One trajectory, as it happened.


def main(config: ViewConfig) -> None:
    prepare_libraries(config.threads)
    model, processor = load_model(config.model, quantize=config.quantize)
    questions = load("toy", split="test", limit=100 * (config.number + 1))
    sample = [each for each in questions if each.meta["kind"] == config.kind][config.number]
    sampling = {"group": config.group, "temperature": config.temperature, "seed": config.seed}
    group = rollout(model, processor, [sample], **sampling, **rollout_limits(config))
    for trajectory in group:
        trajectory.reward = score(trajectory)
    print_group(group, processor, config.member)


if __name__ == "__main__":
    run_command(main, lambda argv: read_config(argv, __doc__))
