"""A tiny model's rollout in several worker processes.

The operations of a tiny model are too small to be divided among threads, but its samples can be divided: each
process gets one thread and some of the samples. Each worker draws from a seed that comes from this process's
generator, so that a seeded rollout is repeatable for a given number of processes.
"""

import multiprocessing
import signal
import sys

import torch

from safe.signals import die_with_parent

MOST_WEIGHTS = 10**8  # of a model that workers make faster


def count_workers(wanted: int, model, samples: list, slots: int) -> int:
    """How many processes to use: no more than samples, and one alone on a GPU, for a big model, off Linux.

    wanted: at most. slots: groups that the cache holds at once.
    """
    tiny = model.device.type == "cpu" and model.num_parameters() < MOST_WEIGHTS
    return max(1, min(wanted, len(samples), slots)) if tiny and sys.platform == "linux" else 1


def run_in_workers(engine, samples: list, openings: list[list[int]], workers: int) -> list:
    """`engine.run(samples, openings)`, divided among this process and its forks; trajectories in order."""
    size = max(1, -(-len(samples) // workers))
    parts = [slice(start, start + size) for start in range(0, len(samples), size)]
    if len(parts) < 2:
        return engine.run(samples, openings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    children = []
    try:
        for part in parts[1:]:
            children.append(start_worker(engine, samples[part], openings[part]))
        trajectories = engine.run(samples[parts[0]], openings[parts[0]])
        for _, receiver in children:
            trajectories = trajectories + receive(receiver)
    finally:
        torch.set_num_threads(threads)
        for child, _ in children:
            child.kill()
            child.join()
    # Workers send no samples; their trajectories stand in the samples' order, as many for each.
    for i, trajectory in enumerate(trajectories):
        trajectory.sample = samples[i * len(samples) // len(trajectories)]
        trajectory.features = [torch.as_tensor(array) for array in trajectory.features]
    bar = engine.env.bar
    if bar is not None:
        bar.update(len(trajectories) - bar.n)
    return trajectories


def start_worker(engine, samples: list, openings: list[list[int]]):
    """Fork a worker; returns the process and the end of the pipe that its trajectories come from."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    seed = torch.randint(2**62, ()).item()
    child = fork.Process(target=worker, args=(engine, samples, openings, seed, sender))
    child.start()
    # A later fork would inherit this end, and `recv` would never see that the worker has closed its own.
    sender.close()
    return child, receiver


def worker(engine, samples, openings, seed: int, pipe) -> None:
    """In a fork: send the trajectories through the pipe, or the exception."""
    die_with_parent()
    # A terminal sends Ctrl-C to all, a batch system SIGTERM: the parent may want to finish its step.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.manual_seed(seed)
    engine.env.bar = None  # the parent's
    try:
        result = engine.run(samples, openings)
        # By identity: the members of a group share the features of their first look.
        arrays = {id(feature): feature.numpy() for t in result for feature in t.features}
        for trajectory in result:
            trajectory.sample = None  # its image would take longer to send than everything else
            trajectory.features = [arrays[id(feature)] for feature in trajectory.features]
    except BaseException as error:  # also Ctrl-C: the parent reports it
        result = error
    pipe.send(result)


def receive(pipe) -> list:
    """A worker's trajectories. Raises what the worker raised, and MemoryError if it was killed."""
    try:
        result = pipe.recv()
    except (EOFError, OSError) as error:
        raise MemoryError("a process of the rollout was killed: too little memory?") from error
    if isinstance(result, BaseException):
        raise result
    return result
