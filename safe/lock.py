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
    # A soft lock, a mere file, would outlive a process that is killed.
    lock = FileLock(folder / ".lock", blocking=False, fallback_to_soft=False)
    holder = folder / ".holder"  # the library does not say who holds a lock
    began = time.strftime("%Y-%m-%d %H:%M")
    try:
        lock.acquire()
        write_whole(holder, f"process {os.getpid()} on {socket.gethostname()}, since {began}")
    except Timeout:
        known = holder.read_text(errors="replace") if holder.exists() else "another process"
        fail(f"{folder} is in use by {known}")
    except OSError as error:  # some network file systems have no locks
        fail(f"can't lock {folder}: {error.strerror}; give an --out on a disk of this machine")
    HELD[place] = lock
