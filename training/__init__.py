"""Around the step of train.py, what TRL and a night need.

settle.py     the flags, settled and checked
run.py        a whole run: folder, scores before, training, scores after
base.py       the trainer under the trainer: memory, NaN, checkpoints
log.py        metrics.jsonl, the line on the screen, groups for the page
seeds.py      several seeds, one after the other
shutdown.py   how a run ends that can't go on
"""
