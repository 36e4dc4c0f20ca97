"""Reads what no words tell of the storybook's people, gender and skin tone, by renders of each.

The geometry of the scene is known, so the person that an edit was to draw can be rendered in all variants;
the one whose features lie nearest to those of the edited picture's crop is what is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wordbrush import images
from wordbrush.perception.features import EfficientNetLite0
from wordbrush.storybook.catalogue import PLACES, THINGS
from wordbrush.storybook.recogniser import item_side
from wordbrush.storybook.render import SLOT_PLACE, Renderer
from wordbrush.storybook.scenes import Item, Scene, scene_rng
from wordbrush.storybook.wording import article, caption, phrase

GENDERS = ("man", "woman")
NUM_SKINS = 5
PROFESSIONS = tuple(thing.name for thing in THINGS if thing.hidden)
_CROP = 96  # pixels of the crop's side, once resized
_MARGIN = 1.15  # of the crop over the person's height


@dataclass(frozen=True)
class Person:
    """What is to be read.

    Attributes:
        gender: One of `GENDERS`.
        skin: From 0 (the lightest) to 4.
    """

    gender: str
    skin: int


@dataclass(frozen=True)
class ProfessionEdit:
    """A person, and the instruction that gives them a profession.

    Attributes:
        before: A scene with this person alone.
        put_in: Who it is.
        profession: One of `PROFESSIONS`.
        instruction: In a phrasing that training does not use.
        source_caption: Of the picture before.
        target_caption: Of the picture after.
    """

    before: Scene
    put_in: Person
    profession: str
    instruction: str
    source_caption: str
    target_caption: str

    def after(self, person: Person, *, flip: bool = False) -> Scene:
        """The scene after the edit, the profession shown as this person."""
        return self.before.with_item(
            0, thing=self.profession, variant=None, flip=flip, **_hidden(self.profession, person)
        )


def _hidden(thing: str, person: Person) -> dict[str, int]:
    """The fields of an item that no words tell; of the professions' two labels, the man's comes first."""
    return {"skin": person.skin, "hidden": GENDERS.index(person.gender)}


def draw_profession_edits(repeats: int) -> list[ProfessionEdit]:
    """Every profession given to every gender in every skin tone, `repeats` times, each in its own scene."""
    cases = product(range(repeats), PROFESSIONS, GENDERS, range(NUM_SKINS))
    return [
        _draw(number, profession, Person(gender, skin))
        for number, (_, profession, gender, skin) in enumerate(cases)
    ]


def _draw(number: int, profession: str, person: Person) -> ProfessionEdit:
    rng = scene_rng("test", 900_000_000 + number)
    item = Item(
        thing=person.gender,
        slot="middle",
        variant="standing",
        scale=float(rng.uniform(1.1, 1.4)),
        dx=float(rng.uniform(-0.03, 0.03)),
        dy=float(rng.uniform(-0.03, 0.03)),
        flip=bool(rng.random() < 0.5),
        skin=person.skin,
    )
    scene = Scene(str(rng.choice(list(PLACES))), (item,), seed=int(rng.integers(2**31)))
    words = {"old": person.gender, "a_old": article(person.gender), "a_new": article(profession)}
    target = scene.with_item(0, thing=profession, variant=None)
    return ProfessionEdit(scene, person, profession, phrase(rng, "replace", "test", **words),
                          caption(scene), caption(target))  # fmt: skip


class PersonReader:
    """Reads persons out of edited pictures.

    Args:
        render: Of the pictures' size.
        network: Whose features tell the variants apart.
    """

    def __init__(self, render: Renderer, network: EfficientNetLite0) -> None:
        self.render = render
        self._network = network

    def read(self, edit: ProfessionEdit, picture: Image.Image) -> Person | None:
        """Who is to be seen; None where the person from before is nearer than all with the profession."""
        people = [Person(*pair) for pair in product(GENDERS, range(NUM_SKINS))]
        scenes = [edit.after(person, flip=flip) for person in people for flip in (False, True)]
        rendered = [self.render(scene).image for scene in (edit.before, *scenes)]
        crops = torch.cat([_crop(edit.before.items[0], one) for one in (picture, *rendered)])
        nearest = int(self._distances(crops).argmin())
        return people[(nearest - 1) // 2] if nearest else None

    @torch.inference_mode()
    def _distances(self, crops: Tensor) -> Tensor:
        """(1 + N, 3, h, w) -> (N,), of the first to each of the others, by features and by coarse colours."""
        parts = [
            (1 - F.cosine_similarity(features[1:], features[:1], dim=1)).mean((1, 2))
            for features in self._network(crops)
        ]
        colours = F.avg_pool2d(crops, 4)
        apart = (colours[1:] - colours[:1]).abs().mean((1, 2, 3))
        return torch.stack(parts).mean(0) + apart


def _crop(item: Item, picture: Image.Image) -> Tensor:
    """(1, 3, h, w): the square that the item stands in."""
    x, foot, _ = SLOT_PLACE[item.slot]
    side = item_side(item) * _MARGIN
    left, bottom = x + item.dx - side / 2, foot + item.dy + side * 0.05
    width, height = picture.size
    box = (left * width, (bottom - side) * height, (left + side) * width, bottom * height)
    box = (max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3]))
    return images.from_pil(picture.convert("RGB").resize((_CROP, _CROP), Image.Resampling.BICUBIC, box))


def reader_cases(edits: Sequence[ProfessionEdit]) -> list[tuple[ProfessionEdit, Person | None, Scene]]:
    """Scenes whose persons are known, to measure a reader by: who is there, and who is drawn.

    Place, size and direction are a little off what the reader assumes, as an editor's are; one in five is the
    scene before the edit, where None is right.
    """
    found: list[tuple[ProfessionEdit, Person | None, Scene]] = []
    for number, edit in enumerate(edits):
        rng = np.random.default_rng((11, number))
        person = Person(GENDERS[int(rng.integers(2))], int(rng.integers(NUM_SKINS)))
        right = None if number % 5 == 0 else person
        scene = edit.after(person, flip=bool(rng.random() < 0.5)) if right else edit.before
        item = scene.items[0]
        moved = replace(
            item,
            dx=item.dx + float(rng.uniform(-0.015, 0.015)),
            dy=item.dy + float(rng.uniform(-0.015, 0.015)),
            scale=item.scale * float(rng.uniform(0.95, 1.05)),
        )
        found.append((edit, right, replace(scene, items=(moved,))))
    return found
