"""Labelling files as a stream: the output, resuming a killed run, shards, error messages, constant memory."""

import contextlib
import csv
import io
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from conftest import ROOT, TINY
from test_distributed import torchrun

from config import Config
from data_loader import MyDataLoader, MyDataset
from engine.errors import UserError
from engine.predict import labelling
from engine.predict.labelling import Output, check_all, path_of_shard, rows_of_shard
from engine.predict.predictions import prepare_inputs
from engine.predict.rows import write_rows
from engine.run.run_folder import hold
from engine.run.signals import Interrupted
from engine.task.task import Task
from main import load_trained, main
from preprocess.readers.options import ReadOptions
from preprocess.readers.sources import TextRows, read_texts

TEXTS = [f"play song number {n} by Adele" + " please" * (n % 5) for n in range(35)] + ["", "播放音乐", "=1+1"]
POOL = 8  # rows in these tests: five pools


@pytest.fixture(scope="module")
def trained(sample, tmp_path_factory):
    """Returns the options of a small trained run on the sample."""
    flags = dict(data_path=str(sample), output_dir=str(tmp_path_factory.mktemp("trained")), model_version="run")
    main(Config(**{**TINY, "epochs": 1}, **flags, do_train=True))
    return flags | {"device": "cpu"}


@pytest.fixture
def pools(monkeypatch):
    monkeypatch.setattr(labelling, "POOL", POOL)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def label(trained, texts, tmp_path):
    """Returns label("out.csv", **options) -> the bytes written by main.py."""

    def run(name="out.csv", **options):
        output = tmp_path / name
        given = {"eval_batch_size": 4, "predict_file": str(texts), "predict_output": str(output)}
        main(Config(do_predict=True, **trained | given | options))
        return output.read_bytes() if output.exists() else None

    return run


