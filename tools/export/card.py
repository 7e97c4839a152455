"""Writes the model card of an export (README.md), and uploads exports to a hub.

The card has the YAML metadata of the Hugging Face hub, with the scores as `model-index`. Information that the run does
not contain, such as the licence, is marked TO FILL IN. Local paths are omitted.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from config import Config
from engine.errors import UserError
from engine.predict.stored import REPORT_SPLITS
from engine.run.command_line import first_line
from engine.task.task import PLACES, Task
from tools.report.collect import collect

logger = logging.getLogger("template")
FILL_IN = "**TO FILL IN**"
KINDS = dict.fromkeys(("tagging", "words", *PLACES), "token-classification")  # {kind: pipeline tag of the hub}
READ = {"head": "the beginning", "tail": "the end", "head_tail": "the beginning and the end", "windows": "everything"}
LISTED = 50  # maximum number of labels listed per task
# Options for paths and for running commands, which do not describe how the model was trained
UNLISTED = "data_path output_dir model_version pretrain_model_path init_from teacher unlabelled checkpoint "
UNLISTED += "predict_file predict_output log_output_path log_output_file version device gpus report_to resume fold "
UNLISTED += "do_train do_eval do_predict calibrate"
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
    """Writes README.md of an export, with scores if the run of the checkpoint was evaluated. to: the option --to"""
    run, options = checkpoint.parent.parent, Config.load(checkpoint / "args.json")
    report: dict[str, Any] = {}
    if (run / "answers").is_dir() and checkpoint.name == "best":
        report = collect(run)[0]
    else:
        logger.warning(
            f"README.md will contain no scores, as {checkpoint} was not evaluated; run main.py --do_eval first"
        )
    name = run.name if checkpoint.parent.name == "checkpoints" else checkpoint.name
    (folder / "README.md").write_text(card_of(name, to, options, tasks, report), encoding="utf-8")


def card_of(name: str, to: str, options: Config, tasks: dict[str, Task], report: dict[str, Any]) -> str:
    """Returns the text of a model card. report: the result of `collect`, or {} without an evaluation"""
    kind = KINDS.get(next(iter(tasks.values())).kind, "text-classification")
    base = options.pretrain_model_path
    data, alone = Path(options.data_path).name, to == "sentence-transformers"
    head = ModelCardData(
        model_name=name,
        license="other",
        library_name=to,
        pipeline_tag="sentence-similarity" if alone else kind,
        base_model=base if base and not Path(base).is_dir() else None,
        eval_results=None if alone else results_of(report, data) or None,  # an encoder alone has no labels
    )
    sections = {
        "": f"{FILL_IN}: the intended use of this model, and its authors.",
        "Tasks of the full model" if alone else "Tasks": "\n".join(
            described(task_name, task) for task_name, task in tasks.items()
        ),
        "How to use it": USES[to].format(pipeline=kind),
        "Data": data_of(data, report),
        "Scores of the full model" if alone else "Scores": scores_of(report),
        "Most frequent errors": errors_of(report),
        "Limits": limits_of(options, report),
        "Options": options_table(options),
        "Licence": f"{FILL_IN}: the licence of these weights. It depends on the pretrained encoder and on the data.",
    }
    texts = [f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text]
    return f"---\n{head.to_yaml()}\n---\n\n# {name}\n\n" + "\n\n".join(texts) + "\n"


def results_of(report: dict[str, Any], data: str) -> list[EvalResult]:
    """Returns the main score of each task for `model-index`, on the test split, or on dev if there is none."""
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
    """Returns a list item with the kind and the labels of a task."""
    labels = ", ".join(f"`{label}`" for label in task.labels[:LISTED])
    more = f", and {len(task.labels) - LISTED} more" if len(task.labels) > LISTED else ""
    return f"- **{name}** ({task.kind})" + (f": {labels}{more}" if labels else "")


def data_of(data: str, report: dict[str, Any]) -> str:
    """Returns the section on the data. data: the name of the processed folder"""
    sizes = report.get("sizes", {})
    sizes = ", ".join(f"{sizes[split]:,} in {split}" for split in ("train", *REPORT_SPLITS) if sizes.get(split))
    return f"`{data}`" + (f": {sizes} texts." if sizes else ".") + f" {FILL_IN}: source and licence of the data."


def scores_of(report: dict[str, Any]) -> str:
    """Returns a table of the scores on each split, without losses, with bootstrap intervals if available."""
    rows = [
        (split, score["name"], *("" if score[key] is None else f"{score[key]:.4f}" for key in ("value", "low", "high")))
        for split, scores in report.get("scores", {}).items()
        for score in scores
        if "loss" not in score["name"]
    ]
    if not rows:
        return ""
    note = "The epoch was selected on dev, so dev scores are slightly optimistic. Intervals: 95 % bootstrap over texts."
    return table(("split", "metric", "value", "low", "high"), rows) + f"\n\n{note}"


def errors_of(report: dict[str, Any]) -> str:
    """Returns a table of the most frequently confused labels of each task."""
    rows = [
        (name, f"`{gold}`", f"`{predicted}`", str(count))
        for name, task in report.get("tasks", {}).items()
        for gold, predicted, count, *_ in task.get("confusions", [])[:10]
    ]
    return table(("task", "label", "prediction", "count"), rows) + f"\n\nOn the {report['main']} split." if rows else ""


def limits_of(options: Config, report: dict[str, Any]) -> str:
    """Returns a list of known limitations."""
    read = READ.get(options.long_text, READ["head"])
    lines = [f"The maximum input length is {options.max_length} tokens. To classify a longer text, it reads {read}."]
    lines += [
        f"The expected calibration error of {name} on {report['main']} is {task['calibration']['ece']:.3f}."
        for name, task in report.get("tasks", {}).items()
        if task.get("calibration")
    ]
    lines += [f"{FILL_IN}: texts unlike the training data, such as other languages, domains and dates."]
    return "\n".join(f"- {line}" for line in lines)


def options_table(options: Config) -> str:
    """Returns a table of the options that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    used = {name: value for name, value in options.kept().items() if name not in UNLISTED.split()}
    rows = [(f"`--{name}`", f"`{value}`") for name, value in used.items() if value != defaults.get(name, value)]
    return table(("option", "value"), rows) if rows else ""


