"""Writes README.md of an export: the model card of a run, from its files.

Its head is YAML as the Hugging Face hub reads it, with the scores as `model-index`. What only you know, such as the
licence, is marked with TO FILL IN. Local paths are left out.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from config import Config
from engine.errors import UserError
from engine.predict.stored import SPLITS
from engine.run.command_line import first_line
from engine.task.task import PLACES, Task
from tools.report.collect import collect

logger = logging.getLogger("template")
FILL_IN = "**TO FILL IN**"
KINDS = dict.fromkeys(("tagging", "words", *PLACES), "token-classification")  # the hub's name of a task, by kind
READ = {"head": "only the start", "tail": "only the end", "head_tail": "the start and the end", "windows": "all of it"}
LISTED = 50  # labels, and confusions of a task
# Options that say where something is, or how a command was run, rather than how the model was trained
ELSEWHERE = "data_path output_dir model_version pretrain_model_path init_from teacher unlabelled checkpoint "
ELSEWHERE += "predict_file predict_output log_output_path log_output_file version device gpus report_to resume fold "
ELSEWHERE += "do_train do_eval do_predict calibrate"
USES = {
    "onnx": "```sh\npip install -r requirements.txt\npython predictor.py texts.txt labelled.jsonl\n```",
    "transformers": """```python
from transformers import pipeline

pipeline("{pipeline}", model="THIS_FOLDER_OR_NAME")("a text")
```""",
    "sentence-transformers": """```python
from sentence_transformers import SentenceTransformer

SentenceTransformer("THIS_FOLDER_OR_NAME").encode(["a text"])
```""",
}


def write_card(folder: Path, to: str, checkpoint: Path, tasks: dict[str, Task]) -> None:
    """Writes README.md of an export (`to`) of a checkpoint, with scores if the run has been evaluated."""
    run, options = checkpoint.parent.parent, Config.load(checkpoint / "args.json")
    report: dict[str, Any] = {}
    if (run / "answers").is_dir() and checkpoint.name == "best":
        report = collect(run)[0]
    else:
        logger.warning(f"README.md of the export has no scores: {checkpoint} was not evaluated; run --do_eval before")
    name = run.name if checkpoint.parent.name == "checkpoints" else checkpoint.name
    (folder / "README.md").write_text(card_of(name, to, options, tasks, report), encoding="utf-8")


def card_of(name: str, to: str, options: Config, tasks: dict[str, Task], report: dict[str, Any]) -> str:
    """Returns the text of a model card. report: the figures of `collect`; {} without an evaluation"""
    kind = KINDS.get(next(iter(tasks.values())).kind, "text-classification")
    base = options.pretrain_model_path
    data, alone = Path(options.data_path).name, to == "sentence-transformers"
    head = ModelCardData(
        model_name=name,
        license="other",
        library_name=to,
        pipeline_tag="sentence-similarity" if alone else kind,
        base_model=base if base and not Path(base).is_dir() else None,
        eval_results=None if alone else results_of(report, data) or None,  # it has no answers
    )
    whole = "the whole model" if alone else "it"
    parts = {
        "": f"{FILL_IN}: what this model is for, and who made it.",
        f"What {whole} answers": "\n".join(described(task_name, task) for task_name, task in tasks.items()),
        "How to load it": USES[to].format(pipeline=kind),
        "Data": data_of(data, report),
        f"Scores of {whole}".removesuffix(" of it"): scores_of(report),
        "Most frequent errors": errors_of(report),
        "Limits": limits_of(options, report),
        "Options": options_table(options),
        "Licence": f"{FILL_IN}: the licence of these weights. It depends on the encoder that they started from, and on "
        "the data.",
    }
    sections = [f"## {title}\n\n{text}" if title else text for title, text in parts.items() if text]
    return f"---\n{head.to_yaml()}\n---\n\n# {name}\n\n" + "\n\n".join(sections) + "\n"


def results_of(report: dict[str, Any], data: str) -> list[EvalResult]:
    """Returns the main scores of each task on test, or on dev if there is no test, for `model-index`."""
    kinds, mains = (report["about"].get(key, {}) for key in ("kinds", "main_scores")) if report else ({}, {})
    found = {score["name"]: score["value"] for score in (report["scores"].get(report["main"], []) if report else [])}
    return [
        EvalResult(
            task_type=KINDS.get(kind, "text-classification"),
            task_name=name,
            dataset_type=data,
            dataset_name=data,
            dataset_split=report["main"],
            metric_type=mains[name],
            metric_name=f"{name}_{mains[name]}",
            metric_value=round(found[f"{name}_{mains[name]}"], 6),
        )
        for name, kind in kinds.items()
        if f"{name}_{mains.get(name)}" in found
    ]


def described(name: str, task: Task) -> str:
    """Returns a list item that says what a task answers."""
    labels = ", ".join(f"`{label}`" for label in task.labels[:LISTED])
    more = f", and {len(task.labels) - LISTED} more" if len(task.labels) > LISTED else ""
    return f"- **{name}** ({task.kind})" + (f": {labels}{more}" if labels else "")


def data_of(data: str, report: dict[str, Any]) -> str:
    sizes = report.get("sizes", {})
    sizes = ", ".join(f"{sizes[part]:,} in {part}" for part in ("train", *SPLITS) if sizes.get(part))
    return f"`{data}`" + (f": {sizes} texts." if sizes else ".") + f" {FILL_IN}: where it comes from, and its licence."


def scores_of(report: dict[str, Any]) -> str:
    """Returns a table of the scores of each part, without losses, with bootstrap intervals where they are known."""
    rows = [
        (part, score["name"], *("" if score[key] is None else f"{score[key]:.4f}" for key in ("value", "low", "high")))
        for part, scores in report.get("scores", {}).items()
        for score in scores
        if "loss" not in score["name"]
    ]
    if not rows:
        return ""
    chosen = "Dev chose the epoch, so its scores are slightly optimistic. Intervals: 95 %, by resampling the texts."
    return table(("part", "score", "value", "from", "to"), rows) + f"\n\n{chosen}"


def errors_of(report: dict[str, Any]) -> str:
    """Returns a table of the confused labels of each task."""
    rows = [
        (name, f"`{gold}`", f"`{predicted}`", str(count))
        for name, task in report.get("tasks", {}).items()
        for gold, predicted, count, *_ in task.get("confusions", [])[:10]
    ]
    return table(("task", "labelled", "answered", "times"), rows) + f"\n\nOn {report['main']}." if rows else ""


def limits_of(options: Config, report: dict[str, Any]) -> str:
    read = READ.get(options.long_text, READ["head"])
    lines = [f"It reads {options.max_length} tokens at a time; of longer texts to classify, {read}."]
    lines += [
        f"Probabilities of {name} are off by {task['calibration']['ece']:.3f} on average (ECE on {report['main']})."
        for name, task in report.get("tasks", {}).items()
        if task.get("calibration")
    ]
    lines += [f"{FILL_IN}: texts that it has not seen, such as other languages, domains and times."]
    return "\n".join(f"- {line}" for line in lines)


def options_table(options: Config) -> str:
    """Returns a table of the options that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    used = {name: value for name, value in options.kept().items() if name not in ELSEWHERE.split()}
    rows = [(f"`--{name}`", f"`{value}`") for name, value in used.items() if value != defaults.get(name, value)]
    return table(("option", "value"), rows) if rows else ""


