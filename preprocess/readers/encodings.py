"""Detects the encoding of a file that is not UTF-8: tries encodings, and checks whether the result looks like text.

To detect another encoding, add one line to ENCODINGS.
"""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import ftfy.bad_codecs  # noqa: F401 - registers cesu-8, which Java and Oracle write
import regex

from engine.errors import UserError

FEW = 40  # with fewer non-ASCII characters, common ones can be missing by chance
# The most frequent characters, which make up a large share of any correctly decoded text
SIMPLIFIED = (
    "的一是不了在有人我他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能好都"
    "然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长"
)
TRADITIONAL = (
    "的一是不了在有人我他這中大來上個國到說們為子和你地出道也時年得就那要下以生會自著去之過家學對可她裡後小麼心多天而能好都"
    "然沒日於起還發成事只作當想看文無開手十用主行方又如前所本見經頭面公同三已老從動兩長"
)
KANA = "のにはをがとでてしたいなるかれもらりすこあっどきんよさせスンルトリイラー"
HANGUL = "이다는에의하고가을지를한기로은서도사대인자시어리아나여해있그정스수일부전제보라장주니세요않안게습좋없음"
WESTERN = [  # letters other than a-z of the languages written in cp1252
    "àâæçéèêëîïôœùûü",  # French
    "äöüßéàè",  # German, Finnish, Swiss names
    "áéíóúüñçàèïòªº",  # Spanish, Catalan
    "áâãàçéêíóôõúü",  # Portuguese
    "àèéìíîòóùú",  # Italian
    "åäöæøéàüèêó",  # Danish, Norwegian, Swedish
    "áéíóúýþæöð",  # Icelandic
    "éëïèöüáóêíú",  # Dutch, Irish
]
CENTRAL = ["ąćęłńóśźż", "áčďéěíňóřšťúůýžäľô", "áéíóöőúüű", "ăâîșțşţ", "čćđšž"]  # Polish, Czech, Hungarian, …
BALTIC = ["āčēģīķļņšūž", "ąčęėįšųūž", "äöõüšž"]  # Latvian, Lithuanian, Estonian
# Signs that occur next to words but not inside them
SAFE_SIGNS = r"[“”‘’–—…•€£©®™°«»\u00a0½¡¿]"
ODD_SIGNS = r"[¡¢¤¦¨¬¯±²³´µ¶¸¹¼½¾¿×÷ˇ˘˙˝˛]"
BESIDE = r"[¡¢£¤¥¦¨©ª«¬®¯°±²³´µ¶¸¹º»¼½¾¿×÷‚ƒ„…†‡ˆ‰‹‘“”•˜›€™˙˝˛ˇ]"


class Script(NamedTuple):
    """Statistics of the texts in an encoding."""

    known: str  # pattern that matches nearly all non-ASCII characters
    letters: str  # pattern that matches the letters
    usual: list[str]  # frequent letters of each language
    least: float  # minimum share of the frequent letters of one language
    part: float  # minimum share of letters among non-ASCII characters
    wide: bool = False  # whether each letter is a word or syllable


@dataclass(frozen=True)
class Encoding:
    names: tuple[str, ...]  # an encoding and its extensions; the first valid one is used
    language: str
    script: Script


SIGNS = r"\u3000-\u303f\uff00-\uffef\u2014\u2018-\u201d\u2026\u00b7"
CHINESE = rf"[\p{{Han}}{SIGNS}]"
JAPANESE = r"[\p{Han}\u3000-\u30ff\uff00-\uff60\uffe0-\uffef\u2010-\u2026\u2160-\u217f①-⑳㈱×]"
KOREAN = rf"[\p{{Hangul}}\p{{Han}}{SIGNS}]"
PUNCTUATION = r"\u00a0\u00ad¡¿«»‹›‘’‚“”„–—…•·§©®™°£€¥½¼¾×±²³ªº´№ฯ฿ๆ،؛؟"
KANA_ONLY = r"[\u3040-\u30ff]"  # excludes half-width kana, which Chinese bytes can decode to


def wide(known: str, letters: str, usual: str, least: float, part: float) -> Script:
    return Script(known, letters, [usual], least, part, wide=True)


def spelled(letters: str, usual: list[str], least: float) -> Script:
    return Script(rf"[{letters}{PUNCTUATION}]", rf"[{letters}]", usual, least, part=0)


