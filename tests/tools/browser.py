"""Controls headless Chromium through its DevTools pipe (https://chromedevtools.github.io).

Needs only the program (Debian's package `chromium`), no driver or library.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """A browser: `with Browser(folder) as browser: browser.open(path)`. folder: contains the profile and all other
    files.

    complaints: console messages, exceptions and log entries. requests: requested addresses, without the page's file.
    """

    def __init__(self, folder, width=1200, height=900):
        self.complaints, self.requests, self.number, self.buffer, self.waiting = [], [], 0, b"", []
        pipes = [os.pipe(), os.pipe()]
        self.write, self.read = pipes[0][1], pipes[1][0]
        there = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 50) for fd in (pipes[0][0], pipes[1][1])]
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={folder}", f"--window-size={width},{height}"]
        self.process = subprocess.Popen(
            [CHROMIUM, *flags, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,  # it reads commands from descriptor 3 and writes responses to 4
            preexec_fn=lambda: [os.dup2(fd, place) for fd, place in zip(there, (3, 4))],
        )
        for fd in (*there, pipes[0][0], pipes[1][1]):
            os.close(fd)
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Sends a command and returns its response. Stores events that arrive in the meantime."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next_message()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.hear(answer)

    def next_message(self, seconds=60):
        end = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self.read, 1 << 20)
            assert part, "the browser has gone"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def hear(self, event):
        method, params = event.get("method"), event.get("params", {})
        self.waiting.append(method)
        if method == "Runtime.consoleAPICalled":
            self.complaints.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "data:")):
            self.requests.append(params["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.complaints.append(f"dialog: {params['message']}")
            self.call("Page.handleJavaScriptDialog", accept=True)

    def open(self, path):
        """Opens a file and waits until it is loaded."""
        self.waiting = []
        self.call("Page.navigate", url=path.resolve().as_uri() if hasattr(path, "as_uri") else path)
        while "Page.loadEventFired" not in self.waiting:
            self.hear(self.next_message())

    def run(self, script):
        """Returns the value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def look(self, width=1200, height=900, dark=False, phone=False, media=""):
        """Sets the emulated device and colour theme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media=media, features=scheme)

    def photograph(self, path, whole=False, clip=None):
        options = {"captureBeyondViewport": True} if whole or clip else {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"]}
        if clip:
            options["clip"] = {"scale": 1, **clip}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        os.close(self.read)
        os.close(self.write)
