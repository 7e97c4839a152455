"""The demo: the prompt in a real terminal and through a pipe, the server as a separate process, and the page in a
browser (skipped without Chromium)."""

import contextlib
import json
import os
import pty
import random
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Browser
from conftest import ROOT, TINY

from config import Config
from data_loader import MyDataLoader, MyDataset
from data_process import DataConfig, process
from engine.errors import UserError
from engine.run.files import write_json
from engine.task.task import Task, read_tasks, tasks_to_json
from main import load_trained, main
from tools.demo.__main__ import DemoConfig
from tools.demo.__main__ import main as demo
from tools.demo.prompt import format_result, painter
from tools.demo.typed import MAX_CHARACTERS, Examples, Labeller, as_example

TEXTS = ["play some jazz in Paris", "明天北京天气怎么样", '<b onclick="x()">Rome</b> & "Oslo"']


def train(data, output, **options):
    main(Config(**TINY | dict(data_path=str(data), output_dir=str(output), do_train=True) | options))


def labeller_of(data, output, name):
    config = Config(data_path=str(data), output_dir=str(output), model_version=name, device="cpu")
    trainer, featurizer = load_trained(config.run_dir / "checkpoints/best", config, torch.device("cpu"))
    return Labeller(trainer, lambda examples: MyDataLoader(MyDataset(examples, featurizer), 8))


def assert_same(one, other):
    """Compares results. Numbers can differ in the last digit, which depends on the other rows of a batch."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other):
            assert_same(*pair)
    else:
        assert one == (pytest.approx(other, abs=1e-5) if isinstance(other, float) else other)


@pytest.fixture(scope="module")
def trained(sample, tmp_path_factory):
    """Returns (flags of a small run on the sample, predictions of --predict_file for TEXTS)."""
    folder = tmp_path_factory.mktemp("trained")
    train(
        sample, folder, model_version="run", epochs=25, lr=5e-3, use_crf=True, monitor="slots_f1", early_stop_patience=0
    )
    (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    flags = dict(data_path=str(sample), output_dir=str(folder), model_version="run", device="cpu")
    out = folder / "out.jsonl"
    main(Config(**flags, do_predict=True, predict_file=str(folder / "texts.txt"), predict_output=str(out)))
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert any(row["slots"] for row in rows)  # so that the model predicts entities
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    return words, [{name: value for name, value in row.items() if name != "id"} for row in rows]


# ---- the prompt -----------------------------------------------------------------------------------------------------


class Terminal:
    """A program in a pseudo-terminal. `type` sends keys, and `see` waits for output."""

    def __init__(self, *words):
        self.master, inner = pty.openpty()
        os.set_blocking(self.master, False)
        env = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)}
        env.pop("NO_COLOR", None)
        command = [sys.executable, "-c", LOGIN, *map(str, words)]
        self.process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=env)
        os.close(inner)
        self.shown, self.read = "", 0

    def see(self, pattern, seconds=90):
        """Waits for a text in the new output. Returns the output up to the end of this text."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown[self.read :])):
            assert select.select([self.master], [], [], max(0, end - time.monotonic()))[0], self.shown
            try:
                self.shown += os.read(self.master, 1 << 16).decode("utf-8", "replace")
            except OSError:  # the program has exited
                raise AssertionError(self.shown) from None
        seen = self.shown[self.read : self.read + found.end()]
        self.read += found.end()
        return seen

    def type(self, keys):
        os.write(self.master, keys.encode())

    def end(self):
        """Returns the exit code."""
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            os.close(self.master)


