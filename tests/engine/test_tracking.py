"""--report_to: real services in offline mode, killed and resumed runs, trackers that fail or draw random numbers."""

import json
import os
import random
import signal
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from forks import Forks
from test_trainer import make_trainer

import logging_config
from engine.errors import UserError
from engine.train import tracking
from logging_config import TensorBoard, chosen_trackers

SMALL = "--device=cpu --epochs=2 --batch_size=8 --save_steps=1 --log_steps=2 --early_stop_patience=0 --hidden_size=32"
SMALL += " --num_layers=1 --vocab_size=500 --max_length=48 --no_use_crf"


def records_of(path):
    """Reads the records of a LevelDB log, in which wandb and SwanLab store data to upload; its header has 7 bytes."""
    data, at, part = Path(path).read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):
            yield part
            part = b""


def points_of_wandb(run):
    from wandb.proto.wandb_internal_pb2 import Record

    for file in run.glob("wandb/offline-run-*/*.wandb"):
        for data in records_of(file):
            record = Record()
            record.ParseFromString(data)
            row = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            yield from ((name, row["step"], value) for name, value in row.items() if name[0] != "_")


def points_of_swanlab(run):
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    for file in run.glob("swanlab/*/*.swanlab"):
        for data in records_of(file):
            record = Record()
            record.ParseFromString(data)
            if record.HasField("scalar") and record.scalar.key[0] != "_":
                yield record.scalar.key, record.scalar.step, record.scalar.value.number


def points_of_mlflow(run):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.parent}/mlflow.db")
    for found in client.search_runs([client.get_experiment_by_name("fine-tuning").experiment_id]):
        if found.info.run_name == run.name:
            for name in found.data.metrics:
                yield from (
                    (name, each.step, each.value) for each in client.get_metric_history(found.info.run_id, name)
                )


SERVICES = {"wandb": points_of_wandb, "swanlab": points_of_swanlab, "mlflow": points_of_mlflow}


