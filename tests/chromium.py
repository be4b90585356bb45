"""A real browser for tests: headless Chromium through its debugging pipe, with clicks that a page takes for a hand's.

Needs nothing but the standard library: https://chromedevtools.github.io/devtools-protocol, JSON between NUL bytes.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next((path for path in map(shutil.which, NAMES) if path), None)
FLAGS = ("--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--no-first-run",
         "--window-size=1240,900")  # fmt: skip
# The browser speaks on its file descriptors 3 and 4.
LAUNCH = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])"""
SECONDS = 180.0  # for any answer, on a machine that is busy with other tests


class Page:
    """The one page of a browser."""

    def __init__(self, to_browser: int, from_browser: int):
        self._out, self._in, self._buffer = to_browser, from_browser, b""
        self._count, self._session = 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, path: Path) -> None:
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.until("document.documentElement?.dataset.drawn")  # there is no element while one page follows another

    def until(self, expression: str) -> Any:
        """Waits until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.02)
        return value

    def frame(self) -> None:
        """Waits until the page has drawn what it was told to."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def mouse(self, kind: str, x: float, y: float, *, down: bool = False, clicks: int = 0) -> None:
        button = "left" if down or clicks else "none"
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=int(down), clickCount=clicks)

    def click(self, x: float, y: float, times: int = 1) -> None:
        for clicks in range(1, times + 1):
            self.mouse("mousePressed", x, y, down=True, clicks=clicks)
            self.mouse("mouseReleased", x, y, clicks=clicks)
        self.frame()

    def drag(self, begin: tuple[float, float], end: tuple[float, float]) -> None:
        self.mouse("mousePressed", *begin, down=True, clicks=1)
        for share in (0.3, 0.7, 1.0):
            self.mouse("mouseMoved", *(a + share * (b - a) for a, b in zip(begin, end)), down=True)
        self.mouse("mouseReleased", *end, clicks=1)
        self.frame()

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=_KEYS[name])
        self.frame()

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element, scrolled into view."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        bounds = self.evaluate(f"{found}.getBoundingClientRect().toJSON()")
        return bounds["x"], bounds["y"], bounds["width"], bounds["height"]

    def processor_seconds(self) -> float:
        """That all processes of the browser have used: unlike the clock, the same on a busy machine."""
        session, self._session = self._session, ""
        try:
            processes = self.call("SystemInfo.getProcessInfo")["processInfo"]
        finally:
            self._session = session
        return sum(process["cpuTime"] for process in processes)

    def colours(self, scheme: str) -> None:
        """ "light" or "dark"."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.frame()

    def screenshot(self, path: Path) -> None:
        """The whole page."""
        height = self.evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": 1240, "height": height, "scale": 1}
        answer = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium did not answer within {SECONDS:.0f} s"
            part = os.read(self._in, 1 << 16)
            assert part, "Chromium ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


_KEYS = {"End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A browser with its profile in `folder`."""
    assert PROGRAM is not None
    theirs_in, to_browser = os.pipe()
    from_browser, theirs_out = os.pipe()
    # Above 3 and 4, which the launcher replaces.
    passed = [os.dup(fd) for fd in (theirs_in, theirs_out)]
    command = [sys.executable, "-c", LAUNCH, *map(str, passed), PROGRAM, *FLAGS, f"--user-data-dir={folder}"]
    process = subprocess.Popen(command, pass_fds=passed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for fd in (theirs_in, theirs_out, *passed):
        os.close(fd)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(to_browser)
        os.close(from_browser)  # the browser ends when its pipe does
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
