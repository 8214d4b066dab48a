"""What a training run needs, and whether this machine has it.

memory_estimate  GB of each part of a run, before anything is loaded (train.py --plan, doctor.py)
time_estimate    seconds of a step, from a measurement of a few seconds (train.py --plan, doctor.py, bench.py)
device_check     every part of a run, once, on the device at hand (doctor.py --full)
"""
