"""What keeps a night's run; imports nothing of ours.

files.py         .json written whole, .jsonl appended, errors in one line
checkpoints.py   checkpoints that are whole
memory.py        what says that memory ran out
lock.py          one process at a time on a folder
signals.py       Ctrl-C and SIGTERM; the end of a parent
"""
