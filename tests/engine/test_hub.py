"""Model hubs: servers that respond, reject, fail or never respond, and the package of ModelScope."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import hubs
import pytest
from conftest import ROOT, read_json
from filelock import FileLock, Timeout
from transformers import BertModel

from engine.data.tokenizer import train_tokenizer
from engine.errors import UserError
from engine.model import hub
from engine.model.encoders import bert_config

ONLINE = {"HF_HUB_OFFLINE": "", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
NAME = "someone/tiny"
WAYS_OUT = ("HF_ENDPOINT", "--model_hub modelscope", "local folder", "HF_HUB_OFFLINE")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Returns a folder with a tiny encoder and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    rows = (ROOT / "dataset/sample_raw/en.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    texts = [" ".join(json.loads(row)["tokens"]) for row in rows]
    tokenizer = train_tokenizer(lambda: iter(texts), 300)
    BertModel(bert_config(tokenizer, 1, 32, 256)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def forget():
    """Returns forget(), which clears the cached hub responses, as in a new process. Called before each test."""

    def clear():
        for memory in (hub.ask, hub.from_modelscope, hub.warn):
            memory.cache_clear()

    clear()
    return clear


@pytest.fixture
def command(tmp_path):
    """Returns command('main.py', '--flag', …, env={…}) -> the finished process, run in its own environment."""

    def run(script, *flags, env):
        words = [ROOT / script] if script.endswith(".py") else ["-m", script]
        env = {**os.environ, **ONLINE, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), **env}
        words = [sys.executable, *words, *map(str, flags)]
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)

    return run


# ---- the Hugging Face hub --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hub_model_trains_and_predicts_and_is_cached(command, model, sample, tmp_path):
    flags = ["--do_train", "--do_predict", "--epochs", "1", "--device", "cpu", "--data_path", sample]
    with hubs.hub({NAME: model}) as server:
        env = {"HF_ENDPOINT": server.url}
        done = command("main.py", *flags, "--pretrain_model_path", NAME, "--model_version", "a", env=env)
        assert done.returncode == 0, done.stderr
        assert f"/{NAME}/resolve/main/config.json" in server.asked
    # the server has ended, so nothing listens on its port
    done = command("main.py", *flags, "--pretrain_model_path", NAME, "--model_version", "b", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"{NAME} is loaded from the cache: {server.url} does not respond") == 1
    one, other = (tmp_path / "output" / name for name in ("a", "b"))
    assert read_json(one / "args.json")["pretrain_model_path"] == NAME
    for file in ("weights.safetensors", "encoder.json", "tokenizer.json", "tokenizer_config.json"):
        best = Path("checkpoints/best") / file
        assert (one / best).read_bytes() == (other / best).read_bytes(), file
    assert (one / "predictions.csv").read_bytes() == (other / "predictions.csv").read_bytes()


PROBLEMS = {
    "a closed port": (hubs.closed, WAYS_OUT),
    "a name without an address": (lambda: "http://no-such-host.invalid", WAYS_OUT),
    "no answer": (hubs.silent, ("within 1 s", *WAYS_OUT)),
    "an error of the server": (lambda: hubs.hub(status=503), ("503", *WAYS_OUT)),
    "a proxy with a password": (lambda: hubs.hub(status=407), ("407", *WAYS_OUT)),
    "no such model": (hubs.hub, ("has no model with this name", "OWNER/NAME")),
    "not even a code": (lambda: hubs.hub(status=404), ("has no model with this name",)),
    "a private model": (lambda: hubs.hub(status=401), ("if it is private, set HF_TOKEN",)),
    "a gated model": (lambda: hubs.hub(status=401, **{"X-Error-Code": "GatedRepo"}), ("restricts access to this",)),
    "forbidden": (lambda: hubs.hub(status=403), ("restricts access to this",)),
}


@pytest.mark.parametrize("what", PROBLEMS)
def test_hub_failure_is_a_one_line_error(what, command, sample, tmp_path):
    start, named = PROBLEMS[what]
    with hubs.started(start()) as url:
        env = {"HF_ENDPOINT": url, "HF_HUB_ETAG_TIMEOUT": "1" if what == "no answer" else "10"}
        flags = ["--do_train", "--pretrain_model_path", NAME, "--data_path", sample]
        done = command("main.py", *flags, env=env)
    assert done.returncode == 2 and not done.stdout, done.stderr
    assert done.stderr.startswith(f"error: --pretrain_model_path {NAME}: ") and done.stderr.count("\n") == 1
    assert url in done.stderr and all(words in done.stderr for words in named), done.stderr
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("HF_ENDPOINT", "hf-mirror.com", "must be an address such as https://hf-mirror.com, or unset"),
        ("HF_ENDPOINT", "127.0.0.1:9", "must be an address"),
        ("HF_ENDPOINT", "", "must be an address"),
        ("HF_ENDPOINT", "ftp://x", "must be an address"),
        ("HF_ENDPOINT", "http://[::1", "must be an address"),
        ("HF_ENDPOINT", "http://localhost:99999", "must be an address"),
        ("HF_HUB_ETAG_TIMEOUT", "abc", "must be a whole number of seconds, or unset"),
    ],
)
def test_invalid_hub_setting_is_a_one_line_error(name, value, expected, command, tmp_path):
    for words in (
        ["main.py", "--do_train", "--pretrain_model_path", NAME],
        ["data_process.py", "--input", "someone/data", "--format", "hf", "--output_dir", "dataset/data"],
    ):
        done = command(*words, env={name: value})
        assert done.returncode == 2 and done.stderr.startswith(f"error: {name}={value!r} {expected}"), done.stderr
        assert done.stderr.count("\n") == 1 and not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["a/b/c", "a b", "https://huggingface.co/bert", "模型", "bert/", "a--b"])
def test_invalid_model_name_is_reported_before_anything_is_written(name, command, tmp_path):
    done = command("main.py", "--do_train", "--pretrain_model_path", name, env={"HF_ENDPOINT": hubs.closed()})
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "no such folder, and not a valid hub name" in done.stderr and not (tmp_path / "dataset").exists()


SCRIPTS = {
    "data_process.py": ("--check", "--pretrain_model_path", NAME, "--input"),
    "huggingface_hands_on/continue_pretrain_task.py": ("--pretrain_model_path", NAME, "--output_dir", "m", "--input"),
    "tools.search": ("--pretrain_model_path", NAME, "--data_path"),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_other_commands_report_invalid_model_names_too(script, command, sample, tmp_path):
    env = {"HF_ENDPOINT": hubs.closed()}
    (tmp_path / "texts.txt").write_text("".join(f"a good film number {i}\n" for i in range(100)))
    data = "texts.txt" if script.startswith("hugging") else sample
    done = command(script, *SCRIPTS[script], data, env=env)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    if script != "data_process.py":  # it prints the other checks first; the others fail before torch is imported
        assert done.stderr.count("\n") == 1 and not done.stdout, (done.stdout, done.stderr)
    assert all(words in done.stderr for words in WAYS_OUT) and "Traceback" not in done.stderr


def test_dataset_on_an_unreachable_hub_is_a_one_line_error(command, tmp_path):
    env = {"HF_ENDPOINT": hubs.closed()}
    flags = ["--input", "someone/data", "--format", "hf", "--output_dir", "dataset/data"]
    done = command("data_process.py", *flags, env=env)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: someone/data: http://127.0.0.1:") and "HF_ENDPOINT" in done.stderr
    assert "modelscope" not in done.stderr and not (tmp_path / "dataset").exists()


def test_failed_hub_request_is_retried(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with hubs.hub(status=503, then=404) as server:
        assert hub.head(server.url, 30) == (404, "") and len(server.asked) == 2


def test_offline_without_a_cached_model(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"not in the cache .* HF_HUB_OFFLINE is set"):
        hub.locate(NAME)
    for path in ("./nowhere", str(tmp_path / "nowhere"), "~/nowhere"):
        with pytest.raises(UserError, match="no such folder"):
            hub.locate(path, "modelscope")
    assert hub.locate(str(tmp_path), "modelscope") == str(tmp_path)


# ---- ModelScope ------------------------------------------------------------------------------------------------------

# Has the signature of the package's function (modelscope 1.20 to 1.40), and one model
STAND_IN = """
import os, shutil
from pathlib import Path
HOME = Path({home!r})

