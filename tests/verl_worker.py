"""verl 0.9.1's own reader, worker, padding, positions and reward around our agent loop. Of verl, only the
server of the weights is replaced, by plain forward passes. In verl's environment, from test_verl.py:

    python tests/verl_worker.py MODEL PARQUET TEMPERATURE plain|ray   # MODEL: a whole checkpoint in a folder
    python tests/verl_worker.py recipe lora|paper MODEL PARQUET

The last line that it prints is JSON: what each trajectory became, and what verl would train on.
"""

import asyncio
import json
import os
import sys
from copy import deepcopy
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).parent.parent
PATHS = f"{ROOT}:{ROOT / 'tests'}"
sys.path.insert(0, str(ROOT))

import ray
import torch

# torchvision from PyPI is built for CUDA's torch: on a CPU's, the operators that its import names are missing
operators = torch.library.Library("torchvision", "FRAGMENT")
if not hasattr(torch.ops.torchvision, "nms"):
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import verl
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoModelForImageTextToText
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.protocol import DataProto
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils import hf_processor, hf_tokenizer
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.utils import qwen2_5_vl_dedup_image_tokens
from verl_limits import LIMITS

LENGTH = 512  # of prompt and response, in tokens
ROLLOUT = "actor_rollout_ref.rollout"


def settings(model: str, rows: str, temperature: float):
    """verl's config for the tiny model."""
    (record, _) = yaml.safe_load((ROOT / "roads/verl/zoom_loop.yaml").read_text())
    loop = Path(rows).with_name("zoom_loop.yaml")
    loop.write_text(yaml.safe_dump([record | {"limits": LIMITS}]))
    flags = [
        f"actor_rollout_ref.model.path={model}",
        f"{ROLLOUT}.name=vllm",
        f"{ROLLOUT}.multi_turn.enable=True",
        f"{ROLLOUT}.agent.default_agent_loop=zoom",
        f"{ROLLOUT}.agent.agent_loop_config_path={loop}",
        f"{ROLLOUT}.calculate_log_probs=True",
        f"{ROLLOUT}.temperature={temperature}",
        f"{ROLLOUT}.prompt_length={LENGTH}",
        f"{ROLLOUT}.response_length={LENGTH}",
        "data.max_prompt_length=4096",  # verl counts the whole image's tokens here, not the first look's
        f"data.max_response_length={LENGTH}",
        f"data.train_files={rows}",
        "data.return_raw_chat=True",
        "data.filter_overlong_prompts=True",  # opens each image: a row that it can't read is gone
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
    ]
    folder = Path(verl.__file__).parent / "trainer/config"
    with initialize_config_dir(str(folder), version_base=None):
        return compose("ppo_trainer", overrides=flags)


class Worker(AgentLoopWorker):
    """verl's, where a Ray process finds the names above, too."""