def in_a_fork(function):
    """Calls a function in a separate process. Returns the exit code, or 128 + N if signal N ended it."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            function()
            code = 0
        except UserError as error:
            os.write(2, f"{error}\n".encode())
            code = 2
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def left(folder):
    """Returns the names of the temporary files next to the output."""
    return sorted(path.name for path in folder.iterdir() if "partial" in path.name or path.name.startswith("."))


# ---- the bytes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_output_of_one_pool_is_byte_identical_to_all_rows(name, label, trained, texts, tmp_path):
    config = Config(**trained)
    trainer, featurizer = load_trained(config.run_dir / "checkpoints/best", config, torch.device("cpu"))
    examples = list(prepare_inputs(read_texts(texts, ReadOptions.of(config)), trainer.tasks))
    trainer.predict(MyDataLoader(MyDataset(examples, featurizer), 4), tmp_path / f"whole-{name}")
    assert label(name) == (tmp_path / f"whole-{name}").read_bytes()
    assert left(tmp_path) == []


def test_input_format_does_not_change_the_output(label, tmp_path, caplog):
    """The files have labels, which are not read."""
    logging.getLogger("template").propagate = True
    sentences = [["fly", "to", "Oslo"], ["play", "jazz", ",", "please"]]
    conll = "\n".join("".join(f"{token}\tB-x\n" for token in tokens) for tokens in sentences)
    written = {
        "a.jsonl": "".join(json.dumps({"tokens": tokens, "slots": ["O"] * len(tokens)}) + "\n" for tokens in sentences),
        "a.conll": conll,
        "a.tsv": conll.replace("\tB-x", "\tNN\tB-x"),
        "b.tsv": "".join(f"{' '.join(tokens)}\t{' '.join('O' * len(tokens))}\tsay\n" for tokens in sentences),
        "a.csv": "text,slots\n" + "".join(f'"{" ".join(t)}",{" ".join("O" * len(t))}\n' for t in sentences),
    }
    found = {}
    for name, content in written.items():
        (tmp_path / name).write_text(content)
        found[name] = label("out.jsonl", predict_file=str(tmp_path / name))
        assert f"from {tmp_path}/{name}; labels are ignored: " in caplog.text
    assert len({*found.values()}) == 1 and len(found["a.conll"].splitlines()) == 2


def test_partial_output_of_an_earlier_version_is_resumed(label, texts, tmp_path):
    """Its record lacks the option, which is assumed to have its default."""
    whole = label("whole.csv")
    facts = {}

    def stop(output):
        facts.update(output.facts)
        raise UserError("stopped")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="stopped"):
        patch.setattr(Output, "finish", stop)
        label()
    progress = tmp_path / "out.csv.partial.json"
    saved = json.loads(progress.read_text())
    assert saved["facts"].pop("--shape") == facts["--shape"] == "auto"
    progress.write_text(json.dumps(saved))
    with pytest.raises(UserError, match="--comment was '', is '%'"):
        label(resume=True, comment="%")
    assert label(resume=True) == whole


def test_pools_do_not_change_predictions_or_order(label, pools, monkeypatch):
    many = [json.loads(line) for line in label("many.jsonl").decode().splitlines()]
    monkeypatch.setattr(labelling, "POOL", 4096)
    one = [json.loads(line) for line in label("one.jsonl").decode().splitlines()]
    assert [row["text"] for row in many] == TEXTS and [row["id"] for row in many] == list(map(str, range(len(TEXTS))))
    for ours, theirs in zip(many, one):
        assert ours.pop("intent_probability") == pytest.approx(theirs.pop("intent_probability"), abs=2e-6)
        assert ours == theirs


def test_processed_split_is_labelled_with_its_gold_labels(label, pools, sample):
    rows = list(csv.DictReader(label(predict_file="").decode().splitlines()))
    gold = [json.loads(line) for line in (sample / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(gold) > 2 * POOL and [row["intent_gold"] for row in rows] == [example["intent"] for example in gold]
    assert {row["right"] for row in rows} <= {"True", "False"}


def test_truncation_is_logged_once_per_file(label, pools, texts, caplog):
    logging.getLogger("template").propagate = True
    texts.write_text("".join(f"{'word ' * 300}\nshort {n}\n" for n in range(POOL)))
    label()
    logged = [record.getMessage() for record in caplog.records if "--max_length" in record.getMessage()]
    assert len(logged) == 1 and " windows" in logged[0]


# ---- a killed process ------------------------------------------------------------------------------------------------


def die_at(call):
    """Kills this process before or after its n-th write to disk, or after half of some output is written."""
    calls = 0

    def count():
        nonlocal calls
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1

    class HalfWay(io.FileIO):
        def write(self, content):
            done = super().write(content[: len(content) // 2])
            count()
            return done + super().write(content[len(content) // 2 :])

    labelling.open = HalfWay
    for name in ("fsync", "replace", "unlink", "truncate"):
        real = getattr(os, name)
        setattr(os, name, lambda *args, real=real, **options: (count(), real(*args, **options), count())[1])


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_resume_after_a_kill_at_each_write_is_bit_exact(name, label, pools, tmp_path):
    """The first process is killed at its first write, the one that resumes at its second, the next at its third, …"""
    expected, kills = label(f"whole-{name}"), 0
    while code := in_a_fork(lambda: (die_at(kills), label(name, resume=True))):  # noqa: B023
        assert code == 128 + signal.SIGKILL and kills < 99
        kills += 1
    assert kills > 6 and (tmp_path / name).read_bytes() == expected and left(tmp_path) == []


def test_logged_rows_are_on_disk_after_a_kill_at_any_write(trained, tmp_path):
    """Tests the file writer alone: a process is killed at its n-th write, for every n, and another one resumes."""
    config = Config(**trained)
    _, featurizer = load_trained(config.run_dir / "checkpoints/best", config, torch.device("cpu"))
    data = MyDataset([{"text": "a", "tokens": ["a"]}] * 4, featurizer)

    def write(path):
        output = Output(path, {"what": 1}, 12)
        is_whole = path.exists() and path.read_bytes() != b"old" and output.progress.exists()
        with output.opened(resume=True, force=False) as done:
            assert not is_whole or done == 12
            for start in range(done, 12, 4):
                output.add([{"id": i, "text": "a" * 40} for i in range(start, start + 4)], data)
            output.finish()

    write(tmp_path / "whole.csv")
    expected, deaths = (tmp_path / "whole.csv").read_bytes(), 0
    for deaths in range(99):
        path = tmp_path / f"{deaths}.csv"
        path.write_bytes(b"old")
        if in_a_fork(lambda: (die_at(deaths), write(path))) == 0:  # noqa: B023
            break
        assert path.read_bytes() in (b"old", expected)
        write(path)
        assert path.read_bytes() == expected
    assert 30 < deaths < 98 and left(tmp_path) == []


def test_signal_stops_between_batches_and_resume_continues(label, pools, tmp_path, monkeypatch, caplog):
    logging.getLogger("template").propagate = True
    expected, calls, add = label("whole.csv"), [], Output.add

    def signalled(self, rows, data):
        add(self, rows, data)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        calls.append(self.rows)

    monkeypatch.setattr(Output, "add", signalled)
    with pytest.raises(Interrupted) as stopped:
        label()
    assert stopped.value.signal_number == signal.SIGTERM and calls == [POOL, 2 * POOL]
    assert "16 of 38 rows are in" in caplog.text and "the same command with --resume continues" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and not (tmp_path / "out.csv").exists()
    assert label(resume=True) == expected
    assert calls[2:] == [24, 32, 38]  # nothing is labelled twice


@pytest.fixture
def stopped(label, pools, tmp_path):
    """Writes two pools of out.csv, as left by a killed run."""

    def run():
        add = Output.add

        def add_and_die(self, rows, data):
            add(self, rows, data)
            if self.rows == 2 * POOL:
                os.kill(os.getpid(), signal.SIGKILL)

        Output.add = add_and_die
        label()

    assert in_a_fork(run) == 128 + signal.SIGKILL
    return tmp_path / "out.csv.partial"


def test_resume_after_a_change_is_rejected_and_loses_nothing(stopped, label, texts):
    there = stopped.read_bytes()
    with pytest.raises(
        UserError, match=r"--precision was 'fp32', is 'bf16'; remove .* to start over, or add --force_resume"
    ):
        label(resume=True, precision="bf16")
    with pytest.raises(UserError, match=r"rows in a pool was 8, is 7; .*--eval_batch_size was 4, is 7"):
        label(resume=True, eval_batch_size=7)
    expected, before = label("whole.csv"), texts.read_bytes()
    texts.write_bytes(before.replace(b"number 30", b"number 31"))
    with pytest.raises(UserError, match="SHA-256 of the input") as refused:
        label(resume=True, force_resume=True)
    assert "--force_resume" not in str(refused.value)  # rows of two files would be mixed
    assert stopped.read_bytes() == there
    texts.write_bytes(before)
    assert label(resume=True) == expected


def test_resume_with_another_model_needs_force_resume(stopped, label, trained, tmp_path):
    other = trained | {"output_dir": str(tmp_path / "other"), "device": "cpu"}
    main(Config(**{**TINY, "epochs": 1, "random_seed": 1} | other, do_train=True))
    checkpoint = str(tmp_path / "other/run/checkpoints/best")
    with pytest.raises(UserError, match="SHA-256 of the checkpoint was"):
        label(resume=True, checkpoint=checkpoint)
    before = stopped.read_bytes()
    assert label(resume=True, force_resume=True, checkpoint=checkpoint).startswith(before)


def test_without_resume_labelling_restarts_and_logs_it(stopped, label, caplog):
    logging.getLogger("template").propagate = True
    stopped.write_bytes(b"from elsewhere")
    assert label() == label("whole.csv")
    assert "out.csv.partial: discarding the rows of an earlier run, because --resume is not given" in caplog.text


def test_missing_partial_output_is_labelled_again(stopped, label):
    stopped.unlink()
    stopped.with_suffix("").write_text("an older output")
    assert label(resume=True) == label("whole.csv")


def test_damaged_partial_output_is_rejected(stopped, label):
    stopped.write_bytes(stopped.read_bytes()[:-1])
    with pytest.raises(UserError, match="is shorter than the 16 rows recorded"):
        label(resume=True)
    (stopped.parent / "out.csv.partial.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        label(resume=True)


@pytest.mark.slow
def test_resume_after_random_kills_is_bit_exact(trained, texts, label, pools, tmp_path, python):
    texts.write_text("".join(f"play song number {n} by Adele\n" for n in range(4000)))
    expected, rng, kills = label("whole.csv"), random.Random(0), 0
    command = small_pools(python, trained, texts, tmp_path / "out.csv", "--resume")
    while kills < 3:
        run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        progress, target = tmp_path / "out.csv.partial.json", rng.randrange(200, 1000) * (kills + 1)
        while run.poll() is None and rows_in(progress) < target:
            time.sleep(0.001)
        assert run.poll() is None, "it ended before it could be killed"
        run.kill()
        run.wait()
        kills += 1
    assert rows_in(progress) >= 200 and not (tmp_path / "out.csv").exists()
    assert subprocess.run(command, cwd=tmp_path, stderr=subprocess.DEVNULL).returncode == 0
    assert (tmp_path / "out.csv").read_bytes() == expected and left(tmp_path) == []


def rows_in(progress):
    with contextlib.suppress(OSError):
        return json.loads(progress.read_text())["rows"]
    return -1


def small_pools(python, trained, texts, output, *more):
    """Returns the command of a process that labels in pools of 8 rows."""
    flags = {**trained, "predict_file": texts, "predict_output": output, "eval_batch_size": 4}
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import main, engine.predict.labelling as l; l.POOL = {POOL}"
    code += "; from config import Config; sys.exit(main.run_command(main.main, Config))"
    return [python, "-c", code, "--do_predict", *more, *(f"--{name}={value}" for name, value in flags.items())]


# ---- shards, several processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_concatenated_shards_equal_the_whole_output(shards, label, pools, tmp_path):
    """Also with more shards than pools, so that some are empty."""
    whole = {name: label(name) for name in ("whole.jsonl", "whole.csv")}
    for number in range(1, shards + 1):
        for name in ("out.jsonl", "out.csv"):
            assert label(name, shard=f"{number}/{shards}") is None  # under another name
    lines = [sorted(tmp_path.glob(f"out-?-of-{shards}.{kind}")) for kind in ("jsonl", "csv")]
    assert [len(paths) for paths in lines] == [shards, shards]
    assert b"".join(path.read_bytes() for path in lines[0]) == whole["whole.jsonl"]
    join = "NR == 1 || FNR > 1"  # the command in docs/labelling.md
    assert join in (ROOT / "docs/labelling.md").read_text(encoding="utf-8")
    assert subprocess.run(["awk", join, *lines[1]], capture_output=True).stdout == whole["whole.csv"]


def test_each_row_is_in_one_shard_and_pools_are_not_split():
    for size in (0, 1, 7, 8, 9, 100):
        for shards in (1, 2, 5, 16):
            parts = [rows_of_shard(size, 8, f"{number}/{shards}") for number in range(1, shards + 1)]
            assert [row for part in parts for row in part] == list(range(size))
            assert all(part.start % 8 == 0 or not part for part in parts)
            assert max(map(len, parts)) - min(map(len, parts)) <= 8
    assert path_of_shard("a/b.csv", "3/16").name == "b-03-of-16.csv" and path_of_shard("a/b.csv", "").name == "b.csv"


@pytest.mark.parametrize("shard", ["3", "0/4", "5/4", "a/b", "1/", "-1/4", "1/0"])
def test_invalid_shard_is_rejected(shard):
    with pytest.raises(UserError, match="--shard="):
        Config(do_predict=True, shard=shard)
    with pytest.raises(UserError, match="requires --do_predict"):
        Config(do_train=True, do_predict=True, shard="1/2")


@pytest.mark.slow
def test_torchrun_output_is_byte_identical_and_resumable(trained, label, texts, tmp_path, python):
    texts.write_text("".join(f"play song number {n} by Adele\n" for n in range(5000)))
    expected = label("whole.csv", eval_batch_size=64)
    flags = [f"--{name}={value}" for name, value in trained.items()]
    words = [*flags, "--do_predict", "--predict_file", texts, "--predict_output", tmp_path / "out.csv"]
    code = "import os, signal; from engine.predict.labelling import Output; add = Output.add\n"
    code += "def dying(self, rows, data):\n    add(self, rows, data)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "dying.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}Output.add = dying\nimport main\n"
        "from config import Config\nsys.exit(main.run_command(main.main, Config))\n"
    )
    torchrun(python, 2, tmp_path / "dying.py", *words, cwd=tmp_path, check=1)
    assert rows_in(tmp_path / "out.csv.partial.json") == 4096
    torchrun(python, 2, "main.py", *words, "--resume", cwd=tmp_path)
    assert (tmp_path / "out.csv").read_bytes() == expected and left(tmp_path) == []


# ---- errors, a full disk, two processes at once ----------------------------------------------------------------------


def test_invalid_row_is_reported_before_the_model_is_loaded(label, texts, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("".join(json.dumps({"text": "a" if n != 900 else None}) + "\n" for n in range(1000)))
    with pytest.raises(UserError, match=r"bad.jsonl, row 901: the text None is not a string"):
        label(predict_file=str(bad), checkpoint="nowhere")
    assert left(tmp_path) == []


def test_row_without_its_fields_is_reported_before_labelling(tmp_path):
    (tmp_path / "texts.csv").write_text("text,age\n" + "a,1\n" * 500 + "a,old\n")
    rows = TextRows(tmp_path / "texts.csv", partial(read_texts, tmp_path / "texts.csv", ReadOptions()))
    tasks = {"mood": Task("classification", labels=["a"], extras={"age": {"mean": 0, "std": 1}})}
    with pytest.raises(UserError, match=r"texts.csv, text 501: age is 'old'"):
        check_all(rows, tasks)


def test_file_that_shrinks_during_labelling_is_reported(label, texts, pools, monkeypatch):
    read = labelling.examples_of
    monkeypatch.setattr(labelling, "examples_of", lambda *args: (texts.write_text("a\n"), read(*args))[1])
    with pytest.raises(UserError, match="has fewer rows than at the start of the run"):
        label()


def test_invalid_output_is_a_one_line_error(label, texts, tmp_path):
    with pytest.raises(UserError, match=r"cannot be written .*choose another --predict_output"):
        label(predict_output=str(texts / "out.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder.csv: is a folder"):
        label("folder.csv")


def test_full_disk_loses_no_predictions(label, pools, trained, tmp_path, capfd):
    """Files can grow to 3,000 bytes; the new run folder is not removed, because it has output."""
    expected, best = label("whole.csv"), f"{trained['output_dir']}/run/checkpoints/best"
    new = dict(checkpoint=best, predict_output="", output_dir=str(tmp_path / "new"))

    def on_a_small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        label(**new)

    assert len(expected) > 4000 and in_a_fork(on_a_small_disk) == 2
    printed = capfd.readouterr().err.strip().splitlines()[-1]
    assert "predictions.csv.partial: cannot be written (file too large); 16 of 38 rows are saved" in printed
    label(**new, resume=True)
    assert (tmp_path / "new/run/predictions.csv").read_bytes() == expected


def test_two_processes_cannot_write_the_same_output(label, tmp_path):
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        with hold(tmp_path / ".out.csv.lock", "", "", ""):
            os.write(say, b"1")
            signal.pause()
    os.read(ready, 1)
    try:
        with pytest.raises(UserError, match=r"out.csv is in use by another process; .* another --predict_output"):
            label()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert label()


# ---- spreadsheets ----------------------------------------------------------------------------------------------------


def test_spreadsheet_formulas_are_escaped_on_request(label, texts, tmp_path):
    dangerous = ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "a=1", "'=1", ""]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in dangerous))
    plain = [row["text"] for row in read_csv(label(predict_file=str(path)))]
    safe = [row["text"] for row in read_csv(label(predict_file=str(path), spreadsheet_safe=True))]
    assert plain == dangerous
    assert safe == ["'=1+1", "'+1", "'-1", "'@SUM(1)", "'\t=1", "a=1", "'=1", ""]
    with pytest.raises(UserError, match=r"--spreadsheet_safe requires a .csv file"):
        Config(do_predict=True, predict_output="a.jsonl", spreadsheet_safe=True)


def test_column_names_are_escaped_and_numbers_unchanged(tmp_path):
    with open(tmp_path / "a.csv", "w", newline="") as file:
        write_rows([{"@x": -0.5, "y": "\r=1", "z": ["=1"]}], file, as_jsonl=False, spreadsheet_safe=True)
    assert (tmp_path / "a.csv").read_bytes() == b"""'@x,y,z\r\n-0.5,"'\r=1","[""=1""]"\r\n"""


def read_csv(content):
    return list(csv.DictReader(content.decode().splitlines(keepends=True)))


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_rows(trained, texts, tmp_path):
    """Compares the peak memory, as reported by the kernel, for one pool of 4,096 rows and for ten times as many."""
    peaks = []
    for rows in (4096, 40960):
        texts.write_text("".join(f"play song number {n % 97} by Adele\n" for n in range(rows)))
        flags = {**trained, "predict_file": texts, "predict_output": tmp_path / "out.csv", "eval_batch_size": 256}
        words = [f"--{name}={value}" for name, value in flags.items()]
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import main, resource; from config import Config; "
        code += "assert main.run_command(main.main, Config) == 0; "
        code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        done = subprocess.run([sys.executable, "-c", code, "--do_predict", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1.05 * peaks[0], peaks
