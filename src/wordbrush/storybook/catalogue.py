"""What the storybook world is made of: things, their colours and looks, places, times, weathers and styles.

Things have names of the storybook's own; the label is the English one that emojibase gives to the sprite.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Thing:
    """One kind of thing.

    Attributes:
        name: The noun of captions and instructions, singular.
        label: The sprite's English label in emojibase; for things with variants, of the default variant.
        plural: The noun for two or more.
        hue: The sprite's own colour name when it can be recoloured, else None.
        variants: Variant name -> label (poses of people, expressions of faces); empty when there is one look.
        hidden: Labels that are drawn at random and never mentioned (gender of a profession).
        skins: Whether the sprite exists in five skin tones (drawn at random, never mentioned).
    """

    name: str
    label: str
    plural: str
    hue: str | None = None
    variants: dict[str, str] = field(default_factory=dict[str, str])
    hidden: tuple[str, ...] = ()
    skins: bool = False


_IRREGULAR = {
    "mouse": "mice", "fox": "foxes", "wolf": "wolves", "fish": "fish", "octopus": "octopuses", "deer": "deer",
    "butterfly": "butterflies", "bus": "buses", "dress": "dresses", "cactus": "cactuses",
    "strawberry": "strawberries", "broccoli": "broccoli", "trophy": "trophies", "snowman": "snowmen",
    "man": "men", "woman": "women",
}  # fmt: skip


def _plural(name: str) -> str:
    return _IRREGULAR.get(name, name + "s")


def _plain(*sprites: str | tuple[str, str]) -> list[Thing]:
    """Things of one look; a pair where the sprite's label is not the name."""
    pairs = [(sprite, sprite) if isinstance(sprite, str) else sprite for sprite in sprites]
    return [Thing(name, label, _plural(name)) for name, label in pairs]


def _coloured(*sprites: tuple[str, str, str]) -> list[Thing]:
    """Things that can be recoloured: name, label, and the colour that the sprite has by itself."""
    return [Thing(name, label, _plural(name), hue=hue) for name, label, hue in sprites]


def _people() -> list[Thing]:
    poses = ("standing", "kneeling", "running", "walking")
    return [
        Thing(who, f"{who} standing", _plural(who), variants={p: f"{who} {p}" for p in poses}, skins=True)
        for who in ("man", "woman")
    ]


def _professions() -> list[Thing]:
    roles = {"firefighter": "firefighter", "cook": "cook", "astronaut": "astronaut", "farmer": "farmer",
             "doctor": "health worker", "police officer": "police officer", "pilot": "pilot",
             "scientist": "scientist"}  # fmt: skip
    return [
        Thing(name, f"man {label}", _plural(name), hidden=(f"man {label}", f"woman {label}"), skins=True)
        for name, label in roles.items()
    ]


EXPRESSIONS = {
    "happy": "grinning face with smiling eyes",
    "sad": "frowning face",
    "angry": "enraged face",
    "surprised": "astonished face",
    "crying": "loudly crying face",
    "sleeping": "sleeping face",
    "winking": "winking face",
    "cool": "smiling face with sunglasses",
}

THINGS: tuple[Thing, ...] = (
    *_plain(
        "dog", "cat", "fox", "lion", "tiger", "horse", "zebra", "cow", "pig", "camel", "giraffe", "elephant",
        "mouse", "rabbit", "bear", "koala", "panda", "kangaroo", "chicken", "penguin", "duck", "owl",
        "flamingo", "frog", "crocodile", "turtle", "dolphin", "whale", "shark", "crab", "octopus", "snail",
        "monkey", "wolf", "deer", "unicorn", ("dinosaur", "T-Rex"),
    ),
    *_plain("sunflower", "rose", "cactus", "mushroom", "palm tree", ("pine tree", "evergreen tree")),
    *_plain(
        "banana", "pineapple", "strawberry", "watermelon", "carrot", "broccoli", "hamburger", "pizza",
        "doughnut", "cookie", "birthday cake", ("ice cream", "soft ice cream"), "teapot",
    ),
    *_plain(
        "bicycle", "tractor", "airplane", "helicopter", "rocket", "sailboat", "ambulance", "taxi",
        ("fire truck", "fire engine"), ("ufo", "flying saucer"), ("train", "locomotive"), ("bus", "minibus"),
    ),
    *_plain(
        "guitar", "drum", "camera", "trophy", "house", "castle", "tent", "chair", "crown", "candle", "robot",
        "snowman", "teddy bear", "soccer ball", "basketball", "light bulb",
        ("christmas tree", "Christmas tree"), ("jack o lantern", "jack-o-lantern"),
    ),
    *_coloured(
        ("car", "automobile", "red"), ("balloon", "balloon", "red"), ("apple", "red apple", "red"),
        ("book", "blue book", "blue"), ("umbrella", "umbrella", "purple"), ("t shirt", "t-shirt", "green"),
        ("dress", "dress", "blue"), ("hat", "top hat", "black"),
        ("backpack", "backpack", "pink"), ("butterfly", "butterfly", "orange"),
        ("fish", "tropical fish", "blue"), ("tulip", "tulip", "pink"), ("heart", "red heart", "red"),
        ("gift", "wrapped gift", "yellow"), ("bird", "bird", "red"), ("truck", "pickup truck", "red"),
    ),
    *_people(),
    *_professions(),
    Thing("face", EXPRESSIONS["happy"], "faces", variants=EXPRESSIONS),
)  # fmt: skip

THING: dict[str, Thing] = {t.name: t for t in THINGS}

# Name -> hue in degrees; None marks the colours that have no hue.
COLOURS: dict[str, float | None] = {
    "red": 0.0, "orange": 28.0, "yellow": 50.0, "green": 125.0, "blue": 215.0, "purple": 275.0, "pink": 325.0,
    "black": None, "white": None,
}  # fmt: skip

PLACES: dict[str, str] = {
    "meadow": "in a meadow", "beach": "on a beach", "desert": "in a desert", "snow": "in the snow",
    "forest": "in a forest", "city": "in a city street", "room": "in a living room", "sea": "under the sea",
    "mountains": "in the mountains", "moon": "on the moon",
}  # fmt: skip

TIMES: dict[str, str] = {"day": "", "sunset": "at sunset", "night": "at night"}
WEATHERS: dict[str, str] = {
    "clear": "",
    "rain": "in the rain",
    "snowfall": "in falling snow",
    "fog": "in fog",
}

# Places without a sky have one time and one weather.
INDOORS = frozenset({"room", "sea", "moon"})

STYLES: dict[str, str] = {
    "none": "", "pencil": "pencil sketch", "watercolour": "watercolour painting", "pixel": "pixel art",
    "monochrome": "black and white photo", "sepia": "sepia photo", "oil": "oil painting",
    "poster": "pop art poster", "blueprint": "blueprint drawing", "neon": "neon drawing",
}  # fmt: skip

TONES: dict[str, str] = {
    "none": "", "bright": "brighter", "dark": "darker", "vivid": "more colourful", "pale": "less colourful",
    "warm": "warmer", "cool": "cooler", "contrast": "more contrast", "blur": "blurred", "sharp": "sharper",
}  # fmt: skip
