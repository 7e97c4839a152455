"""Heuristics for text files: column names, BOMs, inline entity markup.

Uses only the standard library, because every exported folder has a copy of this file. To have your own column names
detected, add them here; for another syntax of entity markup, add a line to INLINE.
"""

import codecs
import re
from collections.abc import Iterable, Sequence

# Common names of columns and keys. If a file has several, the first in this list is the text
TEXT_NAMES = "text sentence content sentence1 text_a premise question review query title 文本 内容".split()
TEXT_NAMES += "正文 评论 评论内容 句子 句子1 语句 文本1 问题1 微博 微博正文 新闻 新闻内容 摘要 问题 标题 题目".split()
TEXT_NAMES += "comment_text comment tweet message utterance body document question1 sentence_a".split()
PAIR_NAMES = "text_pair sentence2 text_b hypothesis question2 sentence_b 文本2 句子2 问题2".split()
# Pairs of columns; either one alone would be the text
PAIRS = [("question", "sentence"), ("question", "passage"), ("query", "title"), ("query", "passage")]
PAIRS += [("context", "hypothesis")]
LABEL_NAMES = "label labels entities spans intent class category target slots tags ner ner_tags cats 标签 类别".split()

TAG = r"(?:O|[BIESMLU][-_]\S+)"  # an entity tag
NAME = r"(?P<label>[^\W\d][\w.\-]*)"
NO_LINK = r"(?!https?:|ftp:|mailto:|www\.)"
INLINE = {  # {example: regex with the groups `label` and `text`}
    "[nine am](time)": rf"\[(?P<text>[^\[\]]+)\](?:\({NO_LINK}{NAME}(?::[^()]*)?\)|(?P<more>\{{[^{{}}]*\}}))",
    "[time : nine am]": rf"\[\s*{NAME}\s+:\s+(?P<text>[^\[\]]*[^\s\[\]])\s*\]",
    "{{time:nine am}}": rf"\{{\{{\s*{NAME}\s*:\s*(?P<text>[^{{}}]*[^\s{{}}])\s*\}}\}}",
}


def alike(usual: Iterable[str], names: Iterable[str]) -> list[str]:
    """Returns the names that match a usual name, ignoring case, in the order of the usual names."""
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.strip().lower(), name)
    return [by_lower[name] for name in usual if name in by_lower]


def by_usual(usual: Iterable[str], names: list[str]) -> list[str]:
    """Returns the names that equal a usual name; if there are none, those that match one ignoring case."""
    usual = list(usual)
    return [name for name in usual if name in names] or alike(usual, names)


def encoding_of_marks(sample: bytes) -> str | None:
    """Detects UTF-16 or UTF-32 from the BOM, or UTF-16 from the zero bytes between letters. Otherwise returns None."""
    if sample.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for start, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros = sample[start::2].count(0)
        if len(sample) >= 20 and zeros > 0.4 * len(sample) / 2 and not sample[1 - start :: 2].count(0):
            return name
    return None


def inline_syntax(texts: Sequence[str]) -> str | None:
    """Returns the entity markup that at least a third of the texts use, if its labels recur and almost all brackets
    belong to it; otherwise None."""
    for syntax, pattern in INLINE.items():
        matches_by_text = [list(re.finditer(pattern, text)) for text in texts]
        labels = [match["label"] or match["more"] for matches in matches_by_text for match in matches]
        marked = sum(map(bool, matches_by_text))
        brackets = sum(text.count(syntax[0]) for text in texts) / (2 if syntax.startswith("{{") else 1)
        if {"IN", "SL"} & {*labels}:  # nested parses of intents and slots
            return None
        recur = len({*labels}) <= max(len(labels) / 2, min(5, len(labels) - 1))
        if marked >= max(2, len(texts) / 3) and recur and brackets <= 1.05 * len(labels):
            return syntax
    return None
