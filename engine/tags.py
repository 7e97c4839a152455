"""Tags of words: schemes such as BIO and BIOES, and what may follow what in them."""

import re

IGNORE = -100  # what a label is where there is none: torch's ignore_index


def is_tagging(kind):
    """Whether a task of this type has one label a word. Types of your own end in "tagging" then."""
    return kind.endswith("tagging")


def kind_of(task):
    """What a task's labels look like: its type, or for one of the user's own the kind that it names."""
    return task.get("kind", task["type"])


def has_spans(kind):
    """Whether the labels of a task of this type are spans of words, which may overlap. Types of your own end in "spans"
    then."""
    return kind.endswith("spans")


def needs_words(kind):
    """Whether a task of this type needs a text cut into tokens."""
    return is_tagging(kind) or has_spans(kind)


def find_scheme(tag_lists):
    """ "bio", "iob1", "bioes", "bmes" or "bilou"; None if the tags are no entities (parts of speech, say).

    IOB1 writes B- only where an entity follows one of its own type directly (Ramshaw and Marcus, 1995).
    """
    letters, i_starts, b_starts = set(), 0, 0  # entities that begin with I-, and with B-, after none of their type
    for tags in tag_lists:
        before = "O"
        for tag in tags:
            if tag != "O":
                if not re.match(r"[BIESMLU]-.", tag):
                    return None
                letters.add(tag[0])
                follows = before[2:] == tag[2:] and before != "O"
                i_starts += tag[0] == "I" and not follows
                b_starts += tag[0] == "B" and not follows
            before = tag
    if not letters:
        return None
    if letters & {"L", "U"}:
        return "bilou"
    if "M" in letters:
        return "bmes"
    if letters & {"E", "S"}:
        return "bioes"
    return "iob1" if i_starts and not b_starts else "bio"


def may_follow(before, tag, bioes):
    """Whether `tag` may come after `before`; "O" stands for the ends of a text.

    BIO: an I- continues a B- or I- of its type. BIOES (BMES): besides, an entity that is open must be closed by an E-.
    """
    is_open = before[:2] in ("B-", "I-", "M-")
    if tag[:2] in ("I-", "E-", "M-"):
        return is_open and before[2:] == tag[2:]
    return not (bioes and is_open)


def illegal_tags(tags):
    """Positions of tags that break BIO or BIOES: an I-, E- or M- that continues nothing of its own type."""
    return [i for i, (before, tag) in enumerate(zip(["O", *tags], tags)) if not may_follow(before, tag, bioes=False)]
