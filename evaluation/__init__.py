"""Answers -> records -> scores, for eval.py and for the held-out questions of train.py.

settle.py       the flags of eval.py: checked, and settled once
scores.py       records of answers, the scores made from them, a training step's statistics
stats.py        intervals and tests of these scores
validation.py   the held-out questions of a run, before and after training
ask.py          questions about an image of the user's
"""
