"""A judge for answers that rules can't tell: any OpenAI-compatible endpoint, text only, never needed."""

import hashlib
import json
import os
import threading
import time
from pathlib import Path
from urllib.request import Request, urlopen

PROMPT = """Question: {question}
Reference answer: {gold}
Answer to check: {prediction}

Does the answer to check mean the same as the reference answer, as an answer to this question? A near miss is
wrong. Reply with one word, yes or no."""


class Judge:
    """judge(question, gold, prediction) -> bool. Verdicts are kept in a file; if the endpoint goes down the
    rules stand alone, and that is said once."""

    def __init__(
        self, url: str, cache: Path, model: str = "", tries: int = 3, timeout: float = 30.0
    ):
        self.url = url
        self.cache = cache
        self.model = model
        self.tries = tries
        self.timeout = timeout
        self.lock = threading.Lock()
        self.down = False
        self.client = None
        rows = cache.read_text().splitlines() if cache.exists() else []
        self.known = dict(json.loads(row) for row in rows if row.endswith("]"))

    def __call__(self, question: str, gold: str, prediction: str) -> bool:
        prompt = PROMPT.format(
            question=question[:4000], gold=gold[:1000], prediction=prediction[:1000]
        )
        key = hashlib.sha256(prompt.encode()).hexdigest()
        if key not in self.known and not self.down:
            verdict = self.ask(prompt)
            if verdict is None:
                return False
            with self.lock:
                self.known[key] = verdict
                with self.cache.open("a") as file:
                    file.write(json.dumps([key, verdict]) + "\n")
        return self.known.get(key, False)

    def first_model(self) -> str:
        """The model that the endpoint serves: many refuse a request that names none."""
        try:
            headers = {"Authorization": f"Bearer {os.environ.get('JUDGE_KEY', 'none')}"}
            request = Request(f"{self.url.rstrip('/')}/models", headers=headers)
            with urlopen(request, timeout=self.timeout) as reply:
                return json.load(reply)["data"][0]["id"]
        except Exception:  # it has no such list, or can't be reached, which `ask` will find out
            return ""

    def ask(self, prompt: str) -> bool | None:
        """One verdict, retried with growing pauses; None if the judge can't be reached."""
        from huggingface_hub import InferenceClient

        with self.lock:
            if self.client is None:
                self.model = self.model or self.first_model()
                # without a key of its own it would be sent the user's token for the Hub
                key = os.environ.get("JUDGE_KEY", "none")
                self.client = InferenceClient(
                    base_url=self.url, api_key=key, timeout=self.timeout
                )
        for attempt in range(self.tries):
            try:
                reply = self.client.chat_completion(
                    [{"role": "user", "content": prompt}],
                    model=self.model,
                    max_tokens=5,
                    temperature=0.0,
                )
                return reply.choices[0].message.content.strip().lower().startswith("yes")
            except (
                Exception
            ) as error:  # refused, timed out, malformed: all the same to the training
                problem = error
                time.sleep(0.5 * 2**attempt if attempt + 1 < self.tries else 0)
        with self.lock:
            if not self.down:
                self.down = True
                kind = type(problem).__name__
                print(
                    f"the judge at {self.url} can't be reached ({kind}); rules alone decide",
                    flush=True,
                )
        return None
