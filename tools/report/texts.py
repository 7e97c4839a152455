"""Strings of the page, read from templates/en.json and zh.json, which have the same keys and {placeholders}."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
LANGUAGES = ("en", "zh")
TEXTS = {name: json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8")) for name in LANGUAGES}


class Words:
    """The strings of the page in one language: words("score"), words("best_of", best=3, …)."""

    def __init__(self, language: str):
        self.language, self.texts = language, TEXTS[language]

    def __call__(self, key: str, **values: Any) -> str:
        text = self.texts[key]
        return text.format(**values) if values else text


def language_of(choice: str, texts: Sequence[str]) -> str:
    """Resolves "auto": returns "zh" if most letters of the texts are Chinese, otherwise "en"."""
    if choice != "auto":
        return choice
    joined = "".join(text[:200] for text in texts[:500])
    chinese = sum("\u4e00" <= c <= "\u9fff" for c in joined)
    return "zh" if 2 * chinese > sum(c.isalpha() for c in joined) else "en"