def expected_points(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return Counter((name, row["step"], value) for row in rows for name, value in row.items() if name not in IGNORED)


IGNORED = ("step", "epoch")


@pytest.mark.slow
@pytest.mark.parametrize("service", SERVICES)
def test_killed_run_continues_its_curves(service, sample, tmp_path, fork_server):
    """The result is bit-exact with that of a run without a tracker."""
    pytest.importorskip(service)
    if service == "mlflow":
        pytest.importorskip("sqlalchemy")
    env = {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    log = tmp_path / "log.txt"

    def train(name, report_to, code=0, kill_at=None):
        words = ["main.py", "--do_train", "--resume", *SMALL.split(), "--data_path", sample, "--output_dir", tmp_path]
        words += ["--model_version", name, "--report-to", report_to]
        forks.ask("", words, tmp_path, [os.devnull, log, log], kill_at, env=env)
        assert forks.wait("") == code, log.read_text()[-3000:]

    with Forks(ROOT, tmp_path, fork_server) as forks:
        train("plain", "none")
        train("run", f"{service},tensorboard", -signal.SIGKILL, [str(tmp_path / "run/checkpoints"), 7])
        train("run", service)
    found = Counter(point for point in SERVICES[service](tmp_path / "run") if point[0] not in IGNORED)
    expected = expected_points(tmp_path / "run")
    assert expected and found.keys() == expected.keys()
    if service == "mlflow":  # other trackers may lose the points of the last second, which are sent again
        assert found == expected
    for part in ("metrics.jsonl", "checkpoints/best/weights.safetensors"):
        assert (tmp_path / "run" / part).read_bytes() == (tmp_path / "plain" / part).read_bytes()
    (state,) = (tmp_path / "plain/checkpoints").glob("step_*16/training.json")
    assert state.read_bytes() == (tmp_path / "run" / state.relative_to(tmp_path / "plain")).read_bytes()


@pytest.mark.parametrize("delay", [0, 10_000])
def test_unsent_points_are_sent_again_after_a_kill(delay, tiny, service, monkeypatch):
    monkeypatch.setattr(service, "delay", delay, raising=False)
    config = tiny()
    config.run_dir.mkdir(parents=True)
    records = [
        {"step": 2, "loss": 1.0},
        {"step": 4, "loss": 0.5},
        {"step": 4, "dev_loss": 0.5},
        {"step": 6, "loss": 0.4},
    ]
    killed = tracking.Tracking(service, config, 0)
    for record in records[:3]:
        killed.log(record)
    resumed = tracking.Tracking(service, config, 1)
    for record in records:
        resumed.log(record)
    assert service.points == [*records[:3], *(records if delay else records[3:])]
    resumed.close()
    service.points.clear()
    tracking.Tracking(service, config, 1).log(records[-1])
    assert service.points == []


class Service:
    """A tracker whose service is unavailable for some records; it draws random numbers, like SwanLab."""

    down, points, closed = range(0), [], []

    def __init__(self, config, step):
        random.random(), np.random.rand(), torch.rand(1)

    def log(self, record):
        random.random(), np.random.rand(), torch.rand(1)
        if len(self.points) in self.down and not self.closed:
            raise ConnectionError("no route to host")
        self.points.append(record)

    def close(self):
        self.closed.append(True)


@pytest.fixture
def service(monkeypatch):
    """Adds a tracker of the test, like the cookbook does."""
    monkeypatch.setattr(Service, "points", [])
    monkeypatch.setattr(Service, "closed", [])
    monkeypatch.setattr(logging_config, "TRACKERS", [TensorBoard, Service])
    return Service


def trained(config, kinds):
    trainer = make_trainer(config)
    trainer.tracker_kinds = kinds
    trainer.resume()
    trainer.train()
    return (config.run_dir / "metrics.jsonl").read_text(), [p.clone() for p in trainer.model.parameters()]


@pytest.mark.parametrize("pause", [0, 10_000])
def test_failing_service_does_not_end_the_run(pause, tiny, service, monkeypatch, logged):
    monkeypatch.setattr(tracking, "PAUSE", pause)
    plain = trained(tiny(model_version="plain"), [])

    class Flaky(service):
        failures = 3

        def log(self, record):
            if len(self.points) == 2 and Flaky.failures:
                Flaky.failures -= 1 if not pause else Flaky.failures
                raise ConnectionError("no route to host\nand more")
            super().log(record)

    tracked = trained(tiny(model_version="tracked"), [Flaky])
    assert tracked[0] == plain[0] and all(torch.equal(a, b) for a, b in zip(tracked[1], plain[1], strict=True))
    assert [json.dumps(point) for point in service.points] == plain[0].splitlines() and service.closed
    assert logged.text.count("Flaky failed: no route to host; training continues; the points are sent later") == 1


def test_unresponsive_service_gets_its_points_on_resume(tiny, service):
    class Down(service):
        def log(self, record):
            raise ConnectionError("no route to host")

    Down.name, Down.package = service.name, service.package = "service", "json"
    lines = trained(tiny(report_to="service", epochs=1), [Down])[0].splitlines()
    assert not service.points
    trained(tiny(report_to="service", epochs=1), [service])
    assert [json.dumps(point) for point in service.points] == lines
    trained(tiny(report_to="service", epochs=1), [service])
    assert len(service.points) == len(lines)
    del service.name, service.package


def test_tracker_that_cannot_start_ends_a_new_run(tiny):
    class NoLogin(Service):
        def __init__(self, config, step):
            raise RuntimeError("not logged in\nsee the manual")

    config = tiny()
    with pytest.raises(UserError, match=r"^NoLogin cannot start: not logged in; log in, use its offline mode, or"):
        trained(config, [NoLogin])
    assert not (config.run_dir / "args.json").exists()


def test_tracker_that_cannot_start_does_not_stop_a_resumed_run(tiny, service):
    whole = trained(tiny(model_version="whole"), [])

    class Gone(service):
        def __init__(self, config, step):
            raise RuntimeError("network is down")

    config = tiny()
    trainer = make_trainer(config)
    trainer.tracker_kinds = []
    trainer.resume()
    trainer.train_one_epoch(0)
    trainer.end_epoch()
    trainer.writer.wait()
    assert trained(config, [Gone])[0] == whole[0]


def test_report_to_selects_trackers(tiny):
    class Own(Service):
        pass

    class WithName(Service):
        name = package = "json"

    kinds = [TensorBoard, WithName, Own]
    assert chosen_trackers(tiny(), kinds) == [TensorBoard, Own]
    assert chosen_trackers(tiny(report_to="JSON, tensorboard"), kinds) == kinds
    assert chosen_trackers(tiny(report_to="json"), kinds) == [WithName, Own]
    assert chosen_trackers(tiny(report_to="all"), kinds) == kinds
    assert chosen_trackers(tiny(report_to="none"), kinds) == chosen_trackers(tiny(report_to=""), kinds) == []
    assert chosen_trackers(tiny(report_to="json,tensorboard", debug=True), kinds) == [TensorBoard, Own]


def test_unknown_tracker_is_rejected_before_training(command, sample, tmp_path):
    (tmp_path / "not_installed_here").mkdir()
    for named, expected in (
        (
            "wanbd",
            "--report_to=wanbd must be one of tensorboard, wandb, swanlab, mlflow, all, none; did you mean wandb?",
        ),
        ("none,wandb", "--report_to=none,wandb: none cannot be combined with other trackers"),
    ):
        done = command("main.py", "--do_train", "--data_path", sample, "--report_to", named)
        assert (done.returncode, done.stderr) == (2, f"error: {expected}\n")
    assert not (tmp_path / "output").exists()


def test_missing_tracker_package_is_named(tiny, tmp_path, monkeypatch):
    class Missing(Service):
        name = package = "not_installed_here"

    (tmp_path / "not_installed_here").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^--report_to=not_installed_here needs a package: pip install not_installed"):
        chosen_trackers(tiny(report_to="not_installed_here"), [TensorBoard, Missing])
