"""A headless Chromium that shows pages and answers questions about them, over its own pipe: no driver, no network."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PATH = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
"""Where a browser is; None: there is none, and what needs one is skipped."""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage",
)  # fmt: skip
PATIENCE = 300.0
"""Seconds to wait for an answer."""


class Browser:
    """One page of a browser that runs until :meth:`close`."""

    def __init__(self, profile: Path) -> None:
        assert PATH is not None
        (self._to_read, to_write), (from_read, self._from_write) = os.pipe(), os.pipe()
        os.set_inheritable(from_read, True)
        os.set_inheritable(to_write, True)
        pipes = f'exec 3<&{from_read} 4>&{to_write}; exec "$0" "$@"'  # the browser reads 3 and writes 4
        command = ["bash", "-c", pipes, PATH, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            command, pass_fds=(from_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(from_read)
        os.close(to_write)
        self._left, self._count, self._session = b"", 0, ""
        self.messages: list[str] = []
        """What pages wrote on the console, and their errors."""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        os.close(self._from_write)
        self._process.terminate()
        self._process.wait(PATIENCE)
        os.close(self._to_read)

    def open(self, page: Path, width: int, height: int = 900, media: str = "screen", scheme: str = "light") -> None:
        """Show a page in a window of this size, on a medium ("screen", "print") in a scheme ("light", "dark")."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._ask("Emulation.setEmulatedMedia", media=media, features=features)
        self._ask("Page.navigate", url=page.as_uri())
        ended = time.monotonic() + PATIENCE
        while self.evaluate("document.readyState") != "complete" or self.evaluate("location.href") == "about:blank":
            assert time.monotonic() < ended, f"{page} does not load"

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page; of a promise, what it promised."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, top: float, width: float, height: float) -> bytes:
        """Return a part of the page as PNG."""
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        return base64.b64decode(self._ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"])

    def printed(self) -> bytes:
        """Return the page as PDF on A4."""
        self._ask("Emulation.setEmulatedMedia", media="print")
        paper = {"paperWidth": 8.27, "paperHeight": 11.69, "displayHeaderFooter": False}
        return base64.b64decode(self._ask("Page.printToPDF", **paper)["data"])

    def _ask(self, method: str, **parameters: Any) -> Mapping[str, Any]:
        self._count += 1
        question = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            question["sessionId"] = self._session
        os.write(self._from_write, json.dumps(question).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._count:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message)

    def _note(self, message: Mapping[str, Any]) -> None:
        if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.messages.append(json.dumps(message["params"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._to_read], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            part = os.read(self._to_read, 1 << 20)
            assert part, "the browser has ended"
            self._left += part
        first, self._left = self._left.split(b"\0", 1)
        return json.loads(first)


def violations(browser: Browser, axe: str, rules: Sequence[str] = ()) -> list[str]:
    """Run axe-core (its source) on the page that is shown; return what it finds wrong, a line each."""
    browser.evaluate(f"{axe};0")
    only = f", {{runOnly: {json.dumps(list(rules))}}}" if rules else ""
    found = browser.evaluate(f"axe.run(document{only}).then(r => r.violations)")
    return [f"{v['id']}: {n['target']} {n['html'][:120]}" for v in found for n in v["nodes"]]
