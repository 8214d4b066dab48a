"""One hand at a time on a folder: a lock for the life of the process, which a killed one leaves open."""

import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from safe.files import fail, write_whole

HELD = {}  # folders -> their locks: one is given up when nothing refers to it


def hold(folder: Path) -> None:
    """Lock a folder, or end the script with a line that says who holds it."""
    place = folder.resolve()
    if place in HELD:
        return
    lock = FileLock(folder / ".lock", blocking=False)
    holder = folder / ".holder"  # a lock's own file is emptied by whoever tries to take it
    try:
        lock.acquire()
    except Timeout:
        known = holder.read_text(errors="replace") if holder.exists() else "another process"
        fail(f"{folder} is in use by {known}")
    began = time.strftime("%Y-%m-%d %H:%M")
    write_whole(holder, f"process {os.getpid()} on {socket.gethostname()}, since {began}")
    HELD[place] = lock
