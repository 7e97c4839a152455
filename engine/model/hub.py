"""Where pretrained models come from: a local folder, the Hugging Face hub or a mirror of it, or ModelScope.

`locate` is the only place that looks up a name. Left alone, the libraries retry for more than a minute before they
report that a hub does not answer; so it is asked first, for a few seconds. An answer means that the download may take
as long as it needs.
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
from typing import NamedTuple

from engine.errors import UserError
from engine.run.command_line import first_line

logger = logging.getLogger("template")
CACHED_WAIT = 3.0  # seconds that a hub has to answer if the model is in the cache already
MIRROR = "set HF_ENDPOINT to a mirror such as https://hf-mirror.com"
WAYS_OUT = {
    "model": f"{MIRROR}, add --model_hub modelscope, or give a local folder (HF_HUB_OFFLINE=1 uses only models in the "
    "cache); see docs/download.md",
    "dataset": f"{MIRROR}, or give a local file or folder; see docs/download.md",
}
COMPLETE = ".complete"  # empty file in a folder of ModelScope's cache: all of the model was downloaded
UNUSED = ["*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.tflite", "*.mlmodel", "*.gguf"]  # not for PyTorch


def locate(name: str, model_hub: str = "hf", revision: str | None = None, weights: bool = False) -> str:
    """What transformers can load a model from: a folder, or the name itself if the Hugging Face hub answers.

    weights: whether they are needed, not only config and tokenizer. Raises UserError if the model cannot be had.
    """
    if Path(name).is_dir():
        return name
    if name.startswith((".", os.sep, "~")) or Path(name).is_file():
        raise UserError(f"--pretrain_model_path {name}: no such folder")
    return from_modelscope(name) if model_hub == "modelscope" else from_hugging_face(name, revision, weights)


# ---- does a hub answer? ----------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """status: of HTTP, 0 without an answer. code: the hub's name of an error. problem: why there is no answer."""

    status: int
    code: str
    problem: str


