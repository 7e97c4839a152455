"""Serves the page of tools/export/browser with an exported folder and packages from npm on a local server."""

import json
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from browser import CHROMIUM

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tools/export/browser"
PLACE = re.compile(r"https://cdn\.jsdelivr\.net/npm/((?:@\w+/)?[\w-]+)@([\d.]+)/")  # of a package that the page imports


@cache
def packages():
    """Returns the folder node_modules with the pinned packages of the page, cached in .cache/, or the reason why it is
    missing."""
    named = [f"{name}@{version}" for name, version in PLACE.findall((SOURCE / "index.html").read_text("utf-8"))]
    folder = ROOT / ".cache/npm" / "+".join(name.replace("/", "-") for name in named)
    if CHROMIUM is None or not shutil.which("npm"):
        return "needs chromium and npm"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = [
            "npm",
            "install",
            "--prefix",
            folder,
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--fetch-retries",
            "0",
        ]
        done = subprocess.run([*words, "--fetch-timeout", "30000", *named], capture_output=True, text=True, cwd=folder)
        if done.returncode:
            return f"npm cannot install {' and '.join(named)}"
        (folder / "complete").touch()
    return folder / "node_modules"


class Files(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(place, modules, **exports):
    """Yields the URL of a folder `place` with the page, packages from `modules`, and exported folders."""
    for path in SOURCE.iterdir():
        text = path.read_text(encoding="utf-8")
        (place / path.name).write_text(PLACE.sub(r"./modules/\1/", text), encoding="utf-8")
    (place / "modules").symlink_to(modules)
    for name, folder in exports.items():
        (place / name).symlink_to(Path(folder).resolve())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(place)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def label(name, texts, batch_size=32):
    """Returns a JavaScript expression for the predictions of the exported folder `name`, to run in a Browser that has
    the page open. The model is loaded once."""
    script = f"import('./predictor.js').then((module) => window.{name} ??= module.load('{name}'))"
    return f"{script}.then((model) => model.label({json.dumps(texts)}, {batch_size}))"
