"""A headless Chromium, driven over its DevTools protocol: what a page logs, asks for, shows and measures."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WHY_NOT = "no chromium is installed: pages are opened in it"


class Browser:
    """One page of a browser."""

    def __init__(self, socket):
        self.socket = socket
        self.numbers = itertools.count(1)
        #: console errors and warnings, exceptions, and what the browser itself complains of
        self.complaints: list[str] = []
        #: addresses that were asked for
        self.requests: list[str] = []
        self.loads = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **arguments):
        """Sends a command and returns its result; events that come before it are noted."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": arguments}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.note(message)

    def note(self, message):
        method, content = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(part.get("value", part)) for part in content["args"]))
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(content["exceptionDetails"])[:500])
        if method == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.complaints.append(content["entry"]["text"])
        if method == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        if method == "Page.loadEventFired":
            self.loads += 1

    def show(self, *, width=1400, height=900, is_dark=False):
        """Sets the size of the window and the colours that the person prefers."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.settle()

    def open(self, address):
        """Opens a page and waits until it is loaded and drawn."""
        n_loads = self.loads
        self.send("Page.navigate", url=address)
        wait_for(lambda: self.evaluate("document.readyState") == "complete" and self.loads > n_loads)
        self.settle()

    def settle(self):
        """Waits for two frames, in which everything that was asked for is drawn."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def evaluate(self, expression):
        """Returns the JSON value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def picture(self, path, *, is_whole=True):
        """Writes a PNG of the page."""
        result = self.send("Page.captureScreenshot", captureBeyondViewport=is_whole)
        if is_whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            result = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(result["data"]))

    def print(self, path):
        """Writes a PDF of the page."""
        result = self.send("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        Path(path).write_bytes(base64.b64decode(result["data"]))


@contextmanager
def open_browser(profile):
    """Starts Chromium with an empty profile in a folder, and opens its page."""
    process = subprocess.Popen(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port = wait_for(lambda: read_port(Path(profile) / "DevToolsActivePort"))
        (page, *_) = wait_for(lambda: list_pages(port))
        with connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Browser(socket)
    finally:
        process.terminate()
        process.wait(timeout=20)


def read_port(path):
    lines = path.read_text().splitlines() if path.exists() else []
    return int(lines[0]) if lines else None


def list_pages(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
        return [target for target in json.load(answer) if target["type"] == "page"]


def wait_for(holds, *, seconds=60):
    """Calls until the answer is true, and returns it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.02)
    raise AssertionError(f"did not hold within {seconds} s")
