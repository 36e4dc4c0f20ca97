"""What a language model is told that shall write edits for captions."""

from __future__ import annotations

import random

from wordbrush.tasks import TASKS

_ANY = (
    "You make training data for a program that edits pictures by instructions. You are given the caption "
    "of a picture. Invent one change that somebody might ask for, and answer with `edit`, the instruction in "
    "the words of that person, and `output`, the caption of the changed picture. The change can be seen in "
    "the picture. Keep the words of the caption wherever the change allows it. Vary the kind of change "
    "(objects, attributes, style, setting, season, medium, material, era, mood) and the wording."
)
_OF_A_TASK = (
    "You make training data for a program that edits pictures by instructions. You are given the caption "
    "of a picture. Invent one change of this kind: {description} (such as: {examples}). Answer with `edit`, "
    "the instruction in the words of somebody who asks for it; `original`, {original}; `edited`, {edited}; "
    "and `output`, the caption of the changed picture. Keep the words of the caption wherever the change "
    "allows it."
)
_ORIGINAL = "the thing that is changed, in exactly the words of the caption"
_STAYS = "the main thing, which stays as it is, in exactly the words of the caption"
_EDITED = "what it is afterwards, in exactly the words of `output`"
_NONE = "an empty text"
SHOWN = 0.6
"""Share of a task's examples that may be shown for a caption (Emu Edit, 2311.10089)."""
VERBS = (
    ("add", "insert", "include"),
    ("remove", "delete", "erase", "take away", "get rid of"),
    ("turn", "transform", "convert"),
    ("show", "give me", "let me see"),
)
"""Verbs at the beginning of an instruction that may stand for one another."""


def system_prompt(task: str) -> str:
    """What the model is told to do."""
    if not task:
        return _ANY
    known = TASKS[task]
    original = _STAYS if task == "background" else _ORIGINAL
    return _OF_A_TASK.format(
        description=known.description,
        examples=", ".join(f'"{example}"' for example in known.examples),
        original=original if "original" in known.objects else _NONE,
        edited=_EDITED if "edited" in known.objects else _NONE,
    )


def vary_verb(edit: str, draw: random.Random) -> str:
    """The instruction with the verb that it begins with, if it is one of `VERBS`, or another for it."""
    for verbs in VERBS:
        for verb in verbs:
            if edit.lower().startswith(f"{verb} "):
                other = draw.choice(verbs)
                return (other.capitalize() if edit[0].isupper() else other) + edit[len(verb) :]
    return edit
