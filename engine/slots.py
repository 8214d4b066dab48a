"""Continuous batching: every trajectory has a slot of the key/value cache, and none waits for the slowest.

`generate` writes turn by turn: whoever has ended its turn waits for the slowest, and the gap stays in the
cache as padding. Here a trajectory's tokens lie side by side in its own slot. When its turn ends, its
observation is appended within a few steps, while the others go on; when it is finished, the last live slot
takes its row (the live ones are always the first), and waiting groups are prefilled into free slots.

The model is Hugging Face's own; only the cache, the positions and the mask are ours.
"""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image

from engine.families import family_of, head_size
from engine.graph import capture_graph
from engine.inputs import encode_images, language_inputs, padded

PREFILL_TOKENS = 16_384  # most tokens (padding included) of one prefill pass; bounds its memory
MASK = 2**27  # most entries of a pass's mask: 256 MB in bfloat16
SEEN = 2**15  # most keys that a pass looks back at, all rows together: a layer copies them for every head
ALIGNED = 8  # attention kernels want masks whose rows are a multiple of this long
GROWTH = 256  # tokens by which the slots grow when one is full
WAITING_FRACTION = 1 / 4  # observations go in together: when this fraction of the slots waits for one ...
WAITING_STEPS = 8  # ... or after so many steps


class Chunk(NamedTuple):
    """Tokens that the model is given, and their images as shown: a prompt, or what answers a call."""

    ids: list[int]
    images: list[Image.Image]  # none with an error


@dataclass
class Slot:
    """What the host knows of a live trajectory. Its index among the live slots is its row in the cache."""

    trajectory: int  # its index in the environment
    length: int = 0  # tokens in the cache
    position: int = 0  # of the next token; below the length: an image takes few positions
    written: int = 0  # tokens of this turn
    tokens_left: int = 0  # tokens that this turn may have
    waiting: bool = False  # its turn has ended, and its observation is not in the cache yet


