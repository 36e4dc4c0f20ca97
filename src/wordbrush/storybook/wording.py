"""Captions of scenes, and instructions in many phrasings; some phrasings are kept for testing only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wordbrush.storybook.catalogue import PLACES, STYLES, THING, TIMES, TONES, WEATHERS
from wordbrush.storybook.scenes import Item, Scene, Split

NUMBERS = ("no", "one", "two", "three", "four")

# Other words for the same thing; training uses them now and then.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "dog": ("puppy",), "cat": ("kitty",), "ufo": ("flying saucer",), "car": ("automobile",),
    "mouse": ("rat",), "doughnut": ("donut",), "hamburger": ("burger",), "airplane": ("plane",),
    "bicycle": ("bike",), "rabbit": ("bunny",), "fire truck": ("fire engine",), "soccer ball": ("football",),
    "jack o lantern": ("carved pumpkin",), "t shirt": ("shirt",), "gift": ("present",), "sailboat": ("boat",),
    "cook": ("chef",), "pine tree": ("fir tree",), "christmas tree": ("decorated tree",), "pig": ("piglet",),
    "frog": ("toad",), "dinosaur": ("t-rex",), "birthday cake": ("cake",), "taxi": ("cab",),
    "octopus": ("squid",),
}  # fmt: skip


def article(noun: str) -> str:
    """`a` or `an` in front of a noun phrase."""
    vowel = noun[0] in "aeiou" and not noun.startswith(("uf", "uni"))
    return f"{'an' if vowel else 'a'} {noun}"


def noun(item: Item, *, plural: bool = False, sized: bool = True) -> str:
    """`small red car`, `kneeling woman`, `happy face`: without an article."""
    kind = THING[item.thing]
    words = [item.size] if sized and item.size != "normal" else []
    words += [word for word in (item.colour, item.variant) if word]
    return " ".join([*words, kind.plural if plural else kind.name])


def _groups(scene: Scene) -> list[tuple[Item, int]]:
    found: dict[tuple[str, str | None, str | None, str], tuple[Item, int]] = {}
    for item in scene.items:
        first, count = found.get(item.kind, (item, 0))
        found[item.kind] = (first, count + 1)
    return list(found.values())


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _counted(item: Item, count: int) -> str:
    return article(noun(item)) if count == 1 else f"{NUMBERS[count]} {noun(item, plural=True)}"


def caption(scene: Scene) -> str:
    """What the picture shows: things, place, time, weather, style."""
    if scene.photo is not None:
        what = "a photograph"
    else:
        things = [_counted(item, count) for item, count in _groups(scene)]
        what = f"{_join(things)} {PLACES[scene.place]}" if things else f"an empty place {PLACES[scene.place]}"
    where = " ".join(filter(None, (what, TIMES[scene.time], WEATHERS[scene.weather])))
    after = [text for text in (STYLES[scene.style], TONES[scene.tone]) if text]
    return ", ".join([where, *after])


# Each operation has its phrasings: the last ones, a share of `_TEST_SHARE`, are only for the test split. They
# have no word that training does not have: what learns its words from this world could not know it.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "replace": (
        "replace the {old} with {a_new}", "turn the {old} into {a_new}", "swap the {old} for {a_new}",
        "change the {old} to {a_new}", "make the {old} {a_new}", "make it {a_new} instead of the {old}",
        "it should be {a_new}, not {a_old}", "transform the {old} into {a_new}",
        "have {a_new} instead of the {old}", "let the {old} become {a_new}",
        "exchange the {old} for {a_new}", "i want {a_new} where the {old} is",
        "change the {old} into {a_new}", "put {a_new} in the place of the {old}",
        "the {old} should be {a_new}", "i want {a_new} instead of the {old}",
    ),
    "remove": (
        "remove the {old}", "take away the {old}", "delete the {old}", "erase the {old}",
        "get rid of the {old}", "take the {old} out of the picture", "make the {old} disappear",
        "no {old} please", "without the {old}", "the {old} should be gone", "take the {old} away",
        "erase the {old} please", "the {old} should disappear",
    ),
    "add": (
        "add {a_new} {at_slot}", "put {a_new} {at_slot}", "place {a_new} {at_slot}",
        "draw {a_new} {at_slot}", "insert {a_new} {at_slot}", "let there be {a_new} {at_slot}",
        "i want {a_new} {at_slot}", "give me {a_new} {at_slot} as well",
        "there should be {a_new} {at_slot}", "i want to see {a_new} {at_slot}", "{a_new} {at_slot} please",
    ),
    "add_anywhere": (
        "add {a_new}", "put {a_new} in the picture", "insert {a_new}", "draw {a_new} too",
        "there should also be {a_new}", "include {a_new}", "put in {a_new}", "let there be {a_new}",
    ),
    "recolour": (
        "make the {old} {colour}", "change the colour of the {old} to {colour}", "paint the {old} {colour}",
        "turn the {old} {colour}", "recolour the {old} in {colour}", "give the {old} {a_colour} colour",
        "the {old} should be {colour}", "let the {old} be {colour}", "make the {old} look {colour}",
        "paint the {old} in {colour}", "i want the {old} {colour}",
    ),
    "bigger": (
        "make the {old} bigger", "make the {old} larger", "enlarge the {old}",
        "increase the size of the {old}", "the {old} should be bigger", "grow the {old}",
        "make the {old} grow", "let the {old} be bigger",
    ),
    "smaller": (
        "make the {old} smaller", "shrink the {old}", "reduce the size of the {old}", "make the {old} tiny",
        "the {old} should be smaller", "scale the {old} down", "make the {old} shrink",
        "let the {old} be smaller",
    ),
    "move": (
        "move the {old} to the {slot}", "put the {old} {at_slot}", "shift the {old} over to the {slot}",
        "the {old} should be {at_slot}", "bring the {old} over to the {slot}",
        "shift the {old} to the {slot}", "i want the {old} {at_slot}",
    ),
    "swap": (
        "swap the {old} and the {other}", "let the {old} and the {other} trade places",
        "exchange the positions of the {old} and the {other}", "switch the {old} and the {other} around",
        "the {old} and the {other} should change places", "switch the places of the {old} and the {other}",
        "let the {old} and the {other} change places",
    ),
    "count": (
        "make it {number} {plural}", "there should be {number} {plural}", "show {number} {plural}",
        "change the number of {plural} to {number}", "i want to see {number} {plural}",
        "i want {number} {plural}", "let there be {number} {plural}",
    ),
    "pose": (
        "make the {old} {variant}", "the {old} should be {variant}", "let the {old} be {variant}",
        "change the {old} so that they are {variant}", "have the {old} {variant}",
        "i want the {old} {variant}", "change the {old} to be {variant}", "let the {old} look {variant}",
    ),
    "expression": (
        "make the {old} {variant}", "let the face look {variant}", "change the expression to {variant}",
        "the face should be {variant}", "give it {a_variant} face", "i want {a_variant} expression",
        "the expression should be {variant}", "give it {a_variant} expression",
    ),
    "background": (
        "change the background to {a_place}", "put it {place_phrase}", "move the scene to {a_place}",
        "make it happen {place_phrase}", "set it {place_phrase}", "replace the background with {a_place}",
        "the background should be {a_place}", "let it take place {place_phrase}", "move it to {a_place}",
        "i want the background to be {a_place}", "let it happen {place_phrase}",
    ),
    "day": (
        "make it day", "turn it into day", "make it daytime", "change it to a bright day", "let it be day",
        "daylight please", "it should be day", "let it be daytime",
    ),
    "sunset": (
        "make it sunset", "turn it into a sunset", "set it at sunset", "make it evening",
        "let the sun go down", "sunset please", "let it be sunset", "change it to sunset",
    ),
    "night": (
        "make it night", "turn it into night", "make it night time", "set it at night", "let it be night",
        "change the time to night", "it should be night", "night please",
    ),
    "clear": (
        "make the weather clear", "clear the sky", "stop the bad weather", "make it sunny",
        "let the weather be fine", "let the sky be clear", "the weather should be clear",
    ),
    "rain": (
        "make it rain", "add rain", "let it rain", "make it rainy", "it should be raining",
        "let there be rain", "it should be rainy",
    ),
    "snowfall": (
        "make it snow", "add falling snow", "let it snow", "make it snowy", "it should be snowing",
        "let there be falling snow", "it should be snowy",
    ),
    "fog": (
        "add fog", "make it foggy", "let there be fog", "cover it in fog", "it should be misty",
        "let it be foggy", "it should be foggy",
    ),
    "style": (
        "make it {a_style}", "turn it into {a_style}", "in the style of {a_style}", "draw it as {a_style}",
        "convert it to {a_style}", "make it look like {a_style}", "render this as {a_style}",
        "i want {a_style}", "change it to {a_style}", "draw this as {a_style}",
        "it should look like {a_style}",
    ),
    "bright": (
        "make it brighter", "brighten the picture", "more light", "increase the brightness",
        "lighten it up", "make the picture brighter", "i want more light",
    ),
    "dark": (
        "make it darker", "darken the picture", "less light", "decrease the brightness", "dim it",
        "make the picture darker", "i want less light",
    ),
    "vivid": (
        "make it more colourful", "increase the saturation", "more vivid colours", "make the colours pop",
        "make the colours more vivid", "i want more colourful colours",
    ),
    "pale": (
        "make it less colourful", "decrease the saturation", "make the colours pale", "fade the colours",
        "make it pale", "i want less colourful colours",
    ),
    "warm": (
        "make it warmer", "give it warm colours", "add a warm tone", "warm up the colours",
        "make the colours warmer", "i want warm colours",
    ),
    "cool": (
        "make it cooler", "give it cold colours", "add a cool blue tone", "cool down the colours",
        "make the colours cooler", "i want cold colours",
    ),
    "contrast": (
        "increase the contrast", "more contrast", "make it more contrasty", "boost the contrast",
        "add contrast", "i want more contrast",
    ),
    "blur": (
        "blur the picture", "make it blurry", "blur it", "soften it", "put it out of focus",
        "make the picture blurry", "soften the picture",
    ),
    "detect": (
        "detect the {old}", "draw a box around the {old}", "find the {old}", "put a frame around the {old}",
        "mark the {old} with a box", "where is the {old}", "locate the {old}", "show me the {old} in a box",
        "show where the {old} is", "draw a frame around the {old}", "put a box around the {old}",
    ),
    "segment": (
        "segment the {old}", "mask the {old}", "fill the {old} with one colour", "cut out the {old}",
        "mark every pixel of the {old}", "show the shape of the {old}", "highlight the {old}",
        "colour in the whole {old}", "show every pixel of the {old}", "mark the whole {old}",
        "mask the whole {old}",
    ),
    "to_depth": (
        "show the depth map", "turn it into a depth map", "estimate the depth",
        "how far away is everything", "convert the picture to depth", "give me the depth", "show the depth",
        "turn the picture into depth",
    ),
    "from_depth": (
        "make a picture from this depth map: {caption}", "depth to picture: {caption}",
        "render this depth map as {caption}", "from this depth, paint {caption}",
        "paint {caption} from this depth map", "picture from depth: {caption}",
    ),
    "to_sketch": (
        "show the edges", "find the outlines", "turn it into an edge map", "trace the contours",
        "detect the edges", "outline everything", "show the outlines", "trace the edges",
    ),
    "from_sketch": (
        "make a picture from these outlines: {caption}", "edges to picture: {caption}",
        "render these edges as {caption}", "from this sketch, paint {caption}",
        "paint {caption} from these outlines", "picture from edges: {caption}",
    ),
    "to_map": (
        "show the segmentation map", "segment everything", "give each thing a colour of its own",
        "turn it into a segmentation map", "mask all things", "separate the things by colour",
        "mask everything", "separate everything by colour",
    ),
    "from_map": (
        "make a picture from this segmentation map: {caption}", "segments to picture: {caption}",
        "render this map as {caption}", "from these masks, paint {caption}",
        "paint {caption} from this map", "picture from masks: {caption}",
    ),
    "text_add": (
        'write "{word}" at the top', 'add the word "{word}"', 'put the text "{word}" on the picture',
        'print "{word}" on it', 'let it say "{word}"', 'letter it with "{word}"',
        'write the word "{word}" on it', 'print "{word}" at the top',
    ),
    "text_remove": (
        "remove the text", "erase the word", "delete the lettering", 'take away the word "{word}"',
        "no text please", "clear the writing", "erase the text", "take away the lettering",
    ),
    "upscale": (
        "make it four times sharper", "bring back the detail", "raise the resolution", "super-resolve it",
        "raise the detail", "bring the resolution back",
    ),
    "inpaint": (
        "fill the hole", "paint what is missing", "complete the picture", "fill in the grey box",
        "fill in what is missing", "complete the grey box",
    ),
    "contour": (
        "draw a line around every thing", "outline the things in cyan", "draw the contours of the things",
        "put a rim on every thing", "draw a cyan line around all things", "draw a rim around every thing",
    ),
    "sharp": (
        "sharpen the picture", "make it sharper", "sharpen it", "make it crisp", "make the picture sharper",
        "make it crisp and sharper",
    ),
}  # fmt: skip
_TEST_SHARE = 0.25
_PLACE_NOUNS = {
    "meadow": "a meadow", "beach": "a beach", "desert": "a desert", "snow": "a snowy field",
    "forest": "a forest", "city": "a city street", "room": "a living room", "sea": "the bottom of the sea",
    "mountains": "the mountains", "moon": "the moon",
}  # fmt: skip


def phrasings(operation: str, split: Split) -> tuple[str, ...]:
    """The wordings of an operation in a split; at least one is kept for the test."""
    every = PHRASINGS[operation]
    kept = max(1, round(_TEST_SHARE * len(every)))
    return every[:-kept] if split == "train" else every[-kept:]


def phrase(rng: np.random.Generator, operation: str, split: Split, **words: str) -> str:
    """Draw an instruction: a wording of the split, filled in."""
    choices = phrasings(operation, split)
    text = choices[int(rng.integers(len(choices)))].format(**words)
    return text.capitalize() if rng.random() < 0.2 else text


def short(rng: np.random.Generator, scene: Scene, index: int) -> str:
    """How an instruction calls an item: as short as it stays unambiguous; now and then a synonym."""
    item = scene.items[index]
    kind = THING[item.thing]
    alike = [other for other in scene.items if other.thing == item.thing]
    if len(alike) == 1:
        names = (kind.name, *SYNONYMS.get(kind.name, ()))
        name = names[0] if rng.random() < 0.85 else str(rng.choice(list(names)))
        return f"{item.colour} {name}" if item.colour and rng.random() < 0.3 else name
    if sum(other.kind == item.kind for other in alike) == 1:
        return noun(item)
    return f"{noun(item)} {'at the back' if item.slot == 'back' else slot_words(item.slot)['at_slot']}"


def slot_words(slot: str) -> dict[str, str]:
    """`slot` and `at_slot` of an instruction."""
    return {"slot": slot, "at_slot": "in the middle" if slot == "middle" else f"on the {slot}"}


def place_words(place: str) -> dict[str, str]:
    """`a_place` and `place_phrase` of an instruction."""
    return {"a_place": _PLACE_NOUNS[place], "place_phrase": PLACES[place]}
