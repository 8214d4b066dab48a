"""The update's forward pass with a shared prefix: every prompt is computed once for its group.

The members of a group share their prompt and its image; a padded batch computes them for each. Here all
tokens of a micro-batch, each prompt once, stand in one row without padding, and attention is cut to fit: a
prompt sees itself, a completion its prompt and itself. Logprobs and gradients are those of the padded batch.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from engine.families import family_of
from engine.inputs import language_inputs, padded

LOGITS = 2**25  # of them at a time: a vocabulary of 150,000 times all tokens would not fit
PARTS = 4  # in which completions attend, the shortest first: little of each is padding


@dataclass
class Part:
    """Completions of about the same length."""

    completions: torch.Tensor  # (b, t) indices in the row, padded right with index 0
    owner: torch.Tensor  # (b,) the prompt of each
    mask: torch.Tensor  # (b, 1, t, P + t) bool: what a completion's tokens see


@dataclass
class Layout:
    """Where the tokens of S prompts and B completions stand in the one row of N tokens.

    It goes along with the model's inputs, as `layout`, and reaches `shared_prompt_attention` unseen: all the
    layers on the way pass on what they do not know.
    """

    prompts: torch.Tensor  # (S, P) indices in the row, padded right with index 0
    prompts_real: torch.Tensor  # (S, P) bool
    completions: torch.Tensor  # (B, T)
    owner: torch.Tensor  # (B,) the prompt of each completion
    parts: list[Part]
    # (N,) where each token of the row is among the padded outputs of prompts and parts, flattened. A mask
    # would do, but on a GPU it makes the host wait in every layer, forward and backward.
    places: torch.Tensor


def shared_prompt_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    layout: Layout | None = None,
    **kwargs,
):
    """Attention over a `Layout`; without one it is the usual one. q, k, v: (1, heads, N, head size)."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    repeat = module.num_key_value_groups
    row = torch.cat([query, key, value], 1)[0]
    row = row.transpose(0, 1)  # (N, all heads, head size)
    heads = [query.shape[1], key.shape[1], value.shape[1]]

    q, k, v = gather_rows(row, layout.prompts, heads)
    # Padding is on the right, so that causality alone keeps it out of sight.
    prompts = scaled_dot_product_attention(
        q,
        repeat_kv(k, repeat),
        repeat_kv(v, repeat),
        scale=scaling,
        is_causal=True,
    )
    outputs = [prompts.transpose(1, 2).flatten(0, 1)]
    for part in layout.parts:
        own_q, own_k, own_v = gather_rows(row, part.completions, heads)
        prompt_k = k.index_select(0, part.owner)
        prompt_v = v.index_select(0, part.owner)
        keys = torch.cat([prompt_k, own_k], 2)  # (b, key heads, P + t, head size)
        values = torch.cat([prompt_v, own_v], 2)
        completions = scaled_dot_product_attention(
            own_q,
            repeat_kv(keys, repeat),
            repeat_kv(values, repeat),
            attn_mask=part.mask,
            scale=scaling,
        )
        outputs.append(completions.transpose(1, 2).flatten(0, 1))
    row = torch.cat(outputs).index_select(0, layout.places)
    return row[None], None  # (1, N, heads, head size)


def gather_rows(row: torch.Tensor, indices: torch.Tensor, heads: list[int]):
    """The queries, keys and values at indices (B, L) of the row: each (B, heads, L, head size)."""
    picked = row.index_select(0, indices.flatten())
    picked = picked.view(*indices.shape, *row.shape[1:])
    return picked.transpose(1, 2).split(heads, 1)


AttentionInterface.register("shared_prompt", shared_prompt_attention)
AttentionMaskInterface.register("shared_prompt", sdpa_mask)


def use_shared_prefix(base) -> None:
    """Make a model ready for `shared_prefix_logprobs`; whatever else it does goes on as before."""
    base.model.language_model.set_attn_implementation("shared_prompt")


def ragged(lengths: list[int], start: int, device):
    """Places (B, longest) of rows that stand one after the other from `start` on, and which of them are real.

    >>> ragged([2, 1], 5, "cpu")
    (tensor([[5, 6],
            [7, 0]]), tensor([[ True,  True],
            [ True, False]]))
    """
    longest = max(lengths)
    lengths = torch.tensor(lengths, device=device)
    steps = torch.arange(longest, device=device)
    real = steps < lengths[:, None]
    starts = start + lengths.cumsum(0) - lengths
    indices = starts[:, None] + steps
    return indices * real, real


def counted_from(starts: list[int], lengths: list[int]) -> torch.Tensor:
    """From each start on as many numbers as its length says, one row after the other.

    >>> counted_from([0, 5], [2, 3])
    tensor([0, 1, 5, 6, 7])
    """
    return torch.cat([torch.arange(start, start + n) for start, n in zip(starts, lengths)])


