"""What a step leaves: its line on the screen and in metrics.jsonl, and a group for the page."""

import time

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers.trainer_callback import PrinterCallback

from config import rollout_limits
from evaluation import scores
from rollout import Trajectory, rollout
from runlog import runs
from runlog.health import print_new_troubles
from runlog.render import make_page
from safe.files import append_rows
from safe.signals import REQUEST
from training.base import PatientTrainer

PAGE_EVERY = 60  # seconds between pages, at least ...
PAGE_COST = 50  # ... and at least this many times what the last one took


class LoggedTrainer(PatientTrainer):
    """A trainer that writes the run folder. Its subclass in train.py says what a trajectory is paid (`pay`).

    judge: for answers that rules can't tell, or None. probes: questions that are answered again and again,
    greedily, for the page.
    """

    def __init__(self, *, judge=None, probes=(), **settings):
        super().__init__(**settings)
        self.judge = judge
        self.probes = list(probes)
        self.step_tokens = 0  # sampled tokens of the whole step, all processes
        self.stats = {}  # of the last rollout
        self.gaps = []  # largest |trainer's - sampler's logprob| of each micro-batch
        self.entropies = []  # of each trained token
        self.update_began = time.time()
        self.next_page = 0.0  # when it is due
        self.known_troubles = set()
        self.remove_callback(PrinterCallback)  # `log` prints a line for people

    def note_rollout(self, groups: list[list[Trajectory]], began: float) -> None:
        """Take down what a rollout looked like, and store a group of it for the page now and then."""
        self.gaps = []
        self.stats = scores.step_stats(groups) | {"sec_rollout": time.time() - began}
        if self.config.tool == "off":
            self.stats["tool_rate"] = None  # there was none to call
        tokens = sum(sum(trajectory.sampled) for group in groups for trajectory in group)
        tokens = torch.tensor(float(tokens), device=self.accelerator.device)
        self.step_tokens = self.accelerator.reduce(tokens, "sum").item()
        due = runs.is_shown(self.state.global_step, self.config.show_every)
        if due and self.accelerator.is_main_process:
            self.store_for_page(groups[0])
        self.update_began = time.time()

    def store_for_page(self, group: list[Trajectory]) -> None:
        """Store a group, and the probe questions' answers at this step."""
        step = self.state.global_step + 1
        processor = self.processing_class
        runs.store_group(self.run, step, group, processor.tokenizer)
        if self.probes:
            settings = rollout_limits(self.config) | {"temperature": 0, "tool": self.config.tool}
            answers = rollout(self.model, processor, self.probes, **settings)
            for trajectory in answers:
                trajectory.reward = self.pay(trajectory)
            runs.store_group(self.run, step, answers, processor.tokenizer, probe=True)

    def log(self, logs: dict, start_time=None) -> None:
        """One line per step: on the screen, in metrics.jsonl, and for the tracker of --report_to."""
        if "loss" not in logs:  # the summary at the end of training
            return
        own = dict(self.stats)
        own["entropy"] = scores.mean(self.entropies)
        own["logp_gap"] = max(self.gaps, default=0.0)
        own["asked_to_stop"] = REQUEST.number
        own["unjudged"] = float(self.judge.missed) if self.judge else None
        own["sec_train"] = time.time() - self.update_began
        self.entropies = []
        parts = gather_object([own])
        # Whichever process has heard it, all stop
        REQUEST.number = max(part["asked_to_stop"] for part in parts)
        stop = [self.accelerator.is_main_process and self.write_row(logs, parts)]
        row = self.rows[-1] if self.rows else {}  # of the main process, the only one with a tracker
        known = {key: value for key, value in row.items() if value is not None}
        super().log(logs | known, start_time)
        self.state.log_history.clear()  # metrics.jsonl has it; every checkpoint would hold all of it
        broadcast_object_list(stop)  # all processes stop together, or the others wait for ever
        self.control.should_training_stop |= stop[0]
        self.control.should_save |= stop[0]
        self.check_numbers()

    def write_row(self, logs: dict, parts: list[dict]) -> bool:
        """Write the step's line, from what each process has seen; returns whether the run should stop."""
        row = {"step": self.state.global_step, "loss": logs["loss"], "grad_norm": logs["grad_norm"]}
        for key in sorted(set().union(*parts)):
            row[key] = scores.mean_of_processes(parts, key)
        row["logp_gap"] = max(part["logp_gap"] for part in parts)
        row |= self.number_stats(logs["grad_norm"])
        row = {key: float(f"{v:.5g}") if isinstance(v, float) else v for key, v in row.items()}
        asked = row.pop("asked_to_stop") > 0
        append_rows(self.run / "metrics.jsonl", row)
        self.rows.append(row)
        print(runs.step_text(row, self.args.max_steps, self.rows), flush=True)
        if time.time() > self.next_page:
            began = time.time()
            make_page(self.run, draw=self.next_page > 0)  # the first one at once
            cost = time.time() - began
            self.next_page = time.time() + max(PAGE_EVERY, PAGE_COST * cost)
        guard = self.config.guard
        is_new = guard != "off" and print_new_troubles(self.rows, self.known_troubles)
        return asked or (is_new and guard == "stop")

    def _save(self, output_dir=None, state_dict=None) -> None:
        """A checkpoint holds the adapter alone: it names its base, whose processor serves."""
        self.model.save_pretrained(output_dir, save_embedding_layers=False)

    def create_model_card(self, *args, **kwargs) -> None:
        """TRL would write one into the run folder at every checkpoint."""
