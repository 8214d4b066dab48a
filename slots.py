"""The fast engine: every trajectory has a slot of the key/value cache to itself; none waits for the slowest.

`generate` writes turn by turn: whoever has ended its turn waits for the slowest, and the gap stays in the
cache as padding. Here a trajectory's tokens lie side by side in its own slot. When its turn ends, its
observation is appended within a few steps, while the others go on; when it is finished, the last live slot
moves to its place (the live ones are always the first), and waiting groups move in where slots are free.
"""

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from model import grid_of, mrope, record, see

CHUNK = 16_384  # tokens (padding included) of one prefill pass; bounds its memory
GROWTH = 256  # tokens by which the slots grow when one is full
CROWD = 1 / 8  # observations go in together: when this share of the slots waits for one ...
PATIENCE = 8  # ... or after so many steps


def plain(module):
    """A LoRA layer whose weights are merged is its base layer, without the detour."""
    return module.base_layer if getattr(module, "merged", False) else module


class SlotCache:
    """Keys and values of every layer, (slots, heads, length, head size), written in place."""

    def __init__(self, config, slots: int, device, dtype):
        head = config.hidden_size // config.num_attention_heads
        empty = torch.empty(slots, config.num_key_value_heads, 0, head, device=device, dtype=dtype)
        self.layers = [[empty, empty] for _ in range(config.num_hidden_layers)]  # `reserve` makes them real

    def reserve(self, length: int) -> None:
        """Make room for this many tokens in every slot."""
        missing = length - self.layers[0][0].shape[2]
        if missing > 0:
            for pair in self.layers:  # layer by layer: never twice the whole cache
                for i, buffer in enumerate(pair):
                    slots, heads, _, size = buffer.shape
                    more = -(-missing // GROWTH) * GROWTH
                    # zeros, not junk: a masked value counts for nothing only if it is a number
                    pair[i] = torch.cat([buffer, buffer.new_zeros(slots, heads, more, size)], 2)

    def write(self, layer: int, rows, at, new, end: int) -> list[torch.Tensor]:
        """Put new keys and values (R, heads, L, head size) at places `at` (R, L) of slots `rows` (None: the
        first ones); returns those slots' first `end` keys and values."""
        result = []
        slots = torch.arange(len(at), device=at.device) if rows is None else rows
        for buffer, part in zip(self.layers[layer], new):
            buffer[slots[:, None], :, at] = part.transpose(1, 2)
            result.append((buffer[: len(at)] if rows is None else buffer[rows])[:, :, :end])
        return result

    def copy(self, source: int, target, length: int) -> None:
        for pair in self.layers:
            for buffer in pair:
                buffer[target, :, :length] = buffer[source, :, :length]


class Slots:
    """Runs `episodes` (see rollout.py) with at most `slots` trajectories at a time."""

    graphs = True  # on a GPU; until recording one fails

    def __init__(self, model, episodes, temperature: float, slots: int):
        self.model, self.episodes, self.temperature = model, episodes, temperature
        self.n = n = max(slots, episodes.group)
        self.device, self.live = model.device, 0
        self.graphs, self.recorded = Slots.graphs and self.device.type == "cuda", 0
        config = model.config.get_text_config()
        self.cache = SlotCache(config, n, self.device, model.dtype)
        # By slot, on the host: trajectory, tokens in the cache, next position, tokens of this turn, its room.
        self.books = np.zeros((6, n), np.int64)
        self.who, self.length, self.position, self.written, self.room, self.waits = self.books
        self.logits = torch.zeros(n, config.vocab_size, device=self.device)  # of each slot's next token
        self.ids = torch.zeros(n, episodes.max_turn_tokens + 1, dtype=torch.long, device=self.device)
        self.logprobs = torch.zeros(n, episodes.max_turn_tokens + 1, device=self.device)
        self.ends = torch.tensor(episodes.ends, device=self.device)
        self.banned = torch.tensor(episodes.banned, dtype=torch.long, device=self.device)

    def run(self, samples, given) -> list:
        """All trajectories of these samples' groups; given: per sample, ids its completions start with."""
        waiting, steps = list(zip(samples, given))[::-1], 0
        while waiting or self.live:
            self.admit(waiting)
            tokens, ended = self.write()
            # Rows whose turn has just ended take part: their last token belongs in the cache, too.
            self.logits[: self.live] = self.decode(tokens)
            self.waits[ended] = 1
            if self.waits[: self.live].any():
                steps += 1
                if steps >= PATIENCE or self.waits[: self.live].mean() >= CROWD:
                    self.answer(np.flatnonzero(self.waits[: self.live]).tolist())
                    steps = 0
        return self.episodes.trajectories

    def admit(self, waiting: list) -> None:
        """Prefill waiting samples' prompts, as far as slots are free, and copy each to its group's slots."""
        group, members = self.episodes.group, []
        while waiting and self.live + group <= self.n:
            members.append(self.episodes.begin(*waiting.pop()))
            slots = slice(self.live, self.live + group)
            self.books[:, slots], self.who[slots] = 0, members[-1]
            self.live += group
        if not members:
            return
        heads = list(range(self.live - group * len(members), self.live, group))
        firsts = [self.episodes.trajectories[indices[0]] for indices in members]
        self.append(heads, [t.prompt_ids + t.completion_ids for t in firsts], [t.images for t in firsts])
        for head in heads:
            others = slice(head + 1, head + group)
            self.cache.copy(head, others, self.length[head])
            self.length[others], self.position[others] = self.length[head], self.position[head]
            self.logits[others] = self.logits[head]
            self.episodes.seen(self.who[others], list(self.episodes.trajectories[self.who[head]].features))
            self.new_turn(range(head, head + group))

    def new_turn(self, slots) -> None:
        for slot in slots:
            self.written[slot], self.room[slot] = 0, self.episodes.room(self.who[slot])

    def write(self) -> tuple[torch.Tensor, list[int]]:
        """The next token of every live slot: tokens (live,), and the slots whose turn ends with it."""
        live = slice(0, self.live)
        scores = self.logits[live] / (self.temperature or 1.0)
        logprobs = scores.log_softmax(-1)  # before the ban, as the trainer recomputes them
        tokens = self.choose(scores.index_fill(1, self.banned, -torch.inf))
        at = torch.arange(self.live, device=self.device), self.to_device(self.written[live])
        self.ids[at] = tokens
        # A row that waits goes through the motions: what it writes lands behind its turn, and is overwritten.
        self.logprobs[at] = logprobs.gather(1, tokens[:, None])[:, 0]
        over = torch.isin(tokens, self.ends).cpu().numpy()  # the only wait for the device in a decode step
        going = self.waits[live] == 0
        self.written[live] += going
        return tokens, np.flatnonzero(going & (over | (self.written[live] >= self.room[live]))).tolist()

    def choose(self, scores: torch.Tensor) -> torch.Tensor:  # (live, V) -> (live,)
        if not self.temperature:
            return scores.argmax(-1)
        # A dart at the summed probabilities: one random number a row, where multinomial draws one a word.
        edges = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
        darts = torch.rand(len(scores), 1, dtype=torch.float64, device=self.device) * edges[:, -1:]
        return torch.searchsorted(edges, darts, right=True)[:, 0].clamp(max=scores.shape[1] - 1)

    def to_device(self, books: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(books.copy()).to(self.device, non_blocking=True)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append a token to each of the first slots; logits of what follows."""
        live = slice(0, len(tokens))
        end = int(self.length[live].max()) + 1
        self.cache.reserve(end)
        if self.graphs:
            logits = self.replay(torch.nn.functional.pad(tokens, (0, self.n - len(tokens))))[live]
        else:
            logits = self.step(end, tokens, *self.to_device(self.books[1:3, live]))
        self.books[1:3, live] += self.waits[live] == 0  # length and position
        return logits

    def step(self, end: int, tokens, length, position) -> torch.Tensor:  # three times (R,) -> (R, V)
        embeds = self.model.get_input_embeddings()(tokens[:, None])
        hidden = self.forward(None, embeds, length[:, None], end, position.expand(3, -1)[..., None])
        return self.model.lm_head(hidden[:, 0]).float()

    def replay(self, tokens: torch.Tensor) -> torch.Tensor:  # (n,) -> (n, V)
        """`step` as a CUDA graph: to launch its kernels one by one takes longer than to run them.

        A graph has fixed shapes: all slots take part, the free ones too, and each looks at all its room. When
        the slots have grown it is recorded anew.
        """
        given, room = (tokens, *self.to_device(self.books[1:3])), self.cache.layers[0][0].shape[2]
        if self.recorded != room:
            self.graph = None  # frees its memory first
            self.graph, self.recorded = record(lambda *given: self.step(room, *given), given), room
            Slots.graphs = self.graphs = self.graph is not None
        return self.graph(*given) if self.graph else self.step(room, *given)

    def answer(self, slots: list[int]) -> None:
        """End these slots' turns: append their observations, or free the slots."""
        going, observations, crops, finished = [], [], [], []
        self.waits[slots] = 0
        for slot, ids, logprobs in zip(slots, self.ids[slots].tolist(), self.logprobs[slots].tolist()):
            count = min(self.written[slot], self.room[slot])
            result = self.episodes.step(self.who[slot], ids[:count], logprobs[:count])
            if result is None:
                finished.append(slot)
            else:
                going.append(slot)
                observations.append(result[0])
                crops.append(result[1])
        if going:
            self.append(going, observations, crops)
            self.new_turn(going)
        for slot in sorted(finished, reverse=True):
            self.live -= 1
            if slot != self.live:  # the last live slot moves to the freed place
                self.cache.copy(self.live, slot, self.length[self.live])
                self.books[:, slot] = self.books[:, self.live]
                for state in (self.logits, self.ids, self.logprobs):
                    state[slot] = state[self.live]
            self.books[:, self.live] = 0  # a free slot must not point behind its room

    def append(self, slots: list[int], chunks: list[list[int]], pictures: list[list[Image.Image]]) -> None:
        """Append a chunk of tokens, with its pictures, to each of these slots."""
        widest = max(map(len, chunks))
        rows = max(1, CHUNK // widest)
        if len(slots) > rows:
            for i in range(0, len(slots), rows):
                self.append(slots[i : i + rows], chunks[i : i + rows], pictures[i : i + rows])
            return
        pad, shown = self.episodes.processor.image_token_id, sum(pictures, [])
        ids = torch.full((len(slots), widest), self.episodes.pad_id)
        positions = torch.zeros(3, len(slots), widest, dtype=torch.long)
        features = see(self.model, self.episodes.processor, shown) if shown else []
        rest = iter(features)
        starts = self.to_device(self.length[slots])
        for row, (slot, chunk, own) in enumerate(zip(slots, chunks, pictures)):
            ids[row, : len(chunk)] = torch.tensor(chunk)
            self.episodes.seen([self.who[slot]], [next(rest) for _ in own])
            here, after = mrope(chunk, pad, map(grid_of, own), self.position[slot])
            positions[:, row, : len(chunk)] = here
            self.position[slot] = after
        ids, rows = ids.to(self.device), torch.tensor(slots, device=self.device)
        embeds = self.model.get_input_embeddings()(ids)
        if shown:
            embeds = embeds.masked_scatter((ids == pad)[..., None], torch.cat(features).to(embeds.dtype))
        at = starts[:, None] + torch.arange(widest, device=self.device)
        end = int(self.length[slots].max()) + widest
        # The junk to the right of a short chunk is never attended to; what comes next overwrites it.
        hidden = self.forward(rows, embeds, at, end, positions.to(self.device))
        last = torch.tensor([len(chunk) - 1 for chunk in chunks], device=self.device)
        self.logits[rows] = self.model.lm_head(hidden[torch.arange(len(slots)), last]).float()
        self.length[slots] += [len(chunk) for chunk in chunks]

    def forward(self, rows, x, at, end: int, positions) -> torch.Tensor:
        """The language model over embeddings x (R, L, H) at places `at` (R, L) of slots `rows`: (R, L, H).

        Its layers, called one by one: places and mask are explicit, merged LoRA layers go without PEFT's
        detour, and it is all that the class does.
        """
        text = self.model.model.language_model
        self.cache.reserve(end)
        cos, sin = text.rotary_emb(x, positions)
        ahead = torch.arange(end, device=self.device) > at[:, None, :, None]  # (R, 1, L, end)
        mask = x.new_zeros(ahead.shape).masked_fill_(ahead, -torch.inf)
        # Query heads that share a key head become its rows: no key is copied.
        mask = mask.repeat(1, 1, text.layers[0].self_attn.num_key_value_groups, 1)
        for i, layer in enumerate(text.layers):
            attention, mlp, h = layer.self_attn, layer.mlp, layer.input_layernorm(x)
            q, k, v = (plain(p)(h) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
            q, k, v = (y.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for y in (q, k, v))
            q, k = apply_rotary_pos_emb(q, k, cos, sin)  # (R, heads, L, head size)
            k, v = self.cache.write(i, rows, at, (k, v), end)
            h = scaled_dot_product_attention(q.reshape(*k.shape[:2], -1, k.shape[3]), k, v, mask)
            h = h.reshape(q.shape).transpose(1, 2).flatten(2)
            x = x + plain(attention.o_proj)(h)
            h = layer.post_attention_layernorm(x)
            x = x + plain(mlp.down_proj)(mlp.act_fn(plain(mlp.gate_proj)(h)) * plain(mlp.up_proj)(h))
        return text.norm(x)