def table(head: tuple[str, ...], rows: Any) -> str:
    """Returns a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# ---- hub -------------------------------------------------------------------------------------------------------------


def push(folder: Path, name: str, public: bool, model_hub: str = "hf") -> str:
    """Uploads a folder to the Hugging Face hub, or to that of HF_ENDPOINT, or to ModelScope. Returns its address.
    Raises UserError, also if the model is there and public, but public is False."""
    upload, command = HUBS[model_hub]
    try:
        return upload(folder, name, public)
    except UserError:
        raise
    except Exception as error:  # of the network, the hub, or its client
        kept = f"{folder} is complete; to upload it again: {command} {name} {folder}"
        raise UserError(f"--push_to_hub {name}: {first_line(error)}; {kept}") from None


def to_hugging_face(folder: Path, name: str, public: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    repo = api.create_repo(name, private=not public, exist_ok=True)
    require_private(name, public or api.model_info(repo.repo_id).private)
    api.upload_folder(folder_path=folder, repo_id=repo.repo_id, commit_message="Upload an export")
    return str(repo)


def to_modelscope(folder: Path, name: str, public: bool) -> str:
    try:
        from modelscope.hub.api import HubApi
    except ImportError as error:
        needed = f"--model_hub modelscope needs the package modelscope ({first_line(error)})"
        raise UserError(f"{needed}: pip install 'modelscope>=1.40'; {folder} is complete") from None
    api = HubApi()
    visibility = "public" if public else "private"
    api.create_repo(name, visibility=visibility, license="other", exist_ok=True)  # its default is Apache 2.0
    require_private(name, public or api.get_model(name)["Visibility"] == 1)  # 5: public, 3: for an organisation
    api.upload_folder(name, folder, commit_message="Upload an export", use_cache=False)  # the cache is in the folder
    return f"{api.endpoint}/models/{name}"


def require_private(name: str, is_private: bool | None) -> None:
    """Raises UserError if a model of this name, which was there before, is not private."""
    if not is_private:
        raise UserError(f"--push_to_hub {name}: is public already; add --public, or choose another name")


# {--model_hub: (function that uploads, the hub's own command)}
HUBS = {"hf": (to_hugging_face, "hf upload"), "modelscope": (to_modelscope, "modelscope upload")}
