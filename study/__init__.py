"""The study: the paper's claims on the toy, each with runs that could refute it; `python -m study`.

arms      the runs, and what each is asked afterwards
bases     other bases that RL could start from
runs      does the runs, asks the questions, and stores every answer in docs/study.jsonl
stored    the stored answers as tables of seeds by questions
verdicts  what was measured for each claim, and its verdict, by the table in claims.toml
figures   the figures of the page
page      docs/study.md
seeds     one table of several runs of train.py, seeds side by side
readme    the figures of README.md and docs/results.md
"""