class Server:
    """verl's `generate`: token ids and images in, token ids and logprobs out. No cache: slow and sure."""

    def __init__(self, model, processor):
        self.model = model
        self.processor = processor
        self.random = torch.Generator().manual_seed(0)

    def read_prompt(self, ids: list[int], images) -> dict:
        """As verl's vLLM server does: each image's tokens become one, and are counted anew from the image."""
        pads = self.processor.image_token_id
        features = self.processor.image_processor(images=images, return_tensors="pt")
        counts = iter((features["image_grid_thw"].prod(1) // 4).tolist())
        collapsed = qwen2_5_vl_dedup_image_tokens(ids, self.processor)
        assert collapsed.count(pads) == len(images)
        counted = [[token] * next(counts) if token == pads else [token] for token in collapsed]
        assert sum(counted, []) == list(ids), "the server would see other image tokens than the trainer"
        return features

    async def generate(self, request_id, *, prompt_ids, sampling_params, image_data=None, **more):
        features = self.read_prompt(prompt_ids, image_data)
        temperature = sampling_params["temperature"]
        written, logprobs = [], []
        while len(written) < sampling_params["max_tokens"]:
            ids = torch.tensor([prompt_ids + written])  # (1, T)
            kinds = (ids == self.processor.image_token_id).int()
            with torch.no_grad():
                logits = self.model(
                    input_ids=ids, mm_token_type_ids=kinds, use_cache=False, **features
                ).logits
            scores = (logits[0, -1].float() / (temperature or 1)).log_softmax(-1)  # (vocabulary,)
            allowed = scores.clone()
            for token, bias in sampling_params["logit_bias"].items():
                allowed[token] += bias
            if temperature:
                token = int(torch.multinomial(allowed.exp(), 1, generator=self.random))
            else:
                token = int(allowed.argmax())
            written.append(token)
            logprobs.append(scores[token].item())
            if token in sampling_params["stop_token_ids"]:
                break
        return TokenOutput(token_ids=written, log_probs=logprobs, stop_reason="completed")


def work(config, rows: str, where: str) -> dict:
    """Each row twice through verl's worker; what came of it, and the largest gap between its logprobs and an
    uncached forward pass over verl's own training batch."""
    torch.set_num_threads(1)
    folder = config.actor_rollout_ref.model.path
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = hf_processor(folder)
    data = RLHFDataset([rows], hf_tokenizer(folder), config.data, processor=processor)
    read = [data[number] for number in range(len(data))]
    batch = DataProto.from_single_dict(collate_fn(read + read))
    batch.meta_info = {"global_steps": 1, "validate": False}
    server = Server(model, processor)
    if where == "plain":
        done = asyncio.run(Worker(config, server).generate_sequences(batch))
    else:
        ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": PATHS}})
        done = ray.get(ray.remote(Worker).remote(config, server).generate_sequences.remote(batch))
        ray.shutdown()
    extras = done.non_tensor_batch
    trajectories = []
    for number, ids in enumerate(done.batch["responses"]):
        used = done.batch["attention_mask"][number, LENGTH:].bool()
        trajectories.append(
            {
                "ids": ids[used].tolist(),
                "sampled": done.batch["response_mask"][number][used].tolist(),
                "reward": done.batch["rm_scores"][number].sum().item(),
                "crops": int(extras["crops"][number]),
                "correct": float(extras["acc"][number]),
            }
        )
    gaps = [gap_of(model, processor, done, number) for number in range(len(trajectories))]
    return {"rows": len(data), "trajectories": trajectories, "gap": max(gaps)}


def gap_of(model, processor, done, number: int) -> float:
    """Of one trajectory: |the trainer's - the sampler's logprob|, the largest over the tokens of the loss."""
    batch = {name: values[number : number + 1] for name, values in done.batch.items()}
    images = done.non_tensor_batch["multi_modal_inputs"][number]
    ids = batch["input_ids"]  # (1, T)
    assert (ids == processor.image_token_id).sum() == images["image_grid_thw"].prod(1).sum() // 4
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"].transpose(0, 1),  # (4, 1, T): text's, then time, row, column
            pixel_values=images["pixel_values"],
            image_grid_thw=images["image_grid_thw"],
            use_cache=False,
        ).logits[0].float()  # fmt: skip
    logprobs = logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[-LENGTH:, 0]
    in_loss = batch["response_mask"][0].bool()
    return (logprobs - batch["rollout_log_probs"][0])[in_loss].abs().max().item()


def check_recipe(name: str, model: str, rows: str) -> dict:
    """Some settings of one of our recipes, once verl has checked the recipe and made its data sets."""
    flags = [
        f"data.train_files={rows}",
        f"actor_rollout_ref.model.path={model}",
        "trainer.default_local_dir=kept",
    ]
    with initialize_config_dir(str(ROOT / "roads/verl"), version_base=None):
        config = compose(name, overrides=flags)
    OmegaConf.resolve(config)
    with_lora = deepcopy(config)
    config.actor_rollout_ref.model.lora_rank = 0  # what is checked of a LoRA needs an installed vLLM
    validate_config(config, use_reference_policy=False, use_critic=False)
    config = with_lora
    for part in (config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.algorithm):
        omega_conf_to_dataclass(part)
    tools = hf_tokenizer(model), hf_processor(model)
    sets = [
        create_rl_dataset(config.data.train_files, config.data, *tools),
        create_rl_dataset(config.data.val_files, config.data, *tools, False, config.data.val_max_samples),
    ]
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    return {
        "cards": config.trainer.nnodes * config.trainer.n_gpus_per_node,
        "trajectories": config.data.train_batch_size * rollout.n,
        "lengths": [rollout.prompt_length, rollout.response_length],
        "lora": config.actor_rollout_ref.model.lora_rank,
        "lr": actor.optim.lr,
        "kl": [actor.use_kl_loss, config.algorithm.use_kl_in_reward, actor.entropy_coeff],
        "rows": [len(each) for each in sets],
        "saves": config.trainer.save_freq,
        "loop": rollout.agent.default_agent_loop,
    }


def main(*given: str) -> None:
    if given[0] == "recipe":
        found = check_recipe(*given[1:])
    else:
        model, rows, temperature, where = given
        found = work(settings(model, rows, float(temperature)), rows, where)
    print(json.dumps(found))


if __name__ == "__main__":
    import verl_worker  # by its name: Ray's processes import it anew

    verl_worker.main(*sys.argv[1:])