# A session with its own terminal, so that Ctrl-C becomes a signal, which background processes may ignore
LOGIN = (
    "import fcntl, os, signal, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


@pytest.mark.slow
def test_typing_in_a_terminal(trained):
    words, rows = trained
    terminal = Terminal("-m", "tools.demo", "--terminal", *words)
    terminal.see("text> ")
    terminal.type("\r")
    terminal.see("text> ")  # an empty line repeats the prompt
    for text, row in zip(TEXTS[:2], rows):
        terminal.type(text[:4] + "xy\x7f\x7f" + text[4:] + "\r")  # and a typing error is corrected
        seen = terminal.see("text> ")
        assert f"{row['intent']} {row['intent_probability']:.4f}" in seen
        assert seen.count("\x1b[1;") >= 2 * len(row["slots"])
        bare = re.sub(r"\x1b\[[\d;]*m", "", seen)
        assert all(f"[{one['text']} {one['label']}]" in bare for one in row["slots"])
    terminal.type("w" * (MAX_CHARACTERS + 1) + "\r")
    assert "error: the text has 10,001 characters; the maximum is 10,000" in terminal.see("text> ")
    terminal.type("\x04")
    assert terminal.end() == 0


@pytest.mark.slow
def test_ctrl_c_ends_the_prompt_without_a_traceback(trained):
    terminal = Terminal("-m", "tools.demo", "--terminal", *trained[0])
    terminal.see("text> ")
    terminal.type("half a te")
    terminal.see("half a te")
    for _ in range(20):  # readline may miss a signal that arrives while it handles a key, until the next key
        terminal.type("\x03")
        with contextlib.suppress(subprocess.TimeoutExpired):
            terminal.process.wait(3)
            break
    assert terminal.end() == 130
    assert "Traceback" not in terminal.shown


def test_piped_lines_are_labelled_and_invalid_ones_reported(trained, python):
    words, rows = trained
    lines = "\n".join([TEXTS[0], "", TEXTS[2]]).encode() + b"\n\xff\xfe\n" + f"{TEXTS[1]}".encode()
    done = subprocess.run(
        [python, "-m", "tools.demo", "--terminal", *words], cwd=ROOT, input=lines, capture_output=True, timeout=300
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0 and "text>" not in out and "\x1b" not in out
    assert re.findall(r"^  intent +(\S+) (\S+)", out, re.M) == [
        (rows[i]["intent"], f"{rows[i]['intent_probability']:.4f}") for i in (0, 2, 1)
    ]
    assert err.count("error: ") == 1 and "not UTF-8" in err


def test_control_characters_are_replaced():
    answer = {"tasks": [{"task": "t\x1b[2J", "marked": ["a\x1b]0;x\x07\u202e"]}], "cut": 3}
    assert not re.search("[\x1b\x07\u202e]", format_result(answer, painter(False)))
    assert "truncated sub-tokens: 3" in format_result(answer, painter(True))


# ---- all kinds of tasks ----------------------------------------------------------------------------------------------


def raw_rows(kind):
    rng = random.Random(0)
    for i in range(90):
        words = [rng.choice(["red", "blue", "big", "round", "ball"]) for _ in range(5)]
        row = {"text": " ".join(words)}
        if kind == "spans":
            starts = [sum(len(w) + 1 for w in words[:j]) for j in range(6)]
            spans = [[starts[j], starts[j + 1] - 1, "colour"] for j, w in enumerate(words) if w in ("red", "blue")]
            row["entities"] = sorted([*spans, [0, starts[2] - 1, "start"]])
        elif kind == "multilabel":
            row["topics"] = sorted({w for w in words if w in ("red", "blue")})
        elif kind == "regression":
            row["score"] = float(words.count("red")) + 0.5
        else:
            row |= {"text_pair": rng.choice(["red", "none"]), "size": i % 7}
            row["label"] = "yes" if row["text_pair"] == "red" else "no"
        yield row


@pytest.mark.parametrize("kind", ["multilabel", "regression", "spans", "pairs"])
def test_results_match_predictions_for_all_kinds_of_tasks(kind, tmp_path):
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in raw_rows(kind)))
    column = {"spans": "entities", "multilabel": "topics", "regression": "score", "pairs": "label"}[kind]
    more = {"label_type": f"{column}={kind}"}
    if kind == "pairs":
        more = {"text_pair_column": "text_pair", "extra_columns": "size"}
    data = tmp_path / "data"
    process(DataConfig(input=str(tmp_path / "raw.jsonl"), output_dir=str(data), label_column=column, **more))
    train(
        data,
        tmp_path,
        model_version="run",
        epochs=6,
        lr=1e-2,
        do_predict=True,
        predict_output=str(tmp_path / "p.jsonl"),
    )
    label = labeller_of(data, tmp_path, "run")
    examples = Examples([tmp_path / "none", data], label.tasks)
    first = examples.first(8)
    expected = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()][:8]
    answers = label([one["given"] for one in first])
    for answer, row, one in zip(answers, expected, first, strict=True):
        assert_same(answer["prediction"], {name: row[name] for name in answer["prediction"]})
        (task,), (gold,) = answer["tasks"], one["gold"]
        line = format_result(answer, painter(False))
        if kind == "spans":
            assert line.count(" colour]") == sum(e["label"] == "colour" for e in answer["prediction"][column])
            assert sum(isinstance(piece, dict) for piece in gold["marked"]) >= 1
        elif kind == "regression":
            assert task["value"] == answer["prediction"][column] and gold["value"] == row[f"{column}_gold"]
            assert f"{task['value']:.6g}" in line
        else:
            chosen = [name for name, _, is_chosen in task["labels"] if is_chosen]
            predicted = row[column] if kind == "multilabel" else [row[column]]
            assert sorted(chosen) == sorted(predicted) and all(f"{name} 0." in line or "1.0" in line for name in chosen)
            assert len(task["labels"]) == 2 and all(0 <= p <= 1 for _, p, _ in task["labels"])
            assert [name for name, *_ in gold["labels"]] == (
                row[f"{column}_gold"] if kind == "multilabel" else [row[f"{column}_gold"]]
            )
    assert examples.random_row() is not None


