"""The same as in rollout.py and train.py, only faster. To be skipped at first reading.

    slots.py    the rollout with a cache slot for each trajectory
    lanes.py    a tiny model's rollout in several processes
    packed.py   the update's forward pass with every prompt computed once
    lora.py     LoRA folded into the weights while sampling
    graph.py    a decode step as a CUDA graph

Tests hold each to the plain way.
"""
