"""How the model is run, in rollouts and in the update.

families       the facts in which Qwen2.5-VL and Qwen3-VL differ; configs/ has the shapes of the presets
inputs         texts and images -> what the model takes
slots          the fast rollout: continuous batching, each prompt computed once for its group
workers        a tiny model's rollout in several processes
graph          a decoding step as a CUDA graph
shared_prefix  the fast update: each prompt computed once for its group
lora           the LoRA while the model samples, and while it trains
"""
