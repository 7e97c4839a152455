"""Heuristics for text files: column names, BOMs, inline entity markup.

Only the standard library is used, because every exported folder has a copy of this file. Edit here to
have your own column names found without a flag, or to add another syntax of entity markup: one line in INLINE.
"""

import codecs
import re
from collections.abc import Iterable, Sequence

# The usual names of columns and keys. If several are present, the first in these lists is the text.
TEXT_NAMES = "text sentence content sentence1 text_a premise question review query title 文本 内容".split()
TEXT_NAMES += "正文 评论 评论内容 句子 句子1 语句 文本1 问题1 微博 微博正文 新闻 新闻内容 摘要 问题 标题 题目".split()
TEXT_NAMES += "comment_text comment tweet message utterance body document question1 sentence_a".split()
PAIR_NAMES = "text_pair sentence2 text_b hypothesis question2 sentence_b 文本2 句子2 问题2".split()
# Pairs of names, either of which alone would be the text
PAIRS = [("question", "sentence"), ("question", "passage"), ("query", "title"), ("query", "passage")]
PAIRS += [("context", "hypothesis")]
LABEL_NAMES = "label labels entities spans intent class category target slots tags ner ner_tags cats 标签 类别".split()

TAG = r"(?:O|[BIESMLU][-_]\S+)"  # a tag of entities
NAME = r"(?P<label>[^\W\d][\w.\-]*)"
NO_LINK = r"(?!https?:|ftp:|mailto:|www\.)"
INLINE = {  # {example: a pattern with the groups `label` and `text`}
    "[nine am](time)": rf"\[(?P<text>[^\[\]]+)\](?:\({NO_LINK}{NAME}(?::[^()]*)?\)|(?P<more>\{{[^{{}}]*\}}))",
    "[time : nine am]": rf"\[\s*{NAME}\s+:\s+(?P<text>[^\[\]]*[^\s\[\]])\s*\]",
    "{{time:nine am}}": rf"\{{\{{\s*{NAME}\s*:\s*(?P<text>[^{{}}]*[^\s{{}}])\s*\}}\}}",
}


def alike(usual: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that are among the usual ones, ignoring case, in the order of the usual ones."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(name.strip().lower(), name)
    return [found[name] for name in usual if name in found]


def by_usual(usual: Iterable[str], names: list[str]) -> list[str]:
    """The names that are among the usual ones, in the order of the usual ones; ignoring case only if none is exact."""
    usual = list(usual)
    return [name for name in usual if name in names] or alike(usual, names)


def encoding_of_marks(sample: bytes) -> str | None:
    """Detects UTF-16 or UTF-32 by its BOM, or UTF-16 by the zero bytes of its letters; otherwise None."""
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
    """The syntax of entity markup that at least a third of the texts use, with few, recurring labels, and almost no
    trace of it elsewhere; None if there is none."""
    for syntax, pattern in INLINE.items():
        found = [list(re.finditer(pattern, text)) for text in texts]
        labels = [match["label"] or match["more"] for matches in found for match in matches]
        marked = sum(map(bool, found))
        signs = sum(text.count(syntax[0]) for text in texts) / (2 if syntax.startswith("{{") else 1)
        if {"IN", "SL"} & {*labels}:  # parses of intents and slots that nest
            return None
        recur = len({*labels}) <= max(len(labels) / 2, min(5, len(labels) - 1))
        if marked >= max(2, len(texts) / 3) and recur and signs <= 1.05 * len(labels):
            return syntax
    return None
