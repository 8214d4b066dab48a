"""What is correct.

correct.py    `is_correct`: the rules in their order, then a judge
answers.py    what an answer says: an option, a number, yes or no, a formula
formulas.py   formulas, compared in a process of their own
judge.py      an optional endpoint for what rules can't tell
boxes.py      IoU of boxes
"""
