"""Reads instruction data and dialogues as classification if there are only a few short answers."""

from collections.abc import Sequence
from typing import Any

from engine.errors import UserError
from engine.task.signs import LABEL_NAMES, TEXT_NAMES, alike
from preprocess.readers.columns import NUMBER_NAMES, OTHER_LABEL_NAMES
from preprocess.readers.options import ReadOptions
from preprocess.readers.paths import Convert, Values

QUESTION_KEYS = ("instruction", "prompt", "query")
ANSWER_KEYS = ("output", "response", "completion")
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
MAX_CHARACTERS = 60  # maximum length of an answer that is a class


def find_instructions(rows: Sequence[Values], options: ReadOptions) -> Convert | None:
    """Converts {"instruction", "input", "output"} and {"prompt", "completion"} to text and label. Omits an instruction
    that all first rows share."""
    keys = {*rows[0]}
    question = next((key for key in QUESTION_KEYS if key in keys), "")
    answer = next((key for key in ANSWER_KEYS if key in keys), "")
    if not question or not (answer or may_lack_answers(keys, options)) or has_labels(keys, options):
        return None
    if any(not isinstance(row.get(key), str) for row in rows for key in (question, answer) if key):
        return None
    if any(row.get("history") for row in rows):
        raise UserError("contains multi-turn dialogues; only one question with a short answer is supported")
    constant = len({row[question] for row in rows}) == 1 and all(row.get("input") for row in rows)
    if options.labelled:
        require_classes([row[answer] for row in rows], f"instructions with free answers in {answer!r}")

    def convert(values: Values, where: str) -> Values:
        question_text, input_text = values.get(question) or "", values.get("input") or ""
        label = {"label": values.get(answer)} if options.labelled else {}
        if not all(isinstance(value, str) for value in (question_text, input_text, *label.values())):
            raise UserError(f"{where}: {question!r}, 'input' and {answer!r} must be strings")
        return {"text": input_text if constant else "\n".join(filter(None, (question_text, input_text)))} | label

    return convert


def find_dialogue(rows: Sequence[Values], options: ReadOptions) -> Convert | None:
    """Converts {"messages": [{"role", "content"}]} and {"conversations": [{"from", "value"}]} to text and label. A
    dialogue must be one question and one answer. Omits a system prompt that all first rows share."""
    key = next((key for key in ("messages", "conversations") if key in rows[0]), "")
    if has_labels({*rows[0]}, options):
        return None
    turns = [turns_of(row.get(key)) for row in rows] if key else []
    if not turns or not all(turns):
        return None
    expected = [["user", "assistant"], *([["user"]] if may_lack_answers({*rows[0]}, options) else [])]
    if any([role for role, _ in dialogue if role != "system"] not in expected for dialogue in turns):
        problem = "contains multi-turn dialogues"
        raise UserError(f"{problem}; only one question with a short answer, or text and label, is supported")
    if options.labelled:
        require_classes([dialogue[-1][1] for dialogue in turns], f"dialogues with free answers in {key!r}")
    prompts = {tuple(content for role, content in dialogue if role == "system") for dialogue in turns}

    def convert(values: Values, where: str) -> Values:
        dialogue_turns = turns_of(values.get(key))
        if [role for role, _ in dialogue_turns if role != "system"] not in expected:
            raise UserError(f"{where}: expected one question and one answer in {key!r}, as in the first rows")
        system = tuple(content for role, content in dialogue_turns if role == "system")
        questions = [content for role, content in dialogue_turns if role == "user"]
        label = {"label": dialogue_turns[-1][1]} if options.labelled else {}
        return {"text": "\n".join([*(() if prompts == {system} else system), *questions])} | label

    return convert


def may_lack_answers(keys: set[str], options: ReadOptions) -> bool:
    """Returns True if answers are optional: labels are not needed, and no other key contains the text."""
    return not options.labelled and not alike(TEXT_NAMES, keys - {*QUESTION_KEYS})


def has_labels(keys: set[str], options: ReadOptions) -> bool:
    """Returns True if objects have a label under a usual key, or if options name the keys."""
    named = options.label_column or options.text_column
    return bool(named or alike([*LABEL_NAMES, *NUMBER_NAMES, *OTHER_LABEL_NAMES], keys))


def turns_of(value: Any) -> list[tuple[str, str]]:
    """Returns [(role, content)], or [] if the value is not a dialogue."""
    turns = []
    for turn in value if isinstance(value, list) else ():
        if not isinstance(turn, dict):
            return []
        role = ROLES.get(str(turn.get("role", turn.get("from"))), "")
        content = turn.get("content", turn.get("value"))
        if not role or not isinstance(content, str):
            return []
        turns.append((role, content))
    return turns


def require_classes(answers: Sequence[str], data: str) -> None:
    """Raises UserError unless the distinct answers are few and short enough to be classes."""
    distinct = {answer.strip() for answer in answers}
    if len(distinct) > max(2, len(answers) / 3) or max(map(len, distinct)) > MAX_CHARACTERS:
        advice = "use data with a few short answers, or name the keys with --text_column and --label_column"
        raise UserError(f"contains {data}, a text generation task, which is not supported; {advice}")