class SlotCache:
    """Keys and values of every layer, (slots, heads, length, head size), written in place.

    Hugging Face's layers know a cache by its `update`. Before each forward pass `aim` says where that writes.
    """

    def __init__(self, config, slots: int, device, dtype):
        # No length at first: `reserve` makes room.
        shape = (
            slots,
            config.num_key_value_heads,
            0,
            head_size(config),
        )
        layers = range(config.num_hidden_layers)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in layers]

    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def reserve(self, length: int) -> None:
        """Make room for so many tokens in every slot."""
        missing = length - self.capacity()
        if missing <= 0:
            return
        more = -(-missing // GROWTH) * GROWTH
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):  # one by one: never twice the whole cache
                slots, heads, _, size = buffer.shape
                # Zeros, not junk: a masked value counts for nothing only if it is a number.
                buffers[layer] = torch.cat([buffer, buffer.new_zeros(slots, heads, more, size)], 2)

    def aim(self, rows: torch.Tensor | None, columns: torch.Tensor, end: int) -> None:
        """Where the next pass writes: columns (R, L) of the slots `rows` (R,), or of the first R if None. It
        sees their first `end` tokens."""
        self.rows = rows
        self.columns = columns
        self.end = end

    def update(self, keys, values, layer: int, *args, **kwargs):
        """Store a layer's new keys and values (R, heads, L, head size); returns all that it may look at."""
        keys = self.write(self.keys[layer], keys)
        values = self.write(self.values[layer], values)
        return keys, values

    def write(self, buffer: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        count = len(self.columns)
        rows = self.rows
        if rows is None:
            rows = torch.arange(count, device=buffer.device)
        buffer[rows[:, None], :, self.columns] = new.transpose(1, 2)
        if self.rows is None:
            return buffer[:count, :, : self.end]  # a view: cheaper than a selection
        seen = buffer[rows]
        return seen[:, :, : self.end]

    # What Hugging Face asks where no mask is given: a pass from the slots' beginning, so that it needs none.

    def get_query_offset(self, *args) -> int:
        return 0

    def get_mask_sizes(self, *args) -> tuple[int, int]:
        return self.end, 0

    def copy(self, source: int, target, length: int) -> None:
        """Copy the first tokens of a slot to another, or to a slice of others."""
        for buffer in (*self.keys, *self.values):
            buffer[target, :, :length] = buffer[source, :, :length]


class SlotEngine:
    """Runs an environment, the ZoomEnv of rollout.py, with at most `slots` trajectories at a time."""

    use_graphs = True  # on a GPU; bench.py and doctor.py switch them off

    def __init__(self, model, env, temperature: float, slots: int):
        self.model = model
        self.env = env
        self.temperature = temperature
        self.size = max(slots, env.group)
        self.device = model.device
        self.family = family_of(model)
        on_gpu = self.device.type == "cuda"
        self.use_graphs = SlotEngine.use_graphs and on_gpu
        self.graph = None
        self.graph_capacity = 0
        self.live: list[Slot] = []
        config = model.config.get_text_config()
        self.cache = SlotCache(config, self.size, self.device, model.dtype)
        # One more for the surplus token of a slot that waits.
        turn = max(env.limits.max_turn_tokens, env.limits.max_plain_tokens) + 1
        # The logits of each slot's next token; what its turn has written so far.
        self.logits = torch.zeros(self.size, config.vocab_size, device=self.device)
        self.ids = torch.zeros(self.size, turn, dtype=torch.long, device=self.device)
        self.logprobs = torch.zeros(self.size, turn, device=self.device)
        self.end_ids = torch.tensor(env.end_ids, device=self.device)
        self.banned_ids = torch.tensor(env.banned_ids, dtype=torch.long, device=self.device)

    def run(self, samples: list, openings: list[list[int]]) -> list:
        """All trajectories of these samples' groups; openings: ids that a sample's completions start with."""
        queue = deque(zip(samples, openings))
        steps = 0  # since a slot began to wait
        while self.prefill_waiting(queue):
            written, lengths, positions = self.counters()
            tokens = self.next_tokens(written)
            # A token that ends its turn is decoded like the others: it belongs in the cache, too.
            self.logits[: len(self.live)] = self.decode(tokens, lengths, positions)
            self.advance(torch.isin(tokens, self.end_ids).tolist())
            waiting = [row for row, slot in enumerate(self.live) if slot.waiting]
            steps = steps + 1 if waiting else 0
            enough = WAITING_FRACTION * len(self.live)
            if waiting and (steps >= WAITING_STEPS or len(waiting) >= enough):
                self.end_turns(waiting)
                steps = 0
        return self.env.trajectories

    def prefill_waiting(self, queue: deque) -> bool:
        """Prefill each waiting prompt once, while slots are free, and copy it to its group's slots. Returns
        whether some slot is live."""
        group = self.env.group
        heads = []  # the first row of each new group
        while queue and len(self.live) + group <= self.size:
            started = [Slot(trajectory) for trajectory in self.env.reset(*queue.popleft())]
            if started:  # all of a group, or none
                heads.append(len(self.live))
                self.live += started
        if not heads:
            return bool(self.live)
        firsts = [self.env.trajectories[self.live[head].trajectory] for head in heads]
        self.append(heads, [Chunk(t.prompt_ids + t.completion_ids, t.images) for t in firsts])
        for head, first in zip(heads, firsts):
            rest = slice(head + 1, head + group)
            self.cache.copy(head, rest, self.live[head].length)
            self.logits[rest] = self.logits[head]
            self.env.keep_features([slot.trajectory for slot in self.live[rest]], first.features)
            for slot in self.live[rest]:
                slot.length = self.live[head].length
                slot.position = self.live[head].position
            self.start_turns(range(head, head + group))
        return True

    def start_turns(self, rows) -> None:
        for row in rows:
            slot = self.live[row]
            slot.written = 0
            slot.tokens_left = self.env.tokens_left(slot.trajectory)
            slot.waiting = False

    def counters(self) -> torch.Tensor:  # (3, size)
        """What each slot has written, its length and its position, in one copy a step; 0 for a free slot."""
        rows = [(slot.written, slot.length, slot.position) for slot in self.live]
        rows += [(0, 0, 0)] * (self.size - len(self.live))
        return self.to_device(list(zip(*rows)))

    def next_tokens(self, written: torch.Tensor) -> torch.Tensor:  # (size,) -> (live,)
        """Sample a token for every live slot.

        Slots that wait sample and decode as well, so that the batch stays contiguous. Their counters stand
        still, and what comes next overwrites the surplus token.
        """
        live = len(self.live)
        scores = self.logits[:live] / (self.temperature or 1.0)  # (live, V)
        logprobs = scores.log_softmax(-1)  # before the ban, as the trainer recomputes them
        tokens = self.choose(scores.index_fill(1, self.banned_ids, -torch.inf))
        rows = torch.arange(live, device=self.device)
        self.ids[rows, written[:live]] = tokens
        self.logprobs[rows, written[:live]] = logprobs.gather(1, tokens[:, None])[:, 0]
        return tokens

    def choose(self, scores: torch.Tensor) -> torch.Tensor:  # (live, V) -> (live,)
        """Greedy, or by inverse-CDF sampling: one random number per row; multinomial draws V."""
        if not self.temperature:
            return scores.argmax(-1)
        edges = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
        points = torch.rand(len(scores), 1, dtype=torch.float64, device=self.device) * edges[:, -1:]
        return torch.searchsorted(edges, points, right=True)[:, 0].clamp(max=scores.shape[1] - 1)

    def advance(self, is_end: list[bool]) -> None:
        """Count the token that every slot has got, unless it was waiting; those whose turn ends now wait."""
        for slot, ends in zip(self.live, is_end):
            if not slot.waiting:
                slot.length += 1
                slot.position += 1
                slot.written += 1
                slot.waiting = ends or slot.written >= slot.tokens_left

    def to_device(self, numbers: list) -> torch.Tensor:
        """From pinned memory, which a GPU reads while the host goes on."""
        numbers = torch.tensor(numbers, pin_memory=self.device.type == "cuda")
        return numbers.to(self.device, non_blocking=True)

    def decode(self, tokens, lengths, positions) -> torch.Tensor:  # (live,), (size,), (size,) -> (live, V)
        """Append a token to every live slot; logits of what follows."""
        live = len(self.live)
        end = max(slot.length for slot in self.live) + 1
        self.cache.reserve(end)
        if not self.use_graphs:
            return self.decode_step(end, tokens, lengths[:live], positions[:live])
        tokens = torch.nn.functional.pad(tokens, (0, self.size - live))
        return self.replay_step(tokens, lengths, positions)[:live]

    def decode_step(
        self, end: int, tokens, lengths, positions
    ) -> torch.Tensor:  # tokens, lengths, positions (R,) -> (R, V)
        embeds = self.model.get_input_embeddings()(tokens[:, None])
        inputs = {"inputs_embeds": embeds}
        positions = positions.expand(3, -1)[..., None]
        hidden = self.forward(None, inputs, lengths[:, None], end, positions)
        return self.model.lm_head(hidden[:, 0]).float()

    def replay_step(self, *arguments: torch.Tensor) -> torch.Tensor:  # (size,) each -> (size, V)
        """`decode_step` as a CUDA graph, captured anew when the slots have grown.

        A graph has fixed shapes: all slots take part, the free ones too, and each looks at all its room.
        """
        capacity = self.cache.capacity()
        if self.use_graphs and self.graph_capacity != capacity:
            self.graph = None  # frees its memory first
            self.graph = capture_graph(lambda *given: self.decode_step(capacity, *given), arguments)
            self.graph_capacity = capacity
            self.use_graphs = self.graph is not None  # the next rollout tries again
        return self.graph(*arguments) if self.graph else self.decode_step(capacity, *arguments)

    def end_turns(self, rows: list[int]) -> None:
        """End the turns of these slots: append their observations, or free the slots."""
        going = []
        observations = []
        finished = []
        all_ids = self.ids[rows].tolist()
        all_logprobs = self.logprobs[rows].tolist()
        for row, ids, logprobs in zip(rows, all_ids, all_logprobs):
            slot = self.live[row]
            count = min(slot.written, slot.tokens_left)
            observation = self.env.step(slot.trajectory, ids[:count], logprobs[:count])
            if observation is None:
                finished.append(row)
            else:
                going.append(row)
                observations.append(observation)
        if going:
            self.append(going, observations)
            self.start_turns(going)
        for row in reversed(finished):
            self.free(row)

    def free(self, row: int) -> None:
        """Give a slot up: the last live one takes its row."""
        slot = self.live.pop()
        last = len(self.live)
        if row != last:
            self.live[row] = slot
            self.cache.copy(last, row, slot.length)
            for state in (self.logits, self.ids, self.logprobs):
                state[row] = state[last]

    def append(self, rows: list[int], chunks: list[Chunk]) -> None:
        """Append a chunk to each of these slots."""
        longest = max(len(chunk.ids) for chunk in chunks)
        end = max(self.live[row].length for row in rows) + longest
        at_once = max(1, min(PREFILL_TOKENS // longest, MASK // (longest * end), SEEN // end))
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            self.append_part(rows[part], chunks[part])

    def append_part(self, rows: list[int], chunks: list[Chunk]) -> None:
        slots = [self.live[row] for row in rows]
        lengths = [len(chunk.ids) for chunk in chunks]
        longest = max(lengths)
        pad = self.env.processor.image_token_id
        positions = torch.zeros(3, len(rows), longest, dtype=torch.long)
        features = encode_images(self.model, self.env.processor, sum((chunk.images for chunk in chunks), []))
        unclaimed = iter(features)
        for i, (slot, chunk) in enumerate(zip(slots, chunks)):
            self.env.keep_features([slot.trajectory], [next(unclaimed) for _ in chunk.images])
            grids = map(self.family.grid, chunk.images)
            own, slot.position = self.family.positions(chunk.ids, pad, grids, slot.position)
            positions[:, i, : lengths[i]] = own
        ids = padded([chunk.ids for chunk in chunks], self.env.pad_id).to(self.device)  # (R, L)
        inputs = language_inputs(self.model, ids, features)
        starts = self.to_device([slot.length for slot in slots])
        steps = torch.arange(longest, device=self.device)
        columns = starts[:, None] + steps  # (R, L)
        end = max(slot.length for slot in slots) + longest
        where = torch.tensor(rows, device=self.device)
        # The junk to the right of a short chunk is never attended to; what comes next overwrites it.
        positions = positions.to(self.device)
        hidden = self.forward(where, inputs, columns, end, positions)
        ends = torch.tensor(lengths, device=self.device) - 1
        last = hidden[torch.arange(len(rows), device=self.device), ends]  # (R, H)
        self.logits[where] = self.model.lm_head(last).float()
        for slot, length in zip(slots, lengths):
            slot.length += length

    def forward(self, rows, inputs: dict, columns, end: int, positions) -> torch.Tensor:
        """The language model over inputs (R, L) at columns (R, L) of these slots: (R, L, H)."""
        embeds = inputs["inputs_embeds"]  # (R, L, H)
        length = embeds.shape[1]
        if end == length > 1:  # from the slots' beginning: causal, and no mask is needed
            mask = None
        else:
            end = -(-end // ALIGNED) * ALIGNED
            steps = torch.arange(end, device=self.device)
            ahead = steps > columns[:, None, :, None]
            mask = embeds.new_zeros(ahead.shape)  # (R, 1, L, end)
            mask.masked_fill_(ahead, -torch.inf)
        self.cache.reserve(end)
        self.cache.aim(rows, columns, end)
        output = self.model.model.language_model(
            **inputs,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state
