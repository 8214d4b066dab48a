"""A run's folder, and the page that shows it.

runs.py              the folder: what is in it, what is stored and how, the step's line on the screen
health.py            troubles that the last steps show, each with its remedy
curves.py            curves.png, and the small curves of the page
summary.py           a run's result in one sentence
box_plot.py          where the model's boxes lay around their target: early, middle, late
compare.py           several runs in one table; runs that differ in their seed alone share a row
tables.py            rows of cells as a text or Markdown table
render.py            report.html: all of this on one page that opens anywhere
page/                the page's template, style and script
print_trajectory.py  one trajectory as text, token by token, for rollout.py
"""
