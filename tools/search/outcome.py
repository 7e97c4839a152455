"""The results of a search: trials.csv, search.json, search.svg, and the output in the terminal."""

import shlex
import statistics

from engine.run.files import appearing_whole, write_csv, write_json
from tools.search.paired import interval, verdict
from tools.search.picture import draw
from tools.search.study import STATES

SHOWN = 12  # rows of the table in the terminal


def score_of(trial, lower):
    """The best dev score of a trial, so far if it was pruned; None without one."""
    values = list(trial.intermediate_values.values())
    return (min if lower else max)(values) if values else None


def trial_rows(study):
    """[{"number", "state", "score", "best_epoch", "params", "values", "default", "epochs", "reason", …}] in order."""
    rows = []
    for trial in study.trials:
        kept = trial.user_attrs
        row = {"number": trial.number, "state": STATES[trial.state], "score": score_of(trial, study.lower)}
        row |= {"default": trial.number == 0, "params": dict(trial.params)}
        row["epochs"] = {str(epoch): score for epoch, score in sorted(trial.intermediate_values.items())}
        names = ("values", "best_epoch", "twin", "reason", "code", "seconds", "cpu_seconds")
        rows.append(row | {name: kept[name] for name in names if kept.get(name) is not None})
    return rows


def write_trials(folder, study, space, monitor):
    """Writes trials.csv, one line per trial, and search.svg. -> the rows of `trial_rows`"""
    rows = trial_rows(study)
    cells = []
    for row in rows:
        cell = {"number": row["number"], "state": row["state"], f"dev_{monitor}": row["score"]}
        cell |= {"best_epoch": row.get("best_epoch", ""), "default": row["default"], "same_as": row.get("twin", "")}
        cell |= {name: row["params"].get(name, "") for name in space}
        cell["options"] = " ".join(f"--{name}={value}" for name, value in row.get("values", {}).items())
        cell |= {name: row.get(name, 0.0) for name in ("seconds", "cpu_seconds")}
        cell["reason"] = row.get("reason", "")
        cells.append(cell)
    for epoch in range(1, 1 + max((int(epoch) for row in rows for epoch in row["epochs"]), default=0)):
        for row, cell in zip(rows, cells):
            cell[f"epoch_{epoch}"] = row["epochs"].get(str(epoch), "")
    write_csv(folder / "trials.csv", cells)
    with appearing_whole(folder / "search.svg") as file:
        file.write(draw(rows, space, monitor, study.lower))
    return rows


def cost(study):
    """{"search", "final": {"seconds", "cpu_seconds"}, "pruning_saved_seconds_estimate"}: the cost of both stages, and
    an estimate of what pruning saved: the remaining epochs at the trial's speed."""
    trials = study.trials
    saved = 0.0
    for trial in study.of_state("pruned"):
        times = trial.user_attrs.get("times")
        if times:
            (first, began), (last, ended) = times[0], times[-1]
            pace = (ended - began) / (last - first) if last > first else ended / last
            saved += pace * (trial.user_attrs["epochs"] - last)
    spent = sum(trial.user_attrs.get("cpu_seconds", 0.0) for trial in trials)
    return {
        "search": {"seconds": study.get("search_seconds", 0.0), "cpu_seconds": round(spent, 2)},
        "final": {"seconds": study.get("final_seconds", 0.0), "cpu_seconds": study.get("final_cpu_seconds", 0.0)},
        "pruning_saved_seconds_estimate": round(saved, 1),
    }


def compare(stage, winner, scores):
    """{score: {"part", "default", "winner", "gain", "low", "high", "verdict"}} over the same seeds on test, or on dev
    if there is no test part. None if a run failed. scores: names; a positive gain is better, also for a loss."""
    part, what = ("test", "test") if stage.setup.has_test else ("dev", "final")
    if not (stage.is_done(0, what) and stage.is_done(winner, what)):
        return None
    sides, found = {}, {}
    for name, number in (("default", 0), ("winner", winner)):
        records = [stage.find(number, seed, what) for seed in stage.seeds]
        sides[name] = records if part == "test" else [record["dev"] for record in records]
    for score in scores:
        if not all(score in record for side in sides.values() for record in side):
            continue  # this part has no such labels
        default, best = ([record[score] for record in sides[name]] for name in ("default", "winner"))
        sign = -1 if score.endswith(("loss", "_mae")) else 1
        gains = [sign * (new - old) for old, new in zip(default, best)]
        bounds = interval(gains)
        found[score] = {"part": part, "default": default, "winner": best, "gain": statistics.fmean(gains)}
        found[score] |= {"low": bounds and bounds[0], "high": bounds and bounds[1], "verdict": verdict(bounds)}
    return found


# ---- in the terminal -------------------------------------------------------------------------------------------------


def spread(values, percent):
    """Mean and deviation of scores as '97.78 ± 0.09'."""
    factor, digits = (100, 2) if percent else (1, 4)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{factor * statistics.fmean(values):.{digits}f} ± {factor * deviation:.{digits}f}"


def is_percent(score):
    return not score.endswith(("loss", "_mae"))