ENCODINGS = [
    Encoding(("gb18030",), "Chinese", wide(CHINESE, r"\p{Han}", SIMPLIFIED, 0.04, 0.1)),
    Encoding(("big5", "cp950", "big5hkscs"), "traditional Chinese", wide(CHINESE, r"\p{Han}", TRADITIONAL, 0.04, 0.1)),
    Encoding(("shift_jis", "cp932"), "Japanese", wide(JAPANESE, KANA_ONLY, KANA, 0.2, 0.15)),
    Encoding(("euc_jp",), "Japanese", wide(JAPANESE, KANA_ONLY, KANA, 0.2, 0.15)),
    Encoding(("euc_kr", "cp949"), "Korean", wide(KOREAN, r"\p{Hangul}", HANGUL, 0.2, 0.6)),
    Encoding(("cp1252",), "Western European", spelled(r"\p{Latin}", WESTERN, 0.8)),
    Encoding(("cp1250",), "Central European", spelled(r"\p{Latin}", CENTRAL, 0.9)),
    Encoding(("iso8859-2",), "Central European", spelled(r"\p{Latin}", CENTRAL, 0.9)),
    Encoding(("cp1257",), "Baltic", spelled(r"\p{Latin}", BALTIC, 0.9)),
    Encoding(("cp1254",), "Turkish", spelled(r"\p{Latin}", ["çğıöşüâîûİ"], 0.9)),
    Encoding(("cp1251",), "Cyrillic", spelled(r"\p{Cyrillic}", ["оеаинтсрвлкмдпуі"], 0.5)),
    Encoding(("koi8-r",), "Cyrillic", spelled(r"\p{Cyrillic}", ["оеаинтсрвлкмдпу"], 0.5)),
    Encoding(("cp866",), "Cyrillic", spelled(r"\p{Cyrillic}", ["оеаинтсрвлкмдпу"], 0.5)),
    Encoding(("iso8859-5",), "Cyrillic", spelled(r"\p{Cyrillic}", ["оеаинтсрвлкмдпуі"], 0.5)),
    Encoding(("cp1253",), "Greek", spelled(r"\p{Greek}", ["αοιετσνηυρπκμλςίόάέή"], 0.6)),
    Encoding(("cp1255",), "Hebrew", spelled(r"\p{Hebrew}", ["יוהלארתבמשנם"], 0.6)),
    Encoding(("cp1256",), "Arabic", spelled(r"\p{Arabic}\u200c\u200d", ["الينمرتوبةعدسفهكق"], 0.7)),
    Encoding(("iso8859-6",), "Arabic", spelled(r"\p{Arabic}", ["الينمرتوبةعدسفهكق"], 0.7)),
    Encoding(("cp874",), "Thai", spelled(r"\p{Thai}", ["านรอกเงวมยลทดสตะปบคหแจใไ่้ีั"], 0.7)),
]


COMMON_PARTS = {  # {encoding: (first bytes of its common characters, an encoding of only these characters)}
    "gb18030": (range(0xB0, 0xF8), "gb2312"),
    **dict.fromkeys(("big5", "cp950", "big5hkscs"), (range(0xA4, 0xC7), "big5")),
    "cp949": (range(0xB0, 0xC9), "euc_kr"),
}


def choose_encoding(paths: Sequence[str], sample: bytes, decodes: Callable[[str, str], bool]) -> tuple[str, str, str]:
    """Returns (encoding, language, first words) of non-UTF-8 files.

    sample: the start of the files. decodes: returns True if an entire file is valid in an encoding. Raises UserError if
    no encoding fits, or if two fit about equally well.
    """

    def in_all(name: str) -> bool:
        return all(decodes(path, name) for path in paths)

    fits: list[tuple[float, str, Encoding, str]] = []  # (score, name, encoding, text)
    for encoding in ENCODINGS:
        name, text = next(((n, t) for n in encoding.names if (t := decoded(sample, n)) and in_all(n)), ("", ""))
        score = fit_of(text, encoding, name) if name else 0.0
        if score > 0 and all(text != other for *_, other in fits):
            fits.append((score, name, encoding, text))
    fits.sort(key=lambda encoding: -encoding[0])
    if not fits:
        examples = "--encoding latin-1, cp1251, gb18030, big5, shift_jis or euc_kr"
        raise UserError(f"{paths[0]}, row {row_of_error(sample)}: not UTF-8, and no other encoding gives plausible "
                        f"text; specify it, for example {examples}")  # fmt: skip
    choices = [(name, e.language, begin_of(text, e.script.letters)) for _, name, e, text in fits[:2]]
    if len(fits) > 1 and fits[1][0] >= 0.5 * fits[0][0]:
        shown = " or ".join(f"--encoding {name} ({begin!r}, {language})" for name, language, begin in choices)
        raise UserError(f"{paths[0]}: not UTF-8; add the right encoding: {shown}")
    return choices[0]