def make_layout(prompts: list[int], completions: list[int], owner: list[int], device) -> Layout:
    """The layout of prompts and completions of these lengths; owner: the prompt of each completion."""
    indices, real = ragged(prompts, 0, device)
    own, _ = ragged(completions, sum(prompts), device)
    owner = torch.tensor(owner, device=device)
    by_length = sorted(range(len(completions)), key=completions.__getitem__)
    size = -(-len(by_length) // PARTS)
    parts = []
    starts = [0] * len(completions)  # of each completion among the padded outputs
    filled = real.numel()
    on_device = torch.tensor(by_length, device=device).split(size)
    on_host = [by_length[begin : begin + size] for begin in range(0, len(by_length), size)]
    for members, rows in zip(on_host, on_device):
        longest = completions[members[-1]]
        part_owner = owner.index_select(0, rows)
        mask = what_they_see(real.index_select(0, part_owner), longest)
        parts.append(Part(own.index_select(0, rows)[:, :longest], part_owner, mask))
        for member in members:
            starts[member] = filled
            filled += longest
    prompt_starts = range(0, real.numel(), max(prompts))
    places = counted_from([*prompt_starts, *starts], [*prompts, *completions])
    return Layout(indices, real, own, owner, parts, places.to(device))


def what_they_see(prompts_real: torch.Tensor, longest: int) -> torch.Tensor:
    """The mask (b, 1, t, P + t) of completions: their prompt's real tokens (b, P), and what came before."""
    causal = torch.ones(longest, longest, dtype=torch.bool, device=prompts_real.device).tril()
    sees_prompt = prompts_real[:, None].expand(-1, longest, -1)  # (b, t, P)
    sees_itself = causal.expand(len(prompts_real), -1, -1)  # (b, t, t)
    return torch.cat([sees_prompt, sees_itself], 2)[:, None]


def row_positions(family, groups, pad_id: int) -> torch.Tensor:
    """The positions (3, N) of all prompts and then all completions, which go on after their prompt."""
    prompts = []
    completions = []
    for group in groups:
        look = family.grid(group[0].images[0])
        positions, after = family.positions(group[0].prompt_ids, pad_id, [look])
        prompts.append(positions)
        for trajectory in group:
            crops = map(family.grid, trajectory.images[1:])
            ids = trajectory.completion_ids
            positions, _ = family.positions(ids, pad_id, crops, after)
            completions.append(positions)
    return torch.cat(prompts + completions, 1)


def row_features(groups) -> list[torch.Tensor]:
    """The features of all images in the order of their pads: those of the prompts come first."""
    looks = [group[0].features[0] for group in groups]
    crops = []
    for group in groups:
        for trajectory in group:
            crops += trajectory.features[1:]
    return looks + crops


def predicting_indices(layout: Layout) -> torch.Tensor:  # (B, T)
    """Where each completion's tokens are predicted: the first one at the end of its prompt, the others at the
    token before."""
    starts = layout.prompts[:, 0]
    lengths = layout.prompts_real.sum(1)
    prompt_ends = starts + lengths - 1  # (S,)
    first = prompt_ends[layout.owner]
    others = layout.completions[:, :-1]
    return torch.cat([first[:, None], others], 1)


def shared_prefix_logprobs(model, groups, temperature: float) -> tuple[torch.Tensor, ...]:
    """Logprobs, entropies and mask (B, T) of the completions, as train.py's `policy_logprobs` has them, each
    prompt computed once for its group. The mask is true for what the policy sampled; all the rest is zero.

    model: after `use_shared_prefix`, perhaps with PEFT and DDP around it. groups: lists of trajectories that
    share a prompt, with the features of their images. B counts their members, T is the longest completion.
    """
    bare = getattr(model, "module", model)  # without DDP
    base = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
    if bare is model:
        return row_logprobs(base, groups, temperature)
    # DDP averages the gradients of its own forward pass alone, which calls the forward of the model that it
    # holds: for this one call that is ours.
    plain = bare.forward
    bare.forward = partial(row_logprobs, base)
    try:
        return model(groups, temperature)
    finally:
        bare.forward = plain


def row_logprobs(model, groups, temperature: float) -> tuple[torch.Tensor, ...]:
    """`shared_prefix_logprobs` of a model without PEFT or DDP around it."""
    device = model.device
    members = [trajectory for group in groups for trajectory in group]
    owner = [number for number, group in enumerate(groups) for _ in group]
    prompts = [group[0].prompt_ids for group in groups]
    completions = [trajectory.completion_ids for trajectory in members]
    prompt_lengths = list(map(len, prompts))
    completion_lengths = list(map(len, completions))

    row = torch.tensor(sum(prompts + completions, []), device=device)  # (N,)
    family = family_of(model)
    pad_id = model.config.image_token_id
    positions = row_positions(family, groups, pad_id)  # (3, N)
    layout = make_layout(prompt_lengths, completion_lengths, owner, device)
    output = model.model.language_model(
        **language_inputs(model, row[None], row_features(groups)),
        position_ids=positions[:, None].to(device),
        layout=layout,
        use_cache=False,
    )
    hidden = output.last_hidden_state[0]  # (N, H)

    sampled = padded([trajectory.sampled for trajectory in members], 0).bool().to(device)  # (B, T)
    before = predicting_indices(layout)[sampled]  # (M,) indices of as many tokens as were sampled
    targets = row[layout.completions[sampled]]
    logprobs, entropies = score_tokens(
        head=model.lm_head,
        hidden=hidden[before],
        targets=targets,
        temperature=temperature,
    )
    blank = torch.zeros(sampled.shape, device=device)
    logprobs = blank.masked_scatter(sampled, logprobs)
    entropies = blank.masked_scatter(sampled, entropies)
    return logprobs, entropies, sampled


def score_tokens(head, hidden, targets, temperature: float) -> tuple[torch.Tensor, ...]:
    """Logprobs and entropies (M,) of targets (M,) after hidden (M, H), a part at a time."""

    def score_part(hidden, targets):
        logprobs = head(hidden).float().div_(temperature).log_softmax(-1)  # (m, V)
        with torch.no_grad():  # the entropy is only watched; its graph would double the memory
            entropies = -logprobs.exp().mul_(logprobs).sum(-1)
        wanted = logprobs.gather(1, targets[:, None])
        return wanted[:, 0], entropies

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