def snapshot_download(model_id=None, revision=None, cache_dir=None, user_agent=None, local_files_only=False,
                      cookies=None, ignore_file_pattern=None, allow_file_pattern=None, local_dir=None,
                      allow_patterns=None, ignore_patterns=None):
    folder = HOME / "cache" / model_id
    if local_files_only and not folder.exists():
        raise ValueError("Cannot find the requested files in the cached path")
    if not local_files_only:
        if model_id != "someone/tiny":
            raise RuntimeError("404 Client Error: Not Found\\nfor url …")
        with open(HOME / "downloads.txt", "a") as file:
            file.write(f"{{model_id}}\\n")
        during = globals().get("DURING")
        during and during()
        shutil.copytree({model!r}, folder, dirs_exist_ok=True)
    return str(folder)
"""


@pytest.fixture
def modelscope(model, tmp_path, monkeypatch):
    """Returns the folder of an importable package `modelscope`, whose server responds."""
    home = tmp_path / "modelscope_home"
    package = home / "package/modelscope"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN.format(home=str(home), model=str(model)), encoding="utf-8")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "modelscope", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with hubs.hub(status=404) as server:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        yield home
    sys.modules.pop("modelscope", None)


def downloads(home):
    path = home / "downloads.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_optional_model_file(model, tmp_path, monkeypatch):
    """From the hub, from its cache in offline mode, or from a folder: None if the file does not exist."""
    with_file = shutil.copytree(model, tmp_path / "with_file")
    (with_file / "1_Pooling").mkdir()
    (with_file / "1_Pooling/config.json").write_text("{}")
    code = (
        "import sys; from engine.model.hub import optional_file; "
        "print([bool(optional_file(sys.argv[1], f'{name}/config.json')) for name in ('1_Pooling', '2_Dense')])"
    )
    env = {**os.environ, **ONLINE, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    with hubs.hub({NAME: with_file}) as server:
        for more in ({"HF_ENDPOINT": server.url}, {"HF_ENDPOINT": hubs.closed(), "HF_HUB_OFFLINE": "1"}):
            words = [sys.executable, "-c", code, NAME]
            done = subprocess.run(words, env={**env, **more}, capture_output=True, text=True, timeout=60)
            assert done.stdout == "[True, False]\n", done.stderr
    assert hub.optional_file(str(with_file), "1_Pooling/config.json")
    assert hub.optional_file(str(with_file), "modules.json") is None


@pytest.mark.parametrize("lora", [{}, {"lora_rank": 2}], ids=["whole", "LoRA"])
def test_modelscope_model_trains_resumes_and_predicts_offline(lora, modelscope, tiny, monkeypatch, forget):
    import main

    config = tiny(pretrain_model_path=NAME, model_hub="modelscope", do_train=True, epochs=1, scheduler="constant")
    config = replace(config, warmup_epochs=0.0, **lora)
    main.main(config)
    assert downloads(modelscope) == [NAME]
    assert read_json(config.run_dir / "args.json")["pretrain_model_path"] == NAME
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hubs.closed())
    forget()
    main.main(replace(config, epochs=2, resume=True))
    main.main(replace(config, do_train=False, do_predict=True, pretrain_model_path="", model_hub="hf"))
    assert (config.run_dir / "predictions.csv").exists() and downloads(modelscope) == [NAME]
    other = replace(config, model_hub="hf").changes_since(read_json(config.run_dir / "args.json"))
    assert "model_hub was 'modelscope', is 'hf'" in other


def test_model_is_downloaded_once_under_a_lock(modelscope, tmp_path, forget):
    tried = []

    def during():
        (path,) = tmp_path.glob("modelscope-*.lock")
        with pytest.raises(Timeout), FileLock(path, timeout=0):
            pass
        tried.append(path)

    import modelscope as package

    package.DURING = during
    folder = hub.locate(NAME, "modelscope")
    assert (Path(folder) / "config.json").exists() and len(tried) == 1
    forget()
    assert hub.locate(NAME, "modelscope", weights=True) == folder and downloads(modelscope) == [NAME]
    (Path(folder) / hub.COMPLETE).unlink()  # an interrupted download
    forget()
    assert hub.locate(NAME, "modelscope") == folder and len(downloads(modelscope)) == 2


def test_download_by_the_modelscope_cli_is_used_offline(modelscope, model, monkeypatch, caplog):
    shutil.copytree(model, modelscope / "cache" / NAME)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", url := hubs.closed())
    with caplog.at_level("WARNING", "template"):
        assert hub.locate(NAME, "modelscope") == str(modelscope / "cache" / NAME)
    assert f"is loaded from the cache: {url} does not respond" in caplog.text and not downloads(modelscope)


def test_modelscope_problems_are_one_line_errors(modelscope, tiny, monkeypatch, forget):
    import main

    lines = {}
    for name in ("nobody/nothing", NAME):
        config = tiny(pretrain_model_path=name, model_hub="modelscope", do_train=True)
        with pytest.raises(UserError) as error:
            main.main(config)
        lines[name] = str(error.value)
        assert "\n" not in lines[name] and not config.run_dir.exists()
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hubs.closed())
        forget()
    assert (
        "ModelScope cannot download it (404 Client Error: Not Found); check the name (OWNER/NAME)"
        in lines["nobody/nothing"]
    )
    assert "does not respond ([Errno 111] Connection refused)" in lines[NAME] and "local folder" in lines[NAME]
    (modelscope / "package/modelscope/__init__.py").write_text("raise ImportError('no', name='modelscope')")
    sys.modules.pop("modelscope")
    with pytest.raises(UserError, match=r"needs the package modelscope .*: pip install modelscope$"):
        main.main(config)


def test_pretraining_and_checks_accept_modelscope_models(modelscope, sample, tmp_path, capsys):
    from data_process import DataConfig, process
    from huggingface_hands_on.continue_pretrain_task import PretrainConfig
    from huggingface_hands_on.encoder import load_model

    where = dict(pretrain_model_path=NAME, model_hub="modelscope")
    process(DataConfig(input=str(sample), check=True, **where))
    encoder, tokenizer = load_model(PretrainConfig(input="texts.txt", output_dir="m", **where))
    assert encoder.config.hidden_size == 32 and len(tokenizer) <= encoder.config.vocab_size
    assert downloads(modelscope) == [NAME]


def test_adapter_base_can_come_from_modelscope(modelscope, model, tiny, tmp_path):
    import main

    pytest.importorskip("peft")
    config = tiny(pretrain_model_path=str(model), do_train=True, epochs=1, lora_rank=2)
    main.main(config)
    predicts = replace(config, do_train=False, do_predict=True, pretrain_model_path=NAME, model_hub="modelscope")
    main.main(predicts)
    assert downloads(modelscope) == [NAME] and (config.run_dir / "predictions.csv").exists()
