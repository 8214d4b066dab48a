"""The update's forward pass with every prompt computed once.

The members of a group share their prompt and its picture; a padded batch computes them for each. Here all
tokens of a micro-batch, each prompt once, stand in one row without padding, and attention is cut to fit: a
prompt sees itself, a completion its prompt and itself. Logprobs and gradients are those of the padded batch.
"""

import functools
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from model import family_of

LOGITS = 2**25  # of them at a time: a vocabulary of 150,000 times all tokens would not fit


@dataclass
class Layout:
    """Where the tokens of S prompts and B completions stand in the one row of N tokens.

    It takes the place of the attention mask: the model hands it to `shared_prompt_attention` unseen.
    """

    prompts: torch.Tensor  # (S, P) places in the row, padded right with place 0
    prompts_real: torch.Tensor  # (S, P) bool
    completions: torch.Tensor  # (B, T)
    completions_real: torch.Tensor  # (B, T) bool
    owner: torch.Tensor  # (B,) the prompt of each completion
    mask: torch.Tensor  # (B, 1, T, P + T) bool: what a completion's tokens see


def shared_prompt_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention over a `Layout`; anything else goes to the usual one. q, k, v: (1, heads, N, head size)."""
    if not isinstance(attention_mask, Layout):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    layout = attention_mask
    repeat = module.num_key_value_groups
    row = torch.cat([query, key, value], 1)[0].transpose(0, 1)  # (N, all heads, head size)
    heads = [query.shape[1], key.shape[1], value.shape[1]]

    q, k, v = gather_rows(row, layout.prompts, heads)
    # Padding is on the right, so that causality alone keeps it out of sight.
    prompts = scaled_dot_product_attention(
        q, repeat_kv(k, repeat), repeat_kv(v, repeat), scale=scaling, is_causal=True
    )
    own_q, own_k, own_v = gather_rows(row, layout.completions, heads)
    keys = torch.cat(
        [k.index_select(0, layout.owner), own_k], 2
    )  # (B, key heads, P + T, head size)
    values = torch.cat([v.index_select(0, layout.owner), own_v], 2)
    completions = scaled_dot_product_attention(
        own_q,
        repeat_kv(keys, repeat),
        repeat_kv(values, repeat),
        attn_mask=layout.mask,
        scale=scaling,
    )
    parts = [
        prompts.transpose(1, 2)[layout.prompts_real],
        completions.transpose(1, 2)[layout.completions_real],
    ]
    return torch.cat(parts)[None], None  # (1, N, heads, head size)


def gather_rows(row: torch.Tensor, places: torch.Tensor, heads: list[int]):
    """The queries, keys and values at places (B, L) of the row: each (B, heads, L, head size)."""
    picked = row.index_select(0, places.flatten())
    picked = picked.view(*places.shape, *row.shape[1:])
    return picked.transpose(1, 2).split(heads, 1)


AttentionInterface.register("shared_prompt", shared_prompt_attention)
AttentionMaskInterface.register("shared_prompt", sdpa_mask)


def install_packed(base) -> None:
    """Let `model(packed=groups, temperature=...)` answer with `packed_logprobs`, for the bare model and all
    that wraps it: through PEFT and DDP, which has to see every pass that has gradients."""
    base.model.language_model.set_attn_implementation("shared_prompt")
    plain = base.forward

    @functools.wraps(plain)  # `generate` reads the signature
    def forward(*args, packed=None, temperature=1.0, **kwargs):
        return packed_logprobs(base, packed, temperature) if packed else plain(*args, **kwargs)

    base.forward = forward


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
    starts = start + lengths.cumsum(0) - lengths
    return (starts[:, None] + steps) * real, real


def make_layout(prompts: list[int], completions: list[int], owner: list[int], device) -> Layout:
    """The layout of prompts and completions of these lengths; owner: the prompt of each completion."""
    places, real = ragged(prompts, 0, device)
    own, own_real = ragged(completions, sum(prompts), device)
    owner = torch.tensor(owner, device=device)
    longest = own.shape[1]
    causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    sees_prompt = real[owner][:, None].expand(-1, longest, -1)  # (B, T, P)
    sees_itself = causal.expand(len(own), -1, -1)  # (B, T, T)
    mask = torch.cat([sees_prompt, sees_itself], 2)[:, None]
    return Layout(places, real, own, own_real, owner, mask)


def packed_positions(family, groups, pad_id: int) -> torch.Tensor:
    """The positions (3, N) of all prompts and then all completions, which go on after their prompt."""
    prompts = []
    completions = []
    for group in groups:
        look = family.grid(group[0].images[0])
        positions, after = family.positions(group[0].prompt_ids, pad_id, [look])
        prompts.append(positions)
        for trajectory in group:
            crops = map(family.grid, trajectory.images[1:])
            completions.append(
                family.positions(trajectory.completion_ids, pad_id, crops, after)[0]
            )
    return torch.cat(prompts + completions, 1)


def packed_logprobs(
    model, groups, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logprobs, entropies and mask (B, T): true for the tokens that the policy sampled, the others are zero.

    model: the bare Qwen2.5-VL, its language model set to "shared_prompt". groups: lists of trajectories that
    share a prompt, with the features of their pictures. B counts their members, T is the longest completion.
    """
    device = model.device
    pad_id = model.config.image_token_id
    members = [trajectory for group in groups for trajectory in group]
    prompts = [group[0].prompt_ids for group in groups]
    completions = [trajectory.completion_ids for trajectory in members]
    owner = [number for number, group in enumerate(groups) for _ in group]

    row = torch.tensor(sum(prompts + completions, []), device=device)  # (N,)
    looks = [group[0].features[0] for group in groups]
    crops = [feature for trajectory in members for feature in trajectory.features[1:]]
    features = torch.cat(looks + crops).to(device)
    embeds = model.get_input_embeddings()(row)
    embeds = embeds.masked_scatter((row == pad_id)[:, None], features.to(embeds.dtype))

    layout = make_layout(list(map(len, prompts)), list(map(len, completions)), owner, device)
    output = model.model.language_model(
        inputs_embeds=embeds[None],
        position_ids=packed_positions(family_of(model), groups, pad_id)[:, None].to(device),
        attention_mask={"full_attention": layout},
        use_cache=False,
    )
    hidden = output.last_hidden_state[0]  # (N, H)

    # A completion's first token is predicted by the last of its prompt, the others by the one before.
    prompt_ends = layout.prompts_real.sum(1) + layout.prompts[:, 0] - 1  # (S,)
    before = torch.cat(
        [prompt_ends[layout.owner][:, None], layout.completions[:, :-1]], 1
    )  # (B, T)
    longest = layout.completions.shape[1]
    sampled = torch.tensor(
        [t.sampled + [0] * (longest - len(t.sampled)) for t in members], device=device
    )
    sampled = sampled.bool()  # (B, T)
    targets = row[layout.completions[sampled]]
    logprobs, entropies = score_tokens(
        model.lm_head, hidden[before[sampled]], targets, temperature
    )
    blank = torch.zeros(sampled.shape, device=device)
    logprobs = blank.masked_scatter(sampled, logprobs)
    return logprobs, blank.masked_scatter(sampled, entropies), sampled


def score_tokens(
    head, hidden, targets, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprobs and entropies (M,) of targets (M,) after hidden (M, H), a part at a time."""

    def score_part(hidden, targets):
        logprobs = head(hidden).float().div_(temperature).log_softmax(-1)  # (m, V)
        with torch.no_grad():  # the entropy is only watched; its graph would double the memory
            entropies = -logprobs.exp().mul_(logprobs).sum(-1)
        return logprobs.gather(1, targets[:, None])[:, 0], entropies

    size = max(1, LOGITS // head.out_features)
    if len(hidden) <= size:
        return score_part(hidden, targets)
    logprobs = []
    entropies = []
    for part in zip(hidden.split(size), targets.split(size)):
        part_logprobs, part_entropies = checkpoint(score_part, *part, use_reentrant=False)
        logprobs.append(part_logprobs)
        entropies.append(part_entropies)
    return torch.cat(logprobs), torch.cat(entropies)