def test_invalid_input_is_reported():
    tasks = {"t": Task("classification", labels=["a"], pairs=True, extras={"n": {"mean": 0, "std": 1}})}
    good = {"text": "a", "text_pair": "b", "extras": {"n": "2"}}
    assert as_example(good, tasks)["extras"] == {"n": 2.0}
    for change, message in (
        ({"text": 3}, "must be a string"),
        ({"text": "\n "}, "empty"),
        ({"text": "x" * 10_001}, "10,001 characters"),
        ({"text_pair": "x" * 10_001}, "10,001 characters"),
        ({"text": "\ud800"}, "lone surrogate"),
        ({"text_pair": None}, "pairs"),
        ({"extras": {}}, "no column 'n'"),
        ({"extras": {"n": "many"}}, "must be a number"),
        ({"extras": [1]}, "an object"),
        ({"label": "a"}, "unknown key 'label'"),
    ):
        with pytest.raises(UserError, match=message):
            as_example(good | change, tasks)
    for wrong in (None, 3, [], ["a"]):
        with pytest.raises(UserError, match="each text must be"):
            as_example(wrong, tasks)


def test_invalid_examples_are_skipped(sample, tmp_path):
    tasks = read_tasks(sample / "labels.json")
    assert Examples([tmp_path], tasks).first() == [] and Examples([], tasks).random_row() is None
    assert Examples([sample], tasks | {"more": Task("classification", labels=["a"])}).path is None
    good = (sample / "test.jsonl").read_text(encoding="utf-8").splitlines()[:1]
    write_json(tmp_path / "labels.json", tasks_to_json(tasks))
    (tmp_path / "test.jsonl").write_text("\n".join(["{", "3", "{}", *good]) + "\n", encoding="utf-8")
    examples = Examples([tmp_path], tasks)
    assert len(examples.first()) == 1 and examples.random_row(random.Random(0)) == examples.first()[0]


# ---- the page's server -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["127.0.0.1", "8000", ":8000", "127.0.0.1:x", "127.0.0.1:70000", "127.0.0.1:²"])
def test_invalid_addresses(text):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from tools.demo.page import parse_address

    with pytest.raises(UserError, match="--address"):
        parse_address(text)
    assert parse_address("[::1]:80") == ("::1", 80)


def test_torchrun_is_rejected(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="without torchrun"):
        DemoConfig()


def test_missing_packages_cause_a_one_line_error(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "tools.demo.page", raising=False)
    with pytest.raises(UserError, match=r"pip install -r tools/demo/requirements\.txt"):
        demo(DemoConfig())


class Server:
    """The demo as a separate process on a free port."""

    def __init__(self, python, words, log):
        self.log = log
        with open(log, "wb") as file:
            command = [python, "-m", "tools.demo", "--address", "127.0.0.1:0"]
            self.process = subprocess.Popen([*command, *words], cwd=ROOT, stdout=file, stderr=file)
        end = time.monotonic() + 120
        while not (found := re.search(r"http://\S+:(\d+)", self.log.read_text())):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        self.url, self.port = found.group(), int(found.group(1))

    def ask(self, path="/", body=None, **headers):
        """Returns (status, content)."""
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def label(self, texts):
        status, response = self.ask("/label", json.dumps({"texts": texts}).encode())
        return status, json.loads(response)


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory, python):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    server = Server(python, trained[0], tmp_path_factory.mktemp("server") / "log")
    yield server
    server.process.kill()
    server.process.wait()


def test_server_matches_predict_file(server, trained):
    status, page = server.ask()
    assert status == 200 and "<textarea" in page and "connect-src 'self'" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    status, response = server.label(TEXTS)
    rows = [answer["prediction"] for answer in response["answers"]]
    assert status == 200 and [row["text"] for row in rows] == TEXTS
    assert_same(rows, trained[1])
    one = response["answers"][0]["tasks"][0]["labels"]
    assert [p for _, p, _ in one] == sorted((p for _, p, _ in one), reverse=True) and one[0][2]
    status, response = server.ask("/example")
    assert status == 200 and json.loads(response)["gold"]


def test_server_accepts_tokens_and_ids(server):
    given = [{"tokens": TEXTS[0].split(), "id": 7}, {"text": TEXTS[0]}]
    status, response = server.label(given)
    first, second = (answer["prediction"] for answer in response["answers"])
    assert status == 200 and first.pop("id") == "7" and first.keys() == second.keys() and first["text"] == TEXTS[0]
    for wrong in ({"tokens": []}, {"tokens": "a"}, {"id": 1}, {"text": "a", "words": 1}, {"tokens": ["", " "]}):
        status, response = server.label([wrong])
        assert status == 400 and ("text" in response["error"])


