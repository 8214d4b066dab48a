"""One hand at a time on a folder: a lock for the life of the process, which a killed one leaves open."""

import os
import socket
import sys
import time
from pathlib import Path

from safe.files import fail

HELD = {}  # folders -> open files: a lock ends with its file


def hold(folder: Path) -> None:
    """Lock a folder, or end the script with a line that says who holds it."""
    place = folder.resolve()
    if place in HELD or sys.platform == "win32":  # no flock there
        return
    import fcntl

    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
        fail(f"{folder} is in use by {holder}")
    began = time.strftime("%Y-%m-%d %H:%M")
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}, since {began}\n".encode())
    HELD[place] = file
