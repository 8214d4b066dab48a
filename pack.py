"""The update's forward pass with every prompt computed once.

The members of a group share their prompt and its picture; TRL computes them for each. Here all real tokens of
a micro-batch, each prompt once, stand in one row without padding, and attention is cut to fit: a prompt sees
itself, a completion its prompt and itself. Logprobs, loss and gradients are those of the unpacked batch.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from model import mrope

LOGITS = 2**25  # of them at a time: a vocabulary of 150,000 times all tokens would not fit


@dataclass
class Layout:
    """Where the tokens of S prompts and R completions stand in the one row of T tokens.

    It takes the place of the attention mask: the model hands it to `shared_prompt_attention` unseen.
    """

    prompts: torch.Tensor  # (S, P) places in the row, padded right with place 0
    prompts_real: torch.Tensor  # (S, P) bool
    completions: torch.Tensor  # (R, C)
    completions_real: torch.Tensor  # (R, C) bool
    owner: torch.Tensor  # (R,) the prompt of each completion
    mask: torch.Tensor  # (R, 1, C, P + C) bool: what a completion's tokens see


def shared_prompt_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention over a `Layout`; anything else goes to the usual one. q, k, v: (1, heads, T, head size)."""
    if not isinstance(attention_mask, Layout):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    layout, repeat = attention_mask, module.num_key_value_groups
    rows = torch.cat([query, key, value], 1)[0].transpose(0, 1)  # (T, all heads, head size)
    heads = [query.shape[1], key.shape[1], value.shape[1]]

    def pick(places):  # (B, L) -> q, k, v, each (B, heads, L, head size)
        picked = rows.index_select(0, places.flatten()).view(*places.shape, *rows.shape[1:])
        return picked.transpose(1, 2).split(heads, 1)

    q, *shared = pick(layout.prompts)
    # Padding is on the right, so that causality alone keeps it out of sight.
    keys, values = (repeat_kv(x, repeat) for x in shared)
    prompts = scaled_dot_product_attention(q, keys, values, scale=scaling, is_causal=True)
    q, *own = pick(layout.completions)
    keys, values = (
        repeat_kv(torch.cat([prompt.index_select(0, layout.owner), x], 2), repeat)
        for prompt, x in zip(shared, own)
    )
    completions = scaled_dot_product_attention(q, keys, values, attn_mask=layout.mask, scale=scaling)
    parts = (
        prompts.transpose(1, 2)[layout.prompts_real],
        completions.transpose(1, 2)[layout.completions_real],
    )
    return torch.cat(parts)[None], None  # (1, T, heads, head size)


AttentionInterface.register("shared_prompt", shared_prompt_attention)
AttentionMaskInterface.register("shared_prompt", sdpa_mask)


def ragged(lengths: list[int], start: int, device):
    """Places (B, longest) of rows that stand one after the other from `start` on, and which of them are real.

    >>> ragged([2, 1], 5, "cpu")
    (tensor([[5, 6],
            [7, 0]]), tensor([[ True,  True],
            [ True, False]]))
    """
    lengths = torch.tensor(lengths, device=device)
    steps = torch.arange(int(lengths.max()), device=device)
    real = steps < lengths[:, None]
    return ((start + lengths.cumsum(0) - lengths)[:, None] + steps) * real, real


def find_groups(prompts: list[list[int]], firsts: list[torch.Tensor]) -> tuple[list[int], list[int]]:
    """Rows with the same prompt and first picture: the first row of each group, and each row's group.

    The ids alone won't do: one question about two pictures of one size has the same ids.

    >>> a, b = torch.zeros(2), torch.ones(2)
    >>> find_groups([[7], [7], [7], [8]], [a, b, a, a])
    ([0, 1, 3], [0, 1, 0, 2])
    """
    heads, owner = [], []
    for row, (prompt, first) in enumerate(zip(prompts, firsts)):
        known = (
            g for g, head in enumerate(heads) if prompts[head] == prompt and torch.equal(firsts[head], first)
        )
        group = next(known, len(heads))
        heads += [row] if group == len(heads) else []
        owner.append(group)
    return heads, owner