@lru_cache  # a run asks for the tokenizer, the config and the weights
def ask(url: str, seconds: float) -> Answer:
    """Asks a server for a file's headers, up to three times, for at most `seconds` in all.

    In a thread, because a silent DNS server, or a host with several addresses, takes longer than any time limit.
    """
    answers: SimpleQueue[Answer] = SimpleQueue()
    Thread(target=lambda: answers.put(head(url, seconds)), daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except Empty:
        return Answer(0, "", f"within {seconds:g} s")


def head(url: str, seconds: float) -> Answer:
    """HEAD with huggingface_hub's own session, so that proxies and certificates count as they do for the download."""
    from huggingface_hub.utils import build_hf_headers, get_session

    problem = ""
    for pause in (0, 0.5, 1):
        time.sleep(pause)
        try:
            response = get_session().head(url, headers=build_hf_headers(), timeout=seconds)
        except Exception as error:  # of requests or httpx, depending on the version of huggingface_hub
            cause: BaseException = error
            while inner := cause.__cause__ or cause.__context__:
                cause = inner
            problem = first_line(cause)
            continue
        if response.status_code < 500 and response.status_code != 407:  # 407: a proxy asks for a password
            return Answer(response.status_code, response.headers.get("X-Error-Code", ""), "")
        problem = f"HTTP status {response.status_code}"
    return Answer(0, "", f"({problem})")


def refusal(name: str, seconds: float, revision: str | None = None, kind: str = "model") -> tuple[str, str] | None:
    """(why the Hugging Face hub does not give a model or dataset, what to do), or None if it does."""
    from huggingface_hub import constants, hf_hub_url

    file = "config.json" if kind == "model" else "README.md"
    try:
        answer = ask(hf_hub_url(name, file, repo_type=kind, revision=revision), seconds)
    except ValueError:  # cannot be a name; the libraries report which rule it breaks
        return None
    if answer.problem:
        return f"{constants.ENDPOINT} does not answer {answer.problem}", WAYS_OUT[kind]
    if answer.code == "GatedRepo" or answer.status == 403:
        return f"{constants.ENDPOINT} gives this {kind} only to some users", "apply on its page, then set HF_TOKEN"
    if answer.status in (401, 404) and answer.code not in ("EntryNotFound", "RevisionNotFound"):
        advice = "check it, also its owner (OWNER/NAME); if it is private, set HF_TOKEN"
        return f"{constants.ENDPOINT} has no {kind} of this name", advice
    return None


# ---- the two hubs ----------------------------------------------------------------------------------------------------


def from_hugging_face(name: str, revision: str | None, weights: bool) -> str:
    """The name, or, if the hub does not give the model, its folder in the cache."""
    from huggingface_hub import constants

    folder = cached_folder(name, revision)
    if folder and weights and not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
        folder = None
    if constants.HF_HUB_OFFLINE:
        if folder is None:
            missing = f"is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set"
            raise UserError(f"--pretrain_model_path {name}: {missing}; unset it, or give a local folder")
        return name
    if refused := refusal(name, CACHED_WAIT if folder else constants.HF_HUB_ETAG_TIMEOUT, revision):
        if folder is None:
            raise UserError(f"--pretrain_model_path {name}: {'; '.join(refused)}")
        warn(f"{name} is loaded from the cache: {refused[0]}")
        return str(folder)
    return name


def require_answer(name: str, model_hub: str) -> None:
    """Raises UserError if a model has to be downloaded first and the Hugging Face hub does not give it."""
    if name and model_hub == "hf" and not Path(name).is_dir() and cached_folder(name, None) is None:
        locate(name)


def cached_folder(name: str, revision: str | None) -> Path | None:
    """The folder of a model in the cache of the Hugging Face hub, or None."""
    from huggingface_hub import try_to_load_from_cache

    for cache in (None, os.environ.get("TRANSFORMERS_CACHE")):  # the default, and where transformers 4 may look
        for file in ("config.json", "tokenizer_config.json", "tokenizer.json"):
            with suppress(ValueError):  # cannot be a name
                if isinstance(path := try_to_load_from_cache(name, file, cache, revision), str):
                    return Path(path).parent
    return None


@lru_cache
def warn(text: str) -> None:
    """Logs a warning once."""
    logger.warning(text)


@lru_cache
def from_modelscope(name: str) -> str:
    """The folder of a model in ModelScope's cache, after its download if need be. It is downloaded once: a run that is
    resumed gets the same files. Of several processes on a machine one downloads, and the others wait."""
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        needed = "--model_hub modelscope needs the package modelscope: pip install modelscope"
        raise UserError(needed if error.name == "modelscope" else f"{needed} ({first_line(error)})") from None
    from filelock import FileLock

    lock = hashlib.sha256(f"{Path.home()} {name}".encode()).hexdigest()[:20]
    with FileLock(Path(tempfile.gettempdir()) / f"modelscope-{lock}.lock"):
        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except Exception:  # its versions raise different errors if there is none
            folder = None
        if folder and (folder / COMPLETE).exists():
            return str(folder)
        domain = os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
        endpoint = os.environ.get("MODELSCOPE_ENDPOINT") or f"https://{domain}"
        if problem := ask(endpoint, CACHED_WAIT if folder else 10.0).problem:
            if folder is None:
                otherwise = "check the network, or give a local folder; see docs/download.md"
                raise UserError(f"--pretrain_model_path {name}: {endpoint} does not answer {problem}; {otherwise}")
            warn(f"{name} is loaded from the cache: {endpoint} does not answer {problem}")
            return str(folder)
        try:
            folder = Path(snapshot_download(name, ignore_patterns=UNUSED))
        except Exception as error:  # of its own, or of requests
            check = "check the name (OWNER/NAME) on modelscope.cn/models"
            raise UserError(
                f"--pretrain_model_path {name}: ModelScope cannot download it ({first_line(error)}); {check}"
            ) from None
        with suppress(OSError):  # a cache that cannot be written is asked about again
            (folder / COMPLETE).touch()
        return str(folder)
