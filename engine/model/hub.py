"""Locates pretrained models: in a local folder, on the Hugging Face hub or one of its mirrors, or on ModelScope.

All names are looked up by `locate`. The libraries retry for more than a minute before they report that a hub does not
respond. So a short request with a timeout of a few seconds is sent first. If the hub responds, the download itself has
no timeout.
"""

import hashlib
import logging
import os
import tempfile
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from urllib.parse import urlsplit

from engine.errors import UserError
from engine.run.command_line import first_line

logger = logging.getLogger("template")
CACHED_WAIT = 3.0  # timeout of the request in seconds, if the model is already in the cache
MIRROR = "set HF_ENDPOINT to a mirror such as https://hf-mirror.com"
HUB_ADVICE = {
    "model": f"{MIRROR}, add --model_hub modelscope, or pass a local folder (HF_HUB_OFFLINE=1 uses only models in the "
    "cache); see docs/download.md",
    "dataset": f"{MIRROR}, or pass a local file or folder; see docs/download.md",
}
COMPLETE = ".complete"  # empty file in a folder of ModelScope's cache: the download was complete
UNUSED = ["*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.tflite", "*.mlmodel", "*.gguf"]  # not for PyTorch


def locate(
    name: str, model_hub: str = "hf", revision: str | None = None, weights: bool = False, download: bool = True
) -> str:
    """Returns the argument of from_pretrained for a model: a folder, or the name itself if the Hugging Face hub
    responds. Raises UserError if the model cannot be found.

    weights: whether weights are needed, or only config and tokenizer. download: if False, checks only that files
    missing from the cache can be downloaded, so that a command fails early.
    """
    if Path(name).is_dir():
        return name
    if name.startswith((".", os.sep, "~")) or Path(name).is_file():
        raise UserError(f"--pretrain_model_path {name}: no such folder")
    if model_hub == "modelscope":
        return from_modelscope(name, download)
    require_settings()
    from huggingface_hub import constants

    folder = cached_folder(name, revision, weights)
    if folder and (constants.HF_HUB_OFFLINE or not download):
        return name
    if constants.HF_HUB_OFFLINE:
        reason = f"is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set"
        return cached_or_raise(name, None, (reason, "unset HF_HUB_OFFLINE, or pass a local folder"))
    problem = refusal(name, CACHED_WAIT if folder else constants.HF_HUB_ETAG_TIMEOUT, revision)
    return cached_or_raise(name, folder, problem) if problem else name


def optional_file(place: str, name: str) -> Path | None:
    """Returns the path of a small file of a model, or None if it does not exist or cannot be downloaded. In offline
    mode, only the cache is searched. place: the output of `locate`"""
    if Path(place).is_dir():
        path = Path(place) / name
        return path if os.path.isfile(path) else None  # Path.is_file raises for a name that is too long
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(place, name))
    except EntryNotFoundError:  # or, in offline mode, not in the cache
        return None
    except Exception as error:  # from huggingface_hub, requests or httpx
        warn(f"{place}: {name} cannot be downloaded ({first_line(error)})")
        return None


def require_settings() -> None:
    """Raises UserError if an environment variable would break the import of huggingface_hub or all its requests."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        parts = urlsplit(address)
        is_address = bool(parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:  # an invalid port or IPv6 address
        is_address = False
    if not is_address:
        raise UserError(f"HF_ENDPOINT={address!r} must be an address such as https://hf-mirror.com, or unset")
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        if not os.environ.get(name, "10").isdecimal():
            raise UserError(f"{name}={os.environ[name]!r} must be a whole number of seconds, or unset")


def cached_or_raise(name: str, folder: Path | None, problem: tuple[str, str]) -> str:
    """Returns the folder of a model in a cache, with a warning. Raises UserError if folder is None. problem: (reason,
    advice)"""
    if folder is None:
        raise UserError(f"--pretrain_model_path {name}: {'; '.join(problem)}")
    warn(f"{name} is loaded from the cache: {problem[0]}")
    return str(folder)


@lru_cache
def warn(text: str) -> None:
    """Logs a warning, unless it has been logged before."""
    logger.warning(text)


def cached_folder(name: str, revision: str | None, weights: bool) -> Path | None:
    """Returns the folder of a model in the cache of the Hugging Face hub, or None."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        with suppress(ValueError):  # not a valid name
            if isinstance(path := try_to_load_from_cache(name, file, revision=revision), str):
                folder = Path(path).parent
                has_weights = any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir())
                return folder if has_weights or not weights else None
    return None