def packed_logprobs(model, ids, mask, kept: int, features, grids, num_images, pad: int, temperature: float):
    """Logprobs and entropies (B, kept) of the last `kept` tokens of each row, all zero where there is padding
    or a visual token.

    model: the bare Qwen2.5-VL, its language model set to "shared_prompt". ids, mask: (B, T), prompts padded
    left, completions right. features (visual tokens, width), grids: of all the rows' pictures in token order;
    num_images: per row.
    """
    width, device = ids.shape[1] - kept, ids.device
    prompts, completions = (
        [row[real].tolist() for row, real in zip(ids[:, part], mask[:, part].bool())]
        for part in (slice(0, width), slice(width, None))
    )
    firsts = [sum(num_images[:row]) for row in range(len(prompts))]  # first pictures
    heads, owner = find_groups(prompts, [features[i] for i in firsts])
    crops = [first + k for first, count in zip(firsts, num_images) for k in range(1, count)]
    shown = [firsts[row] for row in heads] + crops  # in token order: the prompts' pictures, then the crops

    positions, after = map(list, zip(*(mrope(prompts[row], pad, [grids[firsts[row]]]) for row in heads)))
    for completion, group, first, count in zip(completions, owner, firsts, num_images):
        positions.append(mrope(completion, pad, grids[first + 1 : first + count], after[group])[0])
    row = torch.tensor(sum([prompts[head] for head in heads] + completions, []), device=device)  # (T,)
    embeds = model.get_input_embeddings()(row)
    seen = torch.cat([features[i] for i in shown])
    embeds = embeds.masked_scatter((row == pad)[:, None], seen.to(embeds.dtype))

    layout = make_layout([len(prompts[head]) for head in heads], list(map(len, completions)), owner, device)
    hidden = model.model.language_model(
        inputs_embeds=embeds[None],
        position_ids=torch.cat(positions, 1)[:, None].to(device),
        attention_mask={"full_attention": layout},
        use_cache=False,
    ).last_hidden_state[0]  # (T, H)

    # A completion's first token is predicted by the last of its prompt, the others by the one before.
    ends = layout.prompts_real.sum(1) + layout.prompts[:, 0] - 1
    before = torch.cat([ends[layout.owner][:, None], layout.completions[:, :-1]], 1)  # (R, C)
    wanted = layout.completions_real & (row[layout.completions] != pad)
    values = score(model.lm_head, hidden[before[wanted]], row[layout.completions[wanted]], temperature)
    blank = torch.zeros(len(prompts), kept, device=device)
    wanted = torch.nn.functional.pad(wanted, (0, kept - wanted.shape[1]))
    return tuple(blank.masked_scatter(wanted, value) for value in values)


def make_layout(prompts: list[int], completions: list[int], owner: list[int], device) -> Layout:
    """The layout of prompts and completions of these lengths; owner: the prompt of each completion."""
    places, real = ragged(prompts, 0, device)
    own, own_real = ragged(completions, sum(prompts), device)
    owner = torch.tensor(owner, device=device)
    longest = own.shape[1]
    causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    sees_prompt = real[owner][:, None].expand(-1, longest, -1)
    mask = torch.cat([sees_prompt, causal.expand(len(own), -1, -1)], 2)[:, None]
    return Layout(places, real, own, own_real, owner, mask)


def score(head, hidden, targets, temperature: float):
    """Logprobs and entropies (N,) of targets (N,) after hidden (N, H), a part at a time."""

    def part(hidden, targets):
        logprobs = head(hidden).float().div_(temperature).log_softmax(-1)  # (n, V)
        with torch.no_grad():  # the entropy is only watched; its graph would double the memory
            entropy = -logprobs.exp().mul_(logprobs).sum(-1)
        return logprobs.gather(1, targets[:, None])[:, 0], entropy

    size = max(1, LOGITS // head.out_features)
    if len(hidden) <= size:
        return part(hidden, targets)
    pairs = zip(hidden.split(size), targets.split(size))
    parts = [checkpoint(part, *pair, use_reentrant=False) for pair in pairs]
    return tuple(map(torch.cat, zip(*parts)))