def decoded(sample: bytes, encoding: str) -> str | None:
    """Decodes a sample, which may end inside a character. Returns None if it is invalid."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeError:
        return None


def begin_of(text: str, letters: str) -> str:
    """Returns the first words with letters that match a pattern, for a message."""
    foreign = r"[^\x00-\x7f]"
    matches = [regex.search(rf"(?V1)\w{{0,8}}{part}.{{0,8}}", text) for part in (rf"[{letters}&&{foreign}]", foreign)]
    return next((match[0] for match in matches if match), "")


def row_of_error(sample: bytes) -> int:
    """Returns the number of the first row that is not UTF-8."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError as error:
        return sample.count(b"\n", 0, error.start) + 1
    return sample.count(b"\n") + 1


def is_damaged_utf8(sample: bytes) -> bool:
    """Returns True if bytes are damaged UTF-8 rather than another encoding."""
    text = sample.decode("utf-8", "replace")
    return sum(not character.isascii() for character in text) > 3 * text.count("\ufffd")


def fit_of(text: str, encoding: Encoding, name: str) -> float:
    """Returns a score from 0 to 1 of how well a text fits an encoding, based on the share of frequent letters."""
    script, foreign = encoding.script, regex.sub(r"[\x00-\x7f]", "", text)
    if regex.search(r"(?V1)[\p{Co}\p{Cn}\p{Cs}\x00-\x08\x0e-\x19\x1c-\x1f\x7f-\x9f\ufffd]", text):
        return 0.0
    if not foreign or share(foreign, script.known) < 0.95:
        return 0.0
    letters = "".join(regex.findall(f"(?V1){script.letters}", foreign))
    frequent = max(share(letters, f"[{some}{some.upper()}]") for some in script.usual)
    if script.wide:
        single = rf"(?<!{script.letters}){script.letters}(?!{script.letters})"
        isolated = rf"(?<=[a-z]){single}|{single}(?=[a-z])"  # one wide letter in a Latin word, as in cp1252
        is_odd = share(foreign, script.letters) < script.part or rare(letters, name) > 0.1
        if is_odd or count(text, isolated) > 0.3 * len(letters):
            return 0.0
        return max(frequent, 0.01) if frequent >= script.least or 4 <= len(letters) < FEW else 0.0
    in_latin = r"\p{Latin}" in script.letters
    if not letters:
        return 0.5 if in_latin and share(foreign, SAFE_SIGNS) == 1 else 0.0
    if frequent < script.least or not are_words(text, len(foreign), in_latin):
        return 0.0
    if not in_latin and count(letters, r"\p{Lu}") > 0.6 * len(letters):  # KOI8-R and cp1251 swap upper and lower case
        return 0.0
    return frequent ** min(len(letters), 400)


def are_words(text: str, num_foreign: int, in_latin: bool) -> bool:
    """Returns True if the letters form plausible words. Signs inside or at the end of words, capitals in the middle,
    mixed scripts and (in Latin script) many accents are implausible."""
    foreign = r"[^\x00-\x7f\P{L}]"
    implausible = count(text, rf"(?<=\p{{L}})({ODD_SIGNS}|{BESIDE}(?=\p{{L}}))")
    implausible += count(
        text, rf"(?<=\p{{Ll}})(?=\p{{Lu}}){foreign}|(?<=\p{{Ll}}{foreign})[A-Z]|(?<![\p{{L}}\p{{M}}])\p{{M}}"
    )
    if not in_latin:
        implausible += count(text, rf"[a-zA-Z]{foreign}|{foreign}[a-zA-Z]")
        return implausible <= 0.05 * num_foreign and num_foreign >= 8
    implausible += 4 * count(text, rf"{foreign}{{4}}")
    attached = count(text, rf"(?<=[a-zA-Z]){foreign}|{foreign}(?=[a-zA-Z])")
    in_words = count(text, rf"(?<=\p{{L}}){foreign}|{foreign}(?=\p{{L}})")
    return implausible <= 0.05 * num_foreign and attached > 0.5 * in_words


def count(text: str, pattern: str) -> int:
    return sum(1 for _ in regex.finditer(f"(?V1){pattern}", text))


def share(text: str, pattern: str) -> float:
    return count(text, pattern) / max(1, len(text))


def rare(letters: str, encoding: str) -> float:
    """Returns the share of letters that are outside the common part of an encoding."""
    common = common_part(encoding)
    return sum(letter not in common for letter in letters) / max(1, len(letters)) if common else 0.0


@cache
def common_part(encoding: str) -> frozenset[str]:
    """Returns the common characters of an encoding (see COMMON_PARTS), or an empty set if it has no such part."""
    leads, codec = COMMON_PARTS.get(encoding, ((), ""))
    pairs = bytes(byte for lead in leads for trail in range(0x40, 0xFF) for byte in (lead, trail))
    return frozenset(pairs.decode(codec, "ignore")) if codec else frozenset()
