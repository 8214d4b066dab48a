"""A headless Chromium, driven over its own pipe: pages at any width, in the light or the dark, with what they
asked for and what went wrong."""

import base64
import io
import json
import os
import select
import shutil
import subprocess

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
PATIENCE = 60  # s


class Browser:
    """One process for many pages. Messages are JSON, each ended by a zero byte (--remote-debugging-pipe)."""

    def __init__(self, profile):
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--remote-debugging-pipe", f"--user-data-dir={profile}"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND"]
        # It reads from descriptor 3 and writes to 4.
        line = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        self.process = subprocess.Popen(
            ["bash", "-c", line, "bash", *command],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        self.inbox = read_here
        self.outbox = write_here
        self.unread = b""
        self.number = 0
        self.session = None
        self.events = []

    def close(self):
        self.session = None
        self.send("Browser.close")
        self.process.wait(20)

    def read(self) -> dict:
        """The next message: an answer, or an event."""
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.inbox], [], [], PATIENCE)
            assert ready, "Chromium is silent"
            self.unread += os.read(self.inbox, 1 << 20)
        text, _, self.unread = self.unread.partition(b"\0")
        return json.loads(text)

    def send(self, method: str, **parameters) -> dict:
        """Ask for something and wait for the answer; what happens meanwhile is kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.outbox, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page, width: int, dark: bool) -> None:
        """Show a file in a fresh tab of this width (a narrow one is a phone's)."""
        self.session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.events = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def ask(self, script: str):
        """The value of an expression in the page; of a promise, what it comes to."""
        options = {"returnByValue": True, "awaitPromise": True}
        answer = self.send("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def image(self) -> Image.Image:
        """The whole page."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        options = {"clip": size | {"scale": 1}, "captureBeyondViewport": True}
        shot = self.send("Page.captureScreenshot", **options)
        return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")

    def requests(self) -> list[str]:
        """What the page asked for, other than itself and what it holds."""
        sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [each["request"]["url"] for each in sent if each["type"] != "Document"]
        return [url for url in urls if not url.startswith("data:")]

    def problems(self) -> list[str]:
        """Errors and warnings of its console, refusals of its policy, and exceptions."""
        loud = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in loud]
