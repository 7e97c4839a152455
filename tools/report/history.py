"""Reads the learning curves and the log of a run, and diagnoses overfitting."""

import json
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import metrics
from engine.schema import Number, mismatch

STEP = {"step": int, "epoch": int}
History = dict[str, Any]  # from read_history


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the numeric values of each record in a .jsonl file. Returns [] if the file does not exist. Skips invalid
    lines, which a killed run may leave."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if not mismatch(record, STEP):
                records.append({name: value for name, value in record.items() if not mismatch(value, Number)})
    return records


def read_history(folder: str | Path) -> History:
    """Reads {"steps": [losses], "epochs": [dev scores], "pace": [throughput]}, each a list of records ordered by step.
    Uses the last record of a step that a resumed run repeated."""
    records = read_lines(Path(folder) / "metrics.jsonl")
    steps = {r["step"]: r for r in records if "lr" in r and r.get("loss") is not None}
    epochs = {r["epoch"]: r for r in records if any(name.startswith("dev_") for name in r)}
    pace = {r["step"]: r for r in read_lines(Path(folder) / "throughput.jsonl")}
    ordered = ([table[key] for key in sorted(table)] for table in (steps, epochs, pace))
    return dict(zip(("steps", "epochs", "pace"), ordered))


def epoch_losses(history: History) -> list[tuple[int, float | None, float | None]]:
    """Returns [(epoch, mean training loss, dev loss)]. The training loss of an epoch without records is None."""
    result = []
    for record in history["epochs"]:
        losses = [r["loss"] for r in history["steps"] if r["epoch"] == record["epoch"]]
        result.append((record["epoch"] + 1, float(np.mean(losses)) if losses else None, record.get("dev_loss")))
    return result


def best_epoch(history: History, monitor: str) -> int | None:
    """Returns the one-based epoch with the best dev score (on ties, the first one), or None if there are no scores."""
    lower = metrics.lower_is_better(monitor)
    scores = [(r["epoch"] + 1, r.get(f"dev_{monitor}")) for r in history["epochs"]]
    scores = [(epoch, -value if lower else value) for epoch, value in scores if value is not None and value == value]
    return max(scores, key=lambda item: (item[1], -item[0]))[0] if scores else None


def verdict(history: History, monitor: str) -> tuple[str, dict[str, Any]]:
    """Diagnoses over- and underfitting. Returns (key of a sentence in templates/, values for it).

    Let T(e) be the mean training loss of epoch e, D(e) the dev loss after it, m the epoch with the lowest D, and n the
    last epoch:

    - "overfit": D(n) > 1.05 D(m) and T(n) < T(m), that is, the dev loss rose by more than 5 % while the training loss
      fell. "overfit_score_rises": the same, but the monitored score was best after m: the model became overconfident
      before the score decreased.
    - "underfit": otherwise, if n is both m and the best epoch, and D fell by more than 2 % in the last epoch.
    - "level": otherwise. "short": fewer than two epochs, so there is no diagnosis.

    T is never compared with D, because label smoothing, class weights and dropout change T.
    """
    losses: list[Any] = [item for item in epoch_losses(history) if None not in item and item[2] == item[2]]
    if len(losses) < 2:
        return "short", {}
    low = min(losses, key=lambda item: item[2])
    last, before, best = losses[-1], losses[-2], best_epoch(history, monitor)
    numbers = {"low": low[0], "last": last[0], "best": best, "dev_low": low[2], "dev_last": last[2]}
    numbers |= {"train_low": low[1], "train_last": last[1], "dev_before": before[2], "monitor": monitor}
    if last[2] > 1.05 * low[2] and last[1] < low[1]:
        return "overfit_score_rises" if best is not None and best > low[0] else "overfit", numbers
    if low[0] == last[0] == best and last[2] < 0.98 * before[2]:
        return "underfit", numbers
    return "level", numbers


def read_log(path: str | Path | None) -> dict[str, Any]:
    """Reads {"warnings": [[message, count]], "started", "ended", "stopped_early"} from a train.log."""
    exists = path and Path(path).is_file()
    lines = Path(path or "").read_text(encoding="utf-8", errors="replace").splitlines() if exists else []
    pattern = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (\w+) (.*)")
    records = [match.groups() for match in map(pattern.match, lines) if match]
    warnings = Counter(message for _, level, message in records if level in ("WARNING", "ERROR"))
    return {
        "warnings": [[message, count] for message, count in warnings.items()],
        "started": records[0][0] if records else None,
        "ended": records[-1][0] if records else None,
        "stopped_early": any(message.startswith("stopped early") for _, _, message in records),
    }
