"""A headless Chromium that tests can click in, through chromedriver's own protocol (W3C WebDriver): JSON over HTTP."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--window-size=1400,900")  # fmt: skip
MISSING = "needs Chromium and its driver (Debian: apt-get install chromium chromium-driver)"


def found() -> tuple[str, str] | None:
    """The programs, if they are here."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


class Page:
    def __init__(self, session: str) -> None:
        self.session = session

    def call(self, path: str, **body: Any) -> Any:
        return ask(f"{self.session}/{path}", body)

    def open(self, path: Path) -> None:
        self.call("url", url=path.resolve().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """What the script, a function's body, returns."""
        return self.call("execute/sync", script=script, args=list(arguments))

    def click(self, css: str) -> None:
        """A real click, at the place where the element is drawn."""
        (element,) = self.call("element", using="css selector", value=css).values()
        self.call(f"element/{element}/click")

    def type(self, css: str, text: str) -> None:
        (element,) = self.call("element", using="css selector", value=css).values()
        self.call(f"element/{element}/value", text=text)

    def texts(self, css: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map(node => node.textContent)", css)

    def errors(self) -> list[str]:
        """What the browser itself complained about, such as a script that was not let run."""
        return [entry["message"] for entry in self.call("se/log", type="browser") if entry["level"] == "SEVERE"]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(ask(f"{self.session}/screenshot")))


def ask(url: str, body: Any = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from None


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """`profile`: a new folder. Both programs end with the block."""
    chromium, driver = found() or ("", "")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        server = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                ask(f"{server}/status")
                break
            except OSError:
                time.sleep(0.1)
        options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        session = f"{server}/session/{ask(f'{server}/session', {'capabilities': wanted})['sessionId']}"
        try:
            yield Page(session)
        finally:
            ask(session, method="DELETE")
    finally:
        process.terminate()
        process.wait(10)