def test_server_rejects_malformed_requests(server):
    for body in (
        b"",
        b"x",
        b"[]",
        b"{}",
        b'{"texts": []}',
        b'{"texts": [3]}',
        b'{"texts": [""]}',
        b"[" * 100_000,
        b"\xff",
    ):
        status, response = server.ask("/label", body)
        assert status == 400 and json.loads(response)["error"], body[:30]
    assert server.label(["\ud800"])[0] == server.label([{"text": "a", "\ud800": 1}])[0] == 400
    for texts in (["x" * (MAX_CHARACTERS + 1)], ["x"] * 65, ["x" * 9_000_000]):
        status, response = server.label(texts)
        assert status == 413 and "at most" in response["error"]
    assert server.label(["x" * MAX_CHARACTERS])[0] == 200
    assert server.ask("/label")[0] == 405 and server.ask("/none")[0] == 404
    assert server.ask("/", Host="example.org")[0] == 400  # host name of another site (DNS rebinding)
    assert server.process.poll() is None and "Traceback" not in server.log.read_text()


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="needs /proc/net/tcp")
def test_server_listens_only_on_the_loopback_address(server):
    lines = Path("/proc/net/tcp").read_text().splitlines()
    lines += Path("/proc/net/tcp6").read_text().splitlines() if Path("/proc/net/tcp6").exists() else []
    lines = [line.split() for line in lines]
    listening = [cells[1] for cells in lines if cells[3] == "0A" and cells[1].endswith(f":{server.port:04X}")]
    assert listening == [f"0100007F:{server.port:04X}"]


def test_a_port_in_use_causes_a_one_line_error():
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from tools.demo.page import listen

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"{address}: address already in use; choose another address"):
            demo(DemoConfig(address=address))
    with pytest.raises(UserError, match=r"nowhere\.invalid"):
        listen("nowhere.invalid:80")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package `chromium`)")
def test_the_page_in_a_browser(server, trained, tmp_path):
    """The page labels typed texts, marks entities, escapes texts, and makes no requests to other hosts."""
    rows = trained[1]
    with Browser(tmp_path / "profile") as browser:
        browser.look()
        browser.open(server.url + "/")
        for text, row in zip(TEXTS, rows):
            browser.run("document.getElementById('text').value = ''; document.getElementById('text').focus()")
            browser.call("Input.insertText", text=text[:-1])
            browser.call("Input.dispatchKeyEvent", type="char", text=text[-1])
            press_enter(browser)
            wait_for(browser, "document.querySelector('[data-task=slots] .entities')?.textContent", text[:2])
            marks = browser.run("[...document.querySelectorAll('[data-task=slots] mark')].map(m => m.textContent)")
            assert marks == [one["text"] + one["label"] for one in row["slots"]]
            assert browser.run("document.querySelector('[data-task=intent] .chosen td').textContent") == row["intent"]
        assert browser.run("document.querySelectorAll('#answer [onclick]').length") == 0
        browser.run("document.querySelector('#examples button').click()")
        wait_for(browser, "document.querySelector('.gold')?.textContent", "")
        browser.run("document.getElementById('text').value = ''")
        browser.run("document.getElementById('another').click()")
        wait_for(browser, "document.getElementById('text').value", "")
        for options in ({"dark": True}, {"width": 390, "height": 844, "phone": True}):
            browser.look(**options)
            assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        assert browser.complaints == []
        browser.run("document.getElementById('text').value = ' '")
        browser.run("document.getElementById('send').click()")
        wait_for(
            browser, "document.getElementById('said').hidden ? null : document.getElementById('said').textContent", ""
        )
        assert all(url.startswith(server.url + "/") for url in browser.requests)


def press_enter(browser):
    for kind in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)


def wait_for(browser, expression, beginning):
    """Waits until an expression is a non-empty string with this prefix, and returns it."""
    end = time.monotonic() + 30
    while True:
        value = browser.run(expression)
        if value and value.startswith(beginning):
            return value
        assert time.monotonic() < end, (expression, value)
        time.sleep(0.02)


@pytest.mark.slow
def test_ctrl_c_closes_the_page(server, trained, tmp_path, python):
    end_by(Server(python, trained[0], tmp_path / "log"), signal.SIGINT)


def test_sigterm_closes_the_page(server):  # the last test that needs the server
    end_by(server, signal.SIGTERM)


def end_by(server, number):
    with socket.create_connection(("127.0.0.1", server.port)):  # like a browser that keeps its connection open
        server.process.send_signal(number)
        assert server.process.wait(60) == 0
    assert "the server has stopped" in server.log.read_text() and "Traceback" not in server.log.read_text()