def table(head: tuple[str, ...], rows: Any) -> str:
    """Returns a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# ---- hub -------------------------------------------------------------------------------------------------------------


def push(folder: Path, name: str, public: bool, model_hub: str = "hf") -> str:
    """Uploads a folder to the Hugging Face hub (or the server in HF_ENDPOINT) or to ModelScope. Returns its URL.

    Raises UserError if the upload fails, or if a public model of this name exists and `public` is False.
    """
    upload, command = HUBS[model_hub]
    try:
        return upload(folder, name, public)
    except UserError:
        raise
    except Exception as error:  # raised by the network, the hub or its client
        advice = f"{folder} is complete; to upload it again: {command} {name} {folder}"
        raise UserError(f"--push_to_hub {name}: {first_line(error)}; {advice}") from None


def to_hugging_face(folder: Path, name: str, public: bool) -> str:
    """Uploads a folder to the Hugging Face hub and returns its URL."""
    from huggingface_hub import HfApi

    api = HfApi()
    repo = api.create_repo(name, private=not public, exist_ok=True)
    require_private(name, public or api.model_info(repo.repo_id).private)
    api.upload_folder(folder_path=folder, repo_id=repo.repo_id, commit_message="Upload an export")
    return str(repo)


def to_modelscope(folder: Path, name: str, public: bool) -> str:
    """Uploads a folder to ModelScope and returns its URL."""
    try:
        from modelscope.hub.api import HubApi
    except ImportError as error:
        problem = f"--model_hub modelscope needs the package modelscope ({first_line(error)})"
        raise UserError(f"{problem}: pip install 'modelscope>=1.40'; {folder} is complete") from None
    api = HubApi()
    visibility = "public" if public else "private"
    api.create_repo(name, visibility=visibility, license="other", exist_ok=True)  # the default is Apache 2.0
    require_private(name, public or api.get_model(name)["Visibility"] == 1)  # 5: public, 3: for an organisation
    api.upload_folder(
        name, folder, commit_message="Upload an export", use_cache=False
    )  # the cache would be in the folder
    return f"{api.endpoint}/models/{name}"


def require_private(name: str, is_private: bool | None) -> None:
    """Raises UserError if the model already exists and is public."""
    if not is_private:
        raise UserError(f"--push_to_hub {name}: is already public; add --public, or choose another name")


# {--model_hub: (upload function, command of the hub's client)}
HUBS = {"hf": (to_hugging_face, "hf upload"), "modelscope": (to_modelscope, "modelscope upload")}
