"""The interleaved loop: think -> zoom -> look at the crop -> ... -> answer.

`Episodes` keeps the books of all trajectories; one of two engines runs the model: `Turns` below, turn by
turn on Hugging Face `generate`, easy to check, or `slots.Slots`, which is faster and gives the same.

What makes both cheap: the prompt with its picture is run once per sample and copied to the group, the
key/value cache lives on between turns, only the new observation (one crop) goes through the model, and
finished trajectories leave the batch. What makes them right: token in, token out. Sampled ids are never
decoded and encoded again, every picture's pads are appended together with the picture or not at all, and
the sampler's logprobs come from the same weights that train.
"""

import ctypes
import multiprocessing
import random
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from peft.tuners.lora import LoraLayer
from PIL import Image
from tqdm import tqdm
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPooling

import tools
from data import Sample
from model import grid_of, see
from slots import Slots

ENGINES = ("generate", "slots")
ARMS = ("on", "off", "blank", "random", "oracle")
MARGIN = 0.15  # an oracle crop shows the target and this share of its size around it


@contextmanager
def merged(model):
    """Fold a float32 model's LoRA into its weights for a while: two matrix products of three less.

    In float32 the outputs change by rounding alone (a test holds them to the trainer's). The weights are put
    back from a copy: unmerging by subtraction would let them drift, step by step. In bfloat16 or 4 bits
    the merged weights would be other weights, so these are left alone.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    layers = [layer for layer in layers if layer.get_base_layer().weight.dtype == torch.float32]
    kept = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        for layer in layers:
            layer.merge()
        yield
    finally:
        for layer, weight in zip(layers, kept):
            layer.unmerge()
            layer.get_base_layer().weight.data.copy_(weight)


@dataclass
class Trajectory:
    """One finished episode. `len(images) == 1 + len(boxes)`, always."""

    sample: Sample
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)  # the model's tokens, observations between them
    sampled: list[int] = field(default_factory=list)  # 1 = the model's own token (trained on), 0 = given
    logprobs: list[float] = field(default_factory=list)  # of sampled tokens under the policy, 0.0 elsewhere
    images: list[Image.Image] = field(default_factory=list)  # as shown: first look, then each delivered crop
    turns: list[str] = field(default_factory=list)  # what the model wrote, turn by turn
    boxes: list[tools.Box] = field(default_factory=list)  # of the crops, ORIGINAL pixels, as asked for
    errors: list[str] = field(default_factory=list)  # what refused calls were told
    answer: str | None = None
    stop: str = ""  # "answer" | "no_call" | "turns" | "length" | "budget"
    features: list[torch.Tensor] = field(default_factory=list)  # of `images`, if kept for the update


class SamplingTape(LogitsProcessor):
    """Temperature and banned ids for `generate`, and a tape of the sampled tokens' logprobs.

    The tape holds one (rows, vocabulary) tensor, where `output_logits=True` would keep one for every step.
    The logprobs are those of the policy before the ban, which is what the trainer recomputes; a trained
    model gives banned ids nothing.
    """

    def __init__(self, temperature: float, banned: list[int]):
        self.temperature, self.banned, self.last, self.taken = temperature or 1.0, banned, None, []

    def read(self, token_ids: torch.Tensor) -> None:  # (R,)
        self.taken.append(self.last.gather(1, token_ids[:, None])[:, 0])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.last is not None:  # only now do we know what was sampled from the scores of the last call
            self.read(input_ids[:, -1])
        scores = scores.float() / self.temperature  # (R, V)
        self.last = scores.log_softmax(-1)
        scores[:, self.banned] = -torch.inf
        return scores

    def logprobs(self, sequences: torch.Tensor) -> torch.Tensor:  # -> (R, new tokens)
        self.read(sequences[:, -1])
        return torch.stack(self.taken, 1)


@contextmanager
def sampling_mode(model, seed: int | None):
    """Eval mode (checkpointing in train mode drops the cache), no gradients, and a random state of its own
    if seeded."""
    was_training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        model.train(was_training)


def expand_pads(processor, text: str, grids: list) -> list[int]:
    """Tokenise text once, each image pad repeated to its picture's number of visual tokens (grid over 4)."""
    ids, pad = [], processor.image_token_id
    counts = iter([int(t * h * w) // processor.image_processor.merge_size**2 for t, h, w in grids])
    for token in processor.tokenizer(text, add_special_tokens=False)["input_ids"]:
        ids += [pad] * next(counts) if token == pad else [token]
    return ids


def pixel_budgets(processor, look_pixels: int | None, crop_pixels: int | None) -> tuple[int, int]:
    """The pixel budgets of a first look and of a crop; unset ones are the processor's own maximum.

    Raises ValueError outside the processor's limits: it would resize again, into a frame of its own.
    """
    least, most = (processor.image_processor.size[key] for key in ("shortest_edge", "longest_edge"))
    for name, budget in (("look_pixels", look_pixels), ("crop_pixels", crop_pixels)):
        if budget is not None and not least <= budget <= most:
            raise ValueError(f"{name} must be between {least} and {most} for this model, not {budget}")
    return look_pixels or most, crop_pixels or most


def forced_openings(processor, first_turns: list[Trajectory]) -> list[list[int]]:
    """For each sample the ids of its first thought (if it had one) and of an opened call, up to the box."""
    decode, call = processor.tokenizer.decode, tools.CALL_OPENING
    opening = processor.tokenizer(call, add_special_tokens=False)["input_ids"]
    result = []
    for trajectory in first_turns:
        ids = trajectory.completion_ids
        ends = (k for k in range(1, len(ids) + 1) if "</think>" in decode(ids[:k]))
        result.append(ids[: next(ends, 0)] + opening if trajectory.sample.tool else [])
    return result


def rollout(
    model, processor, samples: list[Sample], *, group: int = 1, tool: str = "on", max_turns: int = 5,
    max_turn_tokens: int = 512, max_tokens: int = 4096, temperature: float = 1.0, seed: int | None = None,
    engine: str = "generate", progress: bool = False, look_pixels: int | None = None,
    crop_pixels: int | None = None, force_call: bool = False, show_targets: bool = False, batch: int = 256,
    lanes: int = 1, keep_features: bool = False,
) -> list[Trajectory]:  # fmt: skip
    """Roll out `group` trajectories for every sample; a sample's group comes back consecutive.

    tool: "on", "off" (no tool on offer), or a control, in which the crop is replaced: "blank" (grey),
    "random" (a region of the same size anywhere), "oracle" (the target). max_turns: model turns, so at most
    max_turns - 1 zooms. max_tokens: completion tokens, the model's and the observations'. temperature: 0 is
    greedy. engine: "generate" or "slots". look_pixels, crop_pixels: pixel budgets of the first look and of
    each crop. force_call: after its first (greedy) thought open a call for the model; the box is its own.
    show_targets: begin with calls on the sample's target boxes and their crops, as if the model had made
    them. batch: trajectories at once. lanes: the slots of so many processes share a tiny model's samples.
    keep_features: trajectories keep what the vision tower made of their pictures. Raises ValueError for a
    bad knob, and for a sample whose picture can't be read.
    """
    for name, value, known in (("tool", tool, ARMS), ("engine", engine, ENGINES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    if min(group, max_turns, max_turn_tokens, max_tokens, batch, lanes) < 1:
        raise ValueError("group, max_turns, max_turn_tokens, max_tokens, batch, lanes must be at least 1")
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    small = engine == "slots" and base.device.type == "cpu" and base.num_parameters() < 10**8
    lanes = max(1, min(lanes, len(samples), batch // group)) if small and sys.platform == "linux" else 1
    look_pixels, crop_pixels = pixel_budgets(processor, look_pixels, crop_pixels)
    limits = dict(tool=tool, max_turn_tokens=max_turn_tokens, max_tokens=max_tokens, seed=seed)
    limits |= dict(look_pixels=look_pixels, crop_pixels=crop_pixels, show_targets=show_targets)
    with (
        sampling_mode(model, seed),
        merged(model),
        tqdm(total=len(samples) * group, disable=not progress, unit="traj") as bar,
    ):

        def run(given, temperature=temperature, bar=None, **more):
            def work(part: slice, bar=None) -> list[Trajectory]:
                episodes = Episodes(processor, bar=bar, keep_features=keep_features, **limits | more)
                make = Slots if engine == "slots" else Turns
                at_once = min(batch // lanes, len(samples[part]) * episodes.group)
                return make(base, episodes, temperature, at_once).run(samples[part], given[part])

            return side_by_side(work, samples, lanes, bar)

        given = [[] for _ in samples]
        if force_call:
            given = forced_openings(processor, run(given, temperature=0, group=1, max_turns=1))
        return run(given, group=group, max_turns=max_turns, bar=bar)


def side_by_side(work, samples: list[Sample], lanes: int, bar=None) -> list[Trajectory]:
    """work(part) of every part of the samples, in one list; all but the first in forks of this process.

    A tiny model's operations are too small to be shared among threads, its trajectories are not: each process
    gets one thread. Chance differs between them, and is repeatable.
    """
    size = max(1, -(-len(samples) // lanes))
    first, *rest = [slice(i, i + size) for i in range(0, len(samples), size)] or [slice(0)]
    if not rest:
        return work(first, bar)
    fork, threads, children = multiprocessing.get_context("fork"), torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for part in rest:
            receiver, sender = fork.Pipe(duplex=False)
            child = fork.Process(target=lane, args=(work, part, torch.randint(2**62, ()).item(), sender))
            child.start()
            children.append((child, receiver))
            sender.close()  # before the next fork: with the child its end must be gone
        done = work(first, bar)
        for _, receiver in children:
            try:
                own = receiver.recv()
            except (EOFError, OSError) as error:
                raise MemoryError("a process of the rollout was killed: too little memory?") from error
            if isinstance(own, BaseException):
                raise own
            done += own
    finally:
        torch.set_num_threads(threads)
        for child, _ in children:
            child.kill()
            child.join()
    for i, trajectory in enumerate(done):
        trajectory.sample = samples[i * len(samples) // len(done)]
        trajectory.features = list(map(torch.as_tensor, trajectory.features))
    if bar is not None:
        bar.update(len(done) - bar.n)
    return done


def lane(work, part: slice, seed: int, pipe) -> None:
    """In a fork: send work(part) through the pipe, or what went wrong."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: whoever kills the parent ends this, too
    torch.manual_seed(seed)
    try:
        done = work(part)
        arrays = {id(each): each.numpy() for t in done for each in t.features}  # siblings share the first
        for trajectory in done:
            trajectory.sample = None  # its picture would take longer to send than all the rest
            trajectory.features = [arrays[id(each)] for each in trajectory.features]
    except BaseException as error:  # Ctrl-C, too: it is for the parent to speak
        done = error
    pipe.send(done)


class Episodes:
    """The books of a batch of trajectories, the same for every engine: no model, no mathematics."""

    def __init__(self, processor, *, group, tool, max_turns, max_turn_tokens, max_tokens, look_pixels,
                 crop_pixels, seed, show_targets=False, keep_features=False, bar=None):  # fmt: skip
        self.processor, self.tokenizer, self.group, self.tool = processor, processor.tokenizer, group, tool
        self.max_turns, self.max_turn_tokens, self.max_tokens = max_turns, max_turn_tokens, max_tokens
        self.look_pixels, self.crop_pixels, self.seed, self.bar = look_pixels, crop_pixels, seed, bar
        self.show_targets, self.keep_features = show_targets, keep_features
        ids, known = self.tokenizer.convert_tokens_to_ids, self.tokenizer.get_vocab()
        self.im_end, self.pad_id = ids("<|im_end|>"), self.tokenizer.pad_token_id
        self.ends = [ids(t) for t in ("<|im_end|>", "<|endoftext|>", "</tool_call>") if t in known]
        self.banned = [ids(t) for t in tools.BANNED if t in known]
        # by trajectory; chances: of the random crops of that control
        self.trajectories, self.views, self.chances = [], [], []

    def begin(self, sample: Sample, given: list[int]) -> list[int]:
        """Open a sample's picture, take the first look, and start its group, whose indices are returned.

        given: ids that the completions start with.
        """
        original = sample.open()
        view = tools.View(original, self.fit(original, self.look_pixels))
        look = view.look()
        text = tools.prompt(sample.text(), tool=sample.tool and self.tool != "off", boxed=not sample.tool)
        ids = expand_pads(self.processor, text, [grid_of(look)])
        for member in range(self.group):
            # lists of its own for every member: siblings share nothing that can change
            zeros = [0.0] * len(given)
            own = Trajectory(sample, list(ids), list(given), [0] * len(given), zeros, [look])
            self.trajectories.append(own)
            self.views.append(view)
            self.chances.append(random.Random(f"{self.seed}-{sample.id}-{member}"))
            for box in sample.boxes if self.show_targets else ():
                self.show(len(self.trajectories) - 1, box)
        return list(range(len(self.trajectories) - self.group, len(self.trajectories)))

    def show(self, i: int, target: tools.Box) -> None:
        """Begin a trajectory with a call on a target and its crop, none of it the model's own."""
        view, trajectory, region = self.views[i], self.trajectories[i], self.around(i, target)
        sx, sy = view.frame[0] / view.original.width, view.frame[1] / view.original.height
        box = [round(v * s) for v, s in zip(region, (sx, sy, sx, sy))]
        call = f"{tools.CALL_OPENING}{','.join(map(str, box))}]}}}}</tool_call>"
        crop = view.original.crop(region)
        crop = tools.resize(crop, self.fit(crop, self.crop_pixels))
        ids = expand_pads(self.processor, call + "<|im_end|>" + tools.observation(), [grid_of(crop)])
        trajectory.completion_ids += ids
        trajectory.sampled += [0] * len(ids)
        trajectory.logprobs += [0.0] * len(ids)
        trajectory.images.append(crop)
        trajectory.boxes.append(tuple(map(float, region)))

    def seen(self, indices: list[int], features: list[torch.Tensor]) -> None:
        """The features of the next pictures of these trajectories, which share them."""
        for i in indices if self.keep_features else ():
            self.trajectories[i].features += features

    def fit(self, picture: Image.Image, budget: int) -> tuple[int, int]:
        return tools.fit(picture.size, budget, self.processor.image_processor.size["shortest_edge"])

    def room(self, i: int) -> int:
        """Tokens that trajectory i may write in its next turn."""
        return max(0, min(self.max_turn_tokens, self.max_tokens - len(self.trajectories[i].completion_ids)))

    def step(self, i: int, tokens: list[int], logprobs: list[float]):
        """Record the turn that trajectory i has just written, and carry out its call.

        Returns the observation's ids and its pictures as shown (none with an error), or None when the
        episode is over.
        """
        trajectory = self.trajectories[i]
        trajectory.turns.append(self.record(trajectory, tokens, logprobs))
        trajectory.stop = self.verdict(trajectory, tokens)
        if trajectory.stop:
            return self.end(i)
        observed, crop, box, error = self.zoom(i)
        if tokens[-1] != self.im_end:  # the turn stopped at </tool_call>: close it for the model
            observed = [self.im_end] + observed
        if len(trajectory.completion_ids) + len(observed) >= self.max_tokens:
            trajectory.stop = "budget"  # dropped whole: half a picture would shift all positions after it
            return self.end(i)
        trajectory.completion_ids += observed
        trajectory.sampled += [0] * len(observed)
        trajectory.logprobs += [0.0] * len(observed)
        if error:
            trajectory.errors.append(error)
        else:
            trajectory.images.append(crop)
            trajectory.boxes.append(box)
        return observed, [] if error else [crop]

    def end(self, i: int) -> None:
        self.views[i] = None  # an original in full size is worth dropping
        if self.bar is not None:
            self.bar.update()

    def record(self, trajectory: Trajectory, tokens: list[int], logprobs: list[float]) -> str:
        """Append a turn to its trajectory; returns its text (the first turn's with what was forced before
        it)."""
        forced = trajectory.completion_ids if not trajectory.turns and not self.show_targets else []
        text = self.tokenizer.decode(forced + tokens, skip_special_tokens=True)
        trajectory.completion_ids = trajectory.completion_ids + tokens
        trajectory.sampled += [1] * len(tokens)
        trajectory.logprobs += logprobs
        return text

    def verdict(self, trajectory: Trajectory, tokens: list[int]) -> str:
        """Why the episode ends here, or "" if a call is to be carried out; the order is the paper's
        code's."""
        text, single = trajectory.turns[-1], self.tool == "off" or not trajectory.sample.tool
        trajectory.answer = tools.find_answer(text, boxed=not trajectory.sample.tool)
        if trajectory.answer is not None:
            return "answer"  # an answer wins over a call in the same turn
        if not tokens or tokens[-1] not in self.ends:
            return "length"
        if single or tools.find_call(text) is None:
            return "no_call"
        return "turns" if len(trajectory.turns) == self.max_turns else ""

    def zoom(self, i: int):
        """Carry out the call of trajectory i: (observation ids, crop as shown, its box, None), or (ids, None,
        None, error)."""
        view = self.views[i]
        try:
            asked = tools.parse_call(self.trajectories[i].turns[-1], view.frame)
            crop, box = view.crop(asked)
        except tools.ZoomError as error:
            return expand_pads(self.processor, tools.observation(str(error)), []), None, None, str(error)
        if self.tool in ("random", "oracle"):
            crop = view.original.crop(self.replacement(i, box))
        crop = tools.resize(crop, self.fit(crop, self.crop_pixels))
        if self.tool == "blank":
            crop = Image.new("RGB", crop.size, (128, 128, 128))
        return expand_pads(self.processor, tools.observation(), [grid_of(crop)]), crop, box, None

    def replacement(self, i: int, box: tools.Box) -> tuple[int, ...]:
        """The region that a control shows instead of `box`, whole ORIGINAL pixels."""
        trajectory, (width, height) = self.trajectories[i], self.views[i].original.size
        if self.tool == "random":
            w, h = int(box[2] - box[0]), int(box[3] - box[1])
            x, y = self.chances[i].randint(0, width - w), self.chances[i].randint(0, height - h)
            return x, y, x + w, y + h
        targets = trajectory.sample.boxes
        if not targets:  # nothing to show: the model's own crop
            return tuple(int(v) for v in box)
        return self.around(i, targets[len(trajectory.boxes) % len(targets)])

    def around(self, i: int, target: tools.Box) -> tuple[int, ...]:
        """A target with a margin and a minimum side, whole ORIGINAL pixels."""
        (width, height), (x1, y1, x2, y2) = self.views[i].original.size, target
        grow_x = max(MARGIN * (x2 - x1), (tools.MIN_SIDE - x2 + x1) / 2)
        grow_y = max(MARGIN * (y2 - y1), (tools.MIN_SIDE - y2 + y1) / 2)
        box = max(0, x1 - grow_x), max(0, y1 - grow_y), min(width, x2 + grow_x), min(height, y2 + grow_y)
        return tuple(map(int, box))


class Turns:
    """The engine on `generate`: all live trajectories write a turn, then all get their observations.

    Rows of the tensors are the live trajectories.
    """

    def __init__(self, model, episodes: Episodes, temperature: float, batch: int):
        self.model, self.episodes, self.temperature = model, episodes, temperature
        self.processor, self.samples_at_once = episodes.processor, max(1, batch // episodes.group)

    def run(self, samples, given) -> list[Trajectory]:
        """All trajectories of these samples' groups; given: per sample, ids its completions start with."""
        n = self.samples_at_once
        for i in range(0, len(samples), n):
            self.run_batch(samples[i : i + n], given[i : i + n])
        return self.episodes.trajectories

    def run_batch(self, samples, given) -> None:
        live = [i for sample, start in zip(samples, given) for i in self.episodes.begin(sample, start)]
        ids, mask, cache = self.prefill(live)
        seen = {}
        while True:
            ids, mask, cache, turns = self.generate(live, ids, mask, cache, seen)
            live, rows, observations, seen = self.observe(live, turns)
            if not live:
                return
            new_ids, new_mask = self.pad(observations)
            ids, mask = torch.cat([ids[rows], new_ids], 1), torch.cat([mask[rows], new_mask], 1)
            if len(rows) < cache.layers[0].keys.shape[0]:
                cache.batch_select_indices(torch.tensor(rows, device=ids.device))

    def pad(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-padded ids and mask, (R, longest): the last column of a batch that goes on must be real in
        every row."""
        longest = max(map(len, rows))
        ids = [[self.episodes.pad_id] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)

    def prefill(self, live: list[int]):
        """Run each sample's prompt and picture once; give its group copies of the cache. All but the last
        token: `generate` wants at least one new token to start from."""
        group = self.episodes.group
        firsts = [self.episodes.trajectories[i] for i in live[::group]]
        pictures = [picture for t in firsts for picture in t.images]
        features = see(self.model, self.processor, pictures)
        rest = iter(features)
        for k, first in enumerate(firsts):
            self.episodes.seen(live[k * group : (k + 1) * group], [next(rest) for _ in first.images])
        ids, mask = self.pad([t.prompt_ids + t.completion_ids for t in firsts])  # (S, P)
        cache = DynamicCache(config=self.model.config.get_text_config())
        self.model.model.rope_deltas = None
        self.model(
            input_ids=ids[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache, use_cache=True,
            mm_token_type_ids=(ids[:, :-1] == self.processor.image_token_id).int(), logits_to_keep=1,
            image_grid_thw=torch.tensor([grid_of(picture) for picture in pictures], device=ids.device),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
        )  # fmt: skip
        cache.batch_repeat_interleave(group)
        return ids.repeat_interleave(group, 0), mask.repeat_interleave(group, 0), cache  # (S * G, P)

    def generate(self, live, ids, mask, cache, seen):
        """One turn for every live row. Returns the grown ids, mask (0 after a row's end) and cache, and
        (ids, logprobs) turns."""
        episodes, room = self.episodes, [self.episodes.room(i) for i in live]
        pictures = [picture for i in live for picture in episodes.trajectories[i].images]
        tape = SamplingTape(self.temperature, episodes.banned)
        # Stale deltas of another batch would shift every position, silently.
        self.model.model.rope_deltas = None
        # All is explicit here: what is left out comes from the model's own config, and those on the Hub bring
        # a repetition penalty, a top_k of 1 and a temperature near 0.
        config = GenerationConfig(
            max_new_tokens=max(1, *room), eos_token_id=episodes.ends, pad_token_id=episodes.pad_id,
            do_sample=self.temperature > 0, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
            return_dict_in_generate=True,
        )  # fmt: skip
        out = self.model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=config,
            logits_processor=LogitsProcessorList([tape]), mm_encoder_outputs=seen,
            mm_token_type_ids=(ids == self.processor.image_token_id).int(),
            image_grid_thw=torch.tensor([grid_of(picture) for picture in pictures], device=ids.device),
        )  # fmt: skip
        new = out.sequences[:, ids.shape[1] :]  # (R, n)
        logprobs = tape.logprobs(out.sequences).tolist()
        turns, new_mask = [], torch.zeros_like(new)
        for row, tokens in enumerate(new.tolist()):
            length = next((k + 1 for k, token in enumerate(tokens) if token in episodes.ends), len(tokens))
            length = min(length, room[row])
            new_mask[row, :length] = 1
            turns.append((tokens[:length], logprobs[row][:length]))
        return out.sequences, torch.cat([mask, new_mask], 1), out.past_key_values, turns

    def observe(self, live, turns):
        """Record every row's turn, and deliver the crops.

        Returns the trajectories that go on, their rows, their observations' ids, and the features of the
        new crops.
        """
        going, rows, observations, crops = [], [], [], []
        for row, (i, (tokens, logprobs)) in enumerate(zip(live, turns)):
            if (result := self.episodes.step(i, tokens, logprobs)) is None:
                continue
            going.append(i)
            rows.append(row)
            observations.append(result[0])
            crops.append(result[1])
        shown = sum(crops, [])
        features = see(self.model, self.processor, shown) if shown else []
        rest = iter(features)
        for i, own in zip(going, crops):
            self.episodes.seen([i], [next(rest) for _ in own])
        seen = {"image": BaseModelOutputWithPooling(pooler_output=features)} if shown else {}
        return going, rows, observations, seen