def columns(rows):
    """Rows of cells as aligned lines."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def table(rows, space, monitor, lower):
    """A table of the best trials and the default."""
    order = {"finished": 0, "pruned": 1, "failed": 2, "stopped": 3}
    worst = float("inf")
    key = lambda row: worst if row["score"] is None else row["score"] if lower else -row["score"]  # noqa: E731
    ranked = sorted(rows, key=lambda row: (order[row["state"]], key(row), row["number"]))
    shown = ranked[:SHOWN] + [row for row in ranked[SHOWN:] if row["default"]]
    lines = [["trial", f"dev {monitor}", "epoch", *space, "seconds", ""]]
    for row in shown:
        state = " ".join([*(["default"] if row["default"] else []), *([row["state"]] if order[row["state"]] else [])])
        state += f" same as {row['twin']}" if "twin" in row else ""
        options = [f"{row['params'][name]}" if name in row["params"] else "-" for name in space]
        score = "-" if row["score"] is None else f"{row['score']:.4f}"
        place = str(row.get("best_epoch", len(row["epochs"]) or "-"))
        lines.append([str(row["number"]), score, place, *options, f"{row.get('seconds', 0):.0f}", state.strip()])
    more = f"\n… {len(ranked) - len(shown)} more in trials.csv" if len(ranked) > len(shown) else ""
    return columns(lines) + more


def finals_table(stage, scores):
    """A table of the finalists by their mean dev score."""
    done = [number for number in stage.numbers if stage.is_done(number)]
    done.sort(key=lambda number: stage.mean(number) if stage.setup.lower else -stage.mean(number))
    lines = [["trial", *(f"dev {score}" for score in scores)]]
    for number in done:
        dev = [stage.find(number, seed)["dev"] for seed in stage.seeds]
        found = [[record[score] for record in dev if score in record] for score in scores]
        cells = [spread(values, is_percent(score)) if values else "-" for score, values in zip(scores, found)]
        lines.append([f"{number} (default)" if number == 0 else str(number), *cells])
    return columns(lines)


def gain_lines(compared):
    """One line per score: default, winner, and the gain with its interval."""
    lines = []
    for score, found in compared.items():
        percent = is_percent(score)
        factor, digits = (100, 2) if percent else (1, 4)
        ends = [found[end] for end in ("low", "high") if found[end] is not None]
        bounds = f" [{', '.join(f'{factor * end:+.{digits}f}' for end in ends)}]" if ends else ""
        sides = f"default {spread(found['default'], percent)}, winner {spread(found['winner'], percent)}"
        gain = f"gain {factor * found['gain']:+.{digits}f}{bounds}, {found['verdict']}"
        lines.append(f"{found['part']} {score}: {sides}; {gain}")
    return lines


def cost_lines(spent, counts):
    """Lines with the cost of both stages."""
    search, final = spent["search"], spent["final"]
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lines = [f"search: {told}; {search['seconds']:.0f} s, {search['cpu_seconds']:.0f} s of CPU time"]
    if counts["pruned"]:
        saved = f"pruning saved about {spent['pruning_saved_seconds_estimate']:.0f} s"
        lines.append(f"{saved} (an estimate: the remaining epochs at each trial's speed)")
    if final["seconds"]:
        lines.append(f"finalists: {final['seconds']:.0f} s, {final['cpu_seconds']:.0f} s of CPU time")
    return lines


def command_of(setup, values, monitor):
    """The command of main.py for a trial's options, ready to copy."""
    flags = [flag for pair in zip(setup.flags[:4:2], setup.flags[1:4:2]) if pair[1] for flag in pair] + setup.flags[4:]
    own = [f"--{name}={value}" for name, value in values.items()]
    words = ["main.py", *flags, *(["--monitor", monitor] if monitor else []), *own, "--do_train", "--do_eval"]
    return shlex.join(["python", *words])


def tell(config, setup, study, space, scores, known_by, rows, stage, winner):
    """Writes search.json and prints the results. stage: the FinalStage, or None without one"""
    spent, counts = cost(study), study.counts()
    found = {"monitor": setup.monitor, "known_by": known_by, "trials": rows, "cost": spent}
    print(f"\n{table(rows, space, setup.monitor, setup.lower)}\n")
    if winner is not None:
        compared = compare(stage, winner, scores)
        found |= {"finalists": finalists(stage), "winner": winner, "gain_over_default": compared}
        print(f"dev, mean ± standard deviation over {config.seeds} seeds:\n\n{finals_table(stage, scores)}\n")
        print("\n".join(verdict_lines(setup, study, winner, compared)) + "\n")
    elif stage is not None:
        print("no finalist finished with all seeds; the command below is that of the best trial\n")
    best = winner if winner is not None else study.ranked()[0].number
    found["command"] = command_of(setup, study.trials[best].user_attrs["values"], config.monitor)
    write_json(setup.folder / "search.json", found)
    print("\n".join(cost_lines(spent, counts)))
    print(f"results: {setup.folder}/search.json, trials.csv, search.svg\n\n{found['command']}")


def finalists(stage):
    """[{"number", "values", "dev": [{score: value} of each seed], "test": the same or None}]"""
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


def verdict_lines(setup, study, winner, compared):
    """Lines with the winner and its gain on data not used for any choice."""
    if compared is None:
        return [f"trial {winner} wins on dev; some of its runs or of the default's failed, so its gain is unknown"]
    if winner == 0:
        sides = [f"{name} {spread(found['default'], is_percent(name))}" for name, found in compared.items()]
        part = "test" if setup.has_test else "dev"
        return [f"the default wins: no finalist has a better mean on dev; its scores on {part}: {', '.join(sides)}"]
    lines = [f"trial {winner} wins on dev; its gains over the default:", *gain_lines(compared)]
    if not setup.has_test:
        lines.append("there is no test part: these are the dev scores it was chosen by, and dev flatters it;")
        lines.append("hold out some data with data_process.py --test_ratio 0.1")
    elif compared.get(setup.monitor, {}).get("verdict") != "significant":
        lines.append("with other seeds the sign could change: the default may be as good")
    looked = {name.split()[1] for name in study.kept.user_attrs if name.startswith("test ")} - {"0"}
    if len(looked) > 1:
        lines.append(f"test has now been scored for {len(looked)} winners of this extended search, so trust it less")
    return lines
