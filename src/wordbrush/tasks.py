"""Emu Edit's tasks (2311.10089, table 1): what kinds of edit one model learns side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Group = Literal["region", "free-form", "vision"]
ObjectField = Literal["original", "edited"]


@dataclass(frozen=True)
class Task:
    """A kind of edit.

    Attributes:
        group: Region edits change a part and keep the rest; free-form edits change the whole; vision tasks
            are posed as edits.
        description: One line for a user, and for the language model that writes instructions.
        examples: Instructions.
        objects: Which things an edit is about: "original", one of the picture before (of `background`: what
            stays), and "edited", one of the picture after.
    """

    group: Group
    description: str
    examples: tuple[str, ...]
    objects: tuple[ObjectField, ...] = ()


TASKS: dict[str, Task] = {
    "local": Task(
        "region", "replace an object, or change its attributes",
        ("replace the dog with a cat", "make the man smile", "make the car bigger"),
        ("original", "edited"),
    ),
    "remove": Task(
        "region", "erase an object", ("remove the dog", "get rid of the people at the back"), ("original",)
    ),
    "add": Task(
        "region", "insert an object", ("add a hat to the woman", "put a boat on the lake"), ("edited",)
    ),
    "texture": Task(
        "region", "change how a surface looks and keep its shape",
        ("make the jacket leather", "paint the door blue", "give the vase a marble texture"),
        ("original", "edited"),
    ),
    "background": Task(
        "region", "change what is behind the objects",
        ("change the background to a beach", "put it in a desert"),
        ("original",),
    ),
    "global": Task(
        "free-form", "change the whole picture: time, weather, season",
        ("make it night", "let it snow", "make it autumn"),
    ),
    "style": Task(
        "free-form", "render the picture in another style",
        ("make it a pencil sketch", "in the style of an oil painting"),
    ),
    "text": Task(
        "free-form", "write, change or erase lettering",
        ('write "open" on the sign', "remove the lettering"),
    ),
    "detect": Task("vision", "draw a box around an object", ("detect the dog", "draw a box around the car")),
    "segment": Task("vision", "fill the shape of an object with one colour", ("segment the dog",)),
    "color": Task(
        "vision", "adjust colour, light or sharpness",
        ("make it brighter", "blur the picture", "increase the contrast"),
    ),
    "depth": Task(
        "vision", "the depth map of a picture, or a picture from its depth map",
        ("show the depth map", "make a picture from this depth map: a dog on a beach"),
    ),
    "normal": Task(
        "vision", "the map of surface normals, or a picture from one",
        ("show the surface normals", "make a picture from these normals: a chair"),
    ),
    "pose": Task(
        "vision", "the skeletons of people, or a picture from them",
        ("show the human pose", "make a picture from this pose: a man who dances"),
    ),
    "sketch": Task(
        "vision", "the outlines of a picture, or a picture from its outlines",
        ("show the edges", "make a picture from this sketch: a house in the snow"),
    ),
    "segmentation": Task(
        "vision", "a map with each object in a colour of its own, or a picture from one",
        ("show the segmentation map", "make a picture from this segmentation map: two cats"),
    ),
}  # fmt: skip
"""By name. The paper names eleven tasks and "image-to-image translation", and counts sixteen in all, without
saying how: here the five maps that it mentions are a task each, in both directions."""