@lru_cache  # called for the tokenizer, the config and the weights
def ask(url: str, seconds: float) -> tuple[int, str]:
    """Sends a HEAD request. Returns (status, X-Error-Code) of the response, or (0, problem) if there is none within
    `seconds`.

    Uses a thread, because a DNS server that does not respond, or a host with several addresses, can exceed the
    request's timeout.
    """
    responses: SimpleQueue[tuple[int, str]] = SimpleQueue()
    Thread(target=lambda: responses.put(head(url, seconds)), daemon=True).start()
    try:
        return responses.get(timeout=seconds)
    except Empty:
        return 0, f"within {seconds:g} s"


def head(url: str, seconds: float) -> tuple[int, str]:
    """Sends the request of `ask` up to three times, with the proxies and certificates of huggingface_hub's session."""
    from huggingface_hub.utils import build_hf_headers, get_session

    problem = ""
    for pause in (0, 0.5, 1):
        time.sleep(pause)
        try:
            response = get_session().head(url, headers=build_hf_headers(), timeout=seconds)
        except Exception as error:  # from requests or httpx, depending on the version of huggingface_hub
            cause: BaseException = error
            while inner := cause.__cause__ or cause.__context__:
                cause = inner
            problem = first_line(cause)
            continue
        if response.status_code < 500 and response.status_code != 407:  # 407: a proxy requires a password
            return response.status_code, response.headers.get("X-Error-Code", "")
        problem = f"HTTP status {response.status_code}"
    return 0, f"({problem})"


def refusal(name: str, seconds: float, revision: str | None = None, kind: str = "model") -> tuple[str, str] | None:
    """Returns (reason, advice) if a model or dataset cannot be loaded from the Hugging Face hub, otherwise None."""
    from huggingface_hub import constants, hf_hub_url

    file, hub = "config.json" if kind == "model" else "README.md", constants.ENDPOINT
    try:
        status, code = ask(hf_hub_url(name, file, repo_type=kind, revision=revision), seconds)
    except ValueError as error:  # not a valid name
        return f"no such folder, and not a valid hub name ({first_line(error)})", "check the name (OWNER/NAME)"
    if not status:
        return f"{hub} does not respond {code}", HUB_ADVICE[kind]
    if code == "GatedRepo" or status == 403:
        return f"{hub} restricts access to this {kind}", "request access on its page, then set HF_TOKEN"
    if status in (401, 404) and code not in ("EntryNotFound", "RevisionNotFound"):
        return f"{hub} has no {kind} with this name", "check the name (OWNER/NAME); if it is private, set HF_TOKEN"
    return None


@lru_cache
def from_modelscope(name: str, download: bool) -> str:
    """Returns the folder of a model in ModelScope's cache. A model is downloaded only once, so a resumed run gets the
    same files. If several processes run on a machine, one downloads and the others wait."""
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        needed = f"--model_hub modelscope needs the package modelscope ({first_line(error)})"
        raise UserError(f"{needed}: pip install modelscope") from None
    from filelock import FileLock

    lock = hashlib.sha256(f"{Path.home()} {name}".encode()).hexdigest()[:20]
    with FileLock(Path(tempfile.gettempdir()) / f"modelscope-{lock}.lock"):
        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except Exception:  # not in the cache; the type of the error depends on the version
            folder = None
        if folder and ((folder / COMPLETE).exists() or not download):
            return str(folder)
        server = os.environ.get("MODELSCOPE_ENDPOINT")
        server = server or f"https://{os.environ.get('MODELSCOPE_DOMAIN') or 'www.modelscope.cn'}"
        status, problem = ask(server, CACHED_WAIT if folder else 10)
        if not status:
            advice = "check the network, or pass a local folder; see docs/download.md"
            return cached_or_raise(name, folder, (f"{server} does not respond {problem}", advice))
        if not download:
            return name
        try:
            folder = Path(snapshot_download(name, ignore_patterns=UNUSED))
        except Exception as error:  # from modelscope or requests
            reason = f"ModelScope cannot download it ({first_line(error)})"
            return cached_or_raise(name, None, (reason, "check the name (OWNER/NAME) on modelscope.cn/models"))
        with suppress(OSError):  # if the cache is not writable, the model is checked again next time
            (folder / COMPLETE).touch()
        return str(folder)
