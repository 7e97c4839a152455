"""The texts of the page. templates/en.json and zh.json have the same keys; {names} are filled in."""

import json
from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"
LANGUAGES = ("en", "zh")
TEXTS = {name: json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8")) for name in LANGUAGES}


class Words:
    """The page's texts in one language: words("score"), words("best_of", best=3, …)."""

    def __init__(self, language):
        self.language, self.texts = language, TEXTS[language]

    def __call__(self, key, **values):
        text = self.texts[key]
        return text.format(**values) if values else text


def language_of(choice, texts):
    """ "en" or "zh"; "auto": Chinese if most letters of the texts are."""
    if choice != "auto":
        return choice
    joined = "".join(text[:200] for text in texts[:500])
    chinese = sum("\u4e00" <= c <= "\u9fff" for c in joined)
    return "zh" if 2 * chinese > sum(c.isalpha() for c in joined) else "en"
