"""Writes the results of a search (trials.csv, search.json, search.svg) and prints a summary."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import metrics
from engine.run.atomic import atomic_file
from engine.run.files import write_csv, write_json
from tools.search.finals import FinalStage
from tools.search.paired import interval, verdict
from tools.search.picture import draw
from tools.search.plan import Plan, as_flags
from tools.search.study import STATES, Study

SHOWN = 12  # rows of the table in the terminal
Row = dict[str, Any]


def trial_rows(study: Study) -> list[Row]:
    """Returns [{"number", "state", "score", "best_epoch", "params", "values", "default", "epochs", "reason", …}] in
    order. score: the best dev score of the trial so far, or None."""
    rows = []
    for trial in study.trials:
        scores, attributes = trial.intermediate_values, trial.user_attrs
        best = (min if study.lower else max)(scores.values(), default=None)
        row = {"number": trial.number, "state": STATES[trial.state], "score": best}
        row |= {"default": trial.number == 0, "params": dict(trial.params)}
        row["epochs"] = {str(epoch): score for epoch, score in sorted(scores.items())}
        names = ("values", "best_epoch", "twin", "reason", "code", "seconds", "cpu_seconds")
        rows.append(row | {name: attributes[name] for name in names if attributes.get(name) is not None})
    return rows


def write_trials(plan: Plan, study: Study) -> list[Row]:
    """Writes trials.csv, with one line per trial, and search.svg. Returns the rows from `trial_rows`."""
    rows = trial_rows(study)
    last = max((int(epoch) for row in rows for epoch in row["epochs"]), default=0)
    lines = []
    for row in rows:
        line = {"number": row["number"], "state": row["state"], f"dev_{plan.monitor}": row["score"]}
        line |= {"best_epoch": row.get("best_epoch", ""), "default": row["default"], "same_as": row.get("twin", "")}
        line |= {name: row["params"].get(name, "") for name in plan.space}
        line["options"] = " ".join(as_flags(row.get("values", {})))
        line |= {name: row.get(name, 0.0) for name in ("seconds", "cpu_seconds")}
        line["reason"] = row.get("reason", "")
        line |= {f"epoch_{epoch}": row["epochs"].get(str(epoch), "") for epoch in range(1, last + 1)}
        lines.append(line)
    write_csv(plan.folder / "trials.csv", lines)
    with atomic_file(plan.folder / "search.svg") as file:
        file.write(draw(rows, plan.space, plan.monitor, plan.lower))
    return rows


def write_results(plan: Plan, study: Study, rows: list[Row], stage: FinalStage | None, winner: int | None) -> None:
    """Writes search.json and prints the results. rows: from `trial_rows`. stage: None without finalists."""
    costs = cost(study)
    result: dict[str, Any] = {"monitor": plan.monitor, "known_by": plan.known_by, "trials": rows, "cost": costs}
    print(f"\n{trial_table(plan, rows)}\n")
    best = study.ranked()[0].number if winner is None else winner
    if stage is not None and winner is not None:
        gains = compare(stage, winner, plan.scores)
        result |= {"finalists": finalists(stage), "winner": winner, "gain_over_default": gains}
        seeds = f"over {plan.config.seeds} seeds"
        print(f"dev, mean ± standard deviation {seeds}:\n\n{finals_table(stage, plan.scores)}\n")
        print("\n".join(verdict_lines(plan, study, winner, gains)) + "\n")
    elif stage is not None:
        print("no finalist finished with all seeds; the command below runs the best trial\n")
    result["command"] = plan.command_to_copy(study.trials[best].user_attrs["values"])
    write_json(plan.folder / "search.json", result)
    print("\n".join(cost_lines(costs, study.counts())))
    print(f"results: {plan.folder}/search.json, trials.csv, search.svg\n\n{result['command']}")


def cost(study: Study) -> dict[str, Any]:
    """Returns the cost of both stages and an estimate of the time saved by pruning (the remaining epochs at the speed
    of each trial)."""
    saved = 0.0
    for trial in study.of_state("pruned"):
        if times := trial.user_attrs.get("times"):
            (first, start), (last, end) = times[0], times[-1]
            pace = (end - start) / (last - first) if last > first else end / last
            saved += pace * (trial.user_attrs["epochs"] - last)
    spent = sum(trial.user_attrs.get("cpu_seconds", 0.0) for trial in study.trials)
    return {
        "search": {"seconds": study.get("search_seconds", 0.0), "cpu_seconds": round(spent, 2)},
        "final": {"seconds": study.get("final_seconds", 0.0), "cpu_seconds": study.get("final_cpu_seconds", 0.0)},
        "pruning_saved_seconds_estimate": round(saved, 1),
    }


def finalists(stage: FinalStage) -> list[Row]:
    """Returns one row per finalist with its scores for each seed, which are None for failed runs."""
    return [
        {
            "number": number,
            "values": stage.study.trials[number].user_attrs["values"],
            "failed": stage.failed.get(number),
            "dev": [(stage.find(number, seed) or {}).get("dev") for seed in stage.seeds],
            "test": [stage.find(number, seed, "test") for seed in stage.seeds],
        }
        for number in stage.numbers
    ]


def compare(stage: FinalStage, winner: int, scores: Sequence[str]) -> dict[str, Row] | None:
    """Compares the winner with the default over the same seeds on test, or on dev if there is no test split. Returns
    {score: {"part", "default", "winner", "gain", "low", "high", "verdict"}}, or None if a run failed. Gains are
    positive for improvements, also for losses."""
    split, kind = ("test", "test") if stage.plan.has_test else ("dev", "final")
    before, after = stage.of_all_seeds(0, kind), stage.of_all_seeds(winner, kind)
    if before is None or after is None:
        return None
    if split == "dev":
        before, after = ([result["dev"] for result in results] for results in (before, after))
    gains_by_score = {}
    for score in scores:
        if not all(score in result for result in before + after):
            continue  # this split has no labels for the score
        default, best = ([result[score] for result in results] for results in (before, after))
        gains = [new - old if is_percent(score) else old - new for old, new in zip(default, best)]
        bounds = interval(gains)
        gains_by_score[score] = {"part": split, "default": default, "winner": best, "gain": statistics.fmean(gains)}
        gains_by_score[score] |= {"low": bounds and bounds[0], "high": bounds and bounds[1], "verdict": verdict(bounds)}
    return gains_by_score


# ---- terminal output -------------------------------------------------------------------------------------------------


def is_percent(score: str) -> bool:
    """Returns whether a score is shown in percent, which is the case unless it is a loss or an error."""
    return not metrics.lower_is_better(score)


def shown(value: float, score: str, sign: str = "") -> str:
    return f"{100 * value:{sign}.2f}" if is_percent(score) else f"{value:{sign}.4f}"


def spread(values: list[float], score: str) -> str:
    """Formats mean and standard deviation of a score as '97.78 ± 0.09'."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{shown(statistics.fmean(values), score)} ± {shown(deviation, score)}"


def aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def trial_table(plan: Plan, rows: list[Row]) -> str:
    """Formats a table of the best trials and the default."""
    order = {"finished": 0, "pruned": 1, "failed": 2, "stopped": 3}

    def rank(row: Row) -> tuple[int, float, int]:
        score = math.inf if row["score"] is None else row["score"] if plan.lower else -row["score"]
        return order[row["state"]], score, row["number"]

    ranked = sorted(rows, key=rank)
    selected = ranked[:SHOWN] + [row for row in ranked[SHOWN:] if row["default"]]
    lines = [["trial", f"dev {plan.monitor}", "epoch", *plan.space, "seconds", ""]]
    for row in selected:
        notes = ["default"] if row["default"] else []
        notes += [row["state"]] if row["state"] != "finished" else []
        notes += [f"same as {row['twin']}"] if "twin" in row else []
        score = "-" if row["score"] is None else f"{row['score']:.4f}"
        epoch = str(row.get("best_epoch", len(row["epochs"]) or "-"))
        options = [str(row["params"].get(name, "-")) for name in plan.space]
        lines.append([str(row["number"]), score, epoch, *options, f"{row.get('seconds', 0):.0f}", " ".join(notes)])
    num_hidden = len(ranked) - len(selected)
    return aligned(lines) + (f"\n… {num_hidden} more in trials.csv" if num_hidden else "")


def finals_table(stage: FinalStage, scores: Sequence[str]) -> str:
    lines = [["trial", *(f"dev {score}" for score in scores)]]
    for number in stage.ranked():
        cells = []
        for score in scores:
            values = [r["dev"][score] for r in stage.of_all_seeds(number) or () if score in r["dev"]]
            cells.append(spread(values, score) if values else "-")
        lines.append([f"{number} (default)" if number == 0 else str(number), *cells])
    return aligned(lines)


def verdict_lines(plan: Plan, study: Study, winner: int, gains: dict[str, Row] | None) -> list[str]:
    """Describes the winner and its gain over the default."""
    if gains is None:
        return [f"trial {winner} wins on dev; its gain is unknown, because some runs failed"]
    if winner == 0:
        scores = ", ".join(f"{score} {spread(cell['default'], score)}" for score, cell in gains.items())
        split = "test" if plan.has_test else "dev"
        return [f"the default wins: no finalist has a better mean on dev; its scores on {split}: {scores}"]
    lines = [f"trial {winner} wins on dev; its gains over the default:"]
    for score, cell in gains.items():
        ends = [shown(cell[end], score, "+") for end in ("low", "high") if cell[end] is not None]
        gain = shown(cell["gain"], score, "+") + (f" [{', '.join(ends)}]" if ends else "")
        sides = f"default {spread(cell['default'], score)}, winner {spread(cell['winner'], score)}"
        lines.append(f"{cell['part']} {score}: {sides}; gain {gain}, {cell['verdict']}")
    if not plan.has_test:
        lines.append("there is no test split; the winner was selected on these dev scores, so they are optimistic;")
        lines.append("hold out some data with data_process.py --test_ratio 0.1")
    elif gains.get(plan.monitor, {}).get("verdict") != "significant":
        lines.append("the gain is not significant, so the default may be as good")
    scored = {name.split()[1] for name in study.stored.user_attrs if name.startswith("test ")} - {"0"}
    if len(scored) > 1:
        lines.append(f"test has been scored for {len(scored)} winners of this extended search; its scores are biased")
    return lines


def cost_lines(spent: dict[str, Any], counts: dict[str, int]) -> list[str]:
    search, final = spent["search"], spent["final"]
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lines = [f"search: {states}; {search['seconds']:.0f} s, {search['cpu_seconds']:.0f} s of CPU time"]
    if counts["pruned"]:
        saved = f"pruning saved about {spent['pruning_saved_seconds_estimate']:.0f} s"
        lines.append(f"{saved} (an estimate: the remaining epochs at each trial's speed)")
    if final["seconds"]:
        lines.append(f"finalists: {final['seconds']:.0f} s, {final['cpu_seconds']:.0f} s of CPU time")
    return lines
