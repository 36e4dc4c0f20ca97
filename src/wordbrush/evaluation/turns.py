"""`wordbrush evaluate turns`: what many turns on one picture do to what no turn was to touch.

Sessions of edits on held-out scenes of the storybook. Each turn is to change a thing, and the renders before
and after it tell exactly where; what is outside of all these regions should be as it was (Emu Edit,
2311.10089, "Sequential edits").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

import wordbrush
from wordbrush import images
from wordbrush.editors.sequential import LOW_PASS, Session
from wordbrush.evaluation.identity import identity
from wordbrush.evaluation.journal import Journal
from wordbrush.evaluation.kept_pictures import save_jpeg, shown_path
from wordbrush.evaluation.metrics import psnr
from wordbrush.evaluation.storybook import Case, make_case
from wordbrush.progress import Show, silent
from wordbrush.storybook.edits import WEIGHTS, SceneEdit, draw_operation, edit_scene, render_edit
from wordbrush.storybook.recogniser import Recogniser
from wordbrush.storybook.render import Mask, Renderer
from wordbrush.storybook.scenes import draw_scene, scene_rng
from wordbrush.types import Editor, EditRequest

OPERATIONS = ("replace", "remove", "add", "recolour", "resize", "variant")
"""That change a thing where it is, and leave the rest of the picture."""
MARGIN = 1 / 16
"""By how much a region is larger than what the renders differ in, in sides of the picture: an editor cannot
know to the pixel where a new thing is to be, and a latent of the storybook's autoencoder is as large."""
_FROM = 700_000_000
"""Seeds of sessions are others than those of scenes and of vision edits."""
_MOST = 0.8
"""Share of a picture that a session's regions may cover in the end."""


@dataclass(frozen=True, eq=False)
class Step:
    """A turn that is to be made.

    Attributes:
        edit: With the scenes before and after it.
        target: The exact picture after it.
        region: "L", white where the picture may change.
        case: By which the result is judged, where what is changed can be judged.
    """

    edit: SceneEdit
    target: Image.Image
    region: Image.Image
    case: Case | None


@dataclass(frozen=True, eq=False)
class Plot:
    """A picture and the turns to be made on it."""

    picture: Image.Image
    steps: Sequence[Step]

    def outside(self, turns: int) -> Mask:
        """(H, W): what none of the first turns was to touch."""
        regions = [np.asarray(step.region) > 0 for step in self.steps[:turns]]
        return ~np.any(regions, axis=0)


def draw_plot(render: Renderer, number: int, turns: int) -> Plot:
    """Session number `number` of the test split; some of the picture is left outside of all its regions."""
    rng = scene_rng("test", _FROM + number)
    while True:
        scene = replace(draw_scene(rng, "test"), style="none", tone="none")
        picture, steps = render(scene).image, list[Step]()
        while len(steps) < turns:
            operation = draw_operation(rng, {name: WEIGHTS[name] for name in OPERATIONS})
            edit = edit_scene(rng, "test", operation, scene)
            if edit is None or not edit.after.items or (step := _step(render, edit)) is None:
                continue
            steps.append(step)
            scene = edit.after
        found = Plot(picture, steps)
        if found.outside(turns).mean() >= 1 - _MOST:
            return found


def _step(render: Renderer, edit: SceneEdit) -> Step | None:
    """None where the edit is not to be seen: its thing is behind another."""
    sample = render_edit(render, edit)
    if sample.mask.getbbox() is None:
        return None
    region = sample.mask.filter(ImageFilter.MaxFilter(2 * round(MARGIN * render.size) + 1))
    return Step(edit, sample.after, region, make_case(render, edit))


@dataclass(frozen=True)
class Way:
    """How turns are made.

    Attributes:
        label: In the report.
        alpha: The session's threshold; None takes every picture as the editor gives it.
        low_pass: The session's filter.
        locked: Whether each turn's region is its mask.
    """

    label: str
    alpha: float | None = None
    low_pass: float = LOW_PASS
    locked: bool = False


def ways(alpha: float, low_pass: float) -> list[Way]:
    """Those that are compared."""
    kept = Way(f"unchanged pixels kept (alpha {alpha:g})", alpha, low_pass)
    return [Way("as the editor gives it"), kept, Way("region locked", locked=True)]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        model: An embedded name, a path or a hub id.
        method: One that follows instructions.
        ways: How sessions are made.
        num: Sessions.
        turns: Of each.
        settings: Of the editor.
        seed: Of the first turn of all.
        shown: How many sessions the report shows.
        device: Where the editor runs.
        dtype: Its precision.
    """

    model: str
    method: str
    ways: Sequence[Way]
    num: int = 20
    turns: int = 8
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0
    shown: int = 4
    device: str = "auto"
    dtype: str = "auto"

    def about(self, recogniser: Path | None) -> dict[str, Any]:
        """All that decides the numbers."""
        names = ("method", "num", "turns", "seed", "shown", "dtype")
        return {name: getattr(self, name) for name in names} | {
            "model": identity(self.model),
            "ways": [asdict(way) for way in self.ways],
            "settings": dict(self.settings),
            "recogniser": None if recogniser is None else identity(recogniser),
        }


def measure(
    plan: Plan, render: Renderer, recogniser: Recogniser, journal: Journal, show: Show = silent
) -> None:
    """Make and measure the sessions that the journal does not hold yet.

    Raises:
        ModelError: The model is missing or does not fit its method.
        OutputError: The folder cannot be written.
    """
    done = {(row["way"], row["session"]) for row in journal.rows}
    todo = [number for number in range(plan.num) if any((way.label, number) not in done for way in plan.ways)]
    if not todo:
        return
    editor = wordbrush.load(plan.model, plan.method, device=plan.device, dtype=plan.dtype, **plan.settings)
    for number in todo:
        show("Sessions", number, plan.num)
        plot = draw_plot(render, number, plan.turns)
        for place, way in enumerate(plan.ways):
            if (way.label, number) in done:
                continue
            pictures = play(plot, way, editor, plan.seed + plan.turns * number)
            if number < plan.shown:
                save_jpeg(pictures[-1], shown_path(journal.folder, place, number))
            rows = _measure(plot, pictures, recogniser)
            journal.append([{"way": way.label, "session": number, "turns": rows}])


def play(plot: Plot, way: Way, editor: Editor, seed: int) -> list[Image.Image]:
    """The picture after each turn."""
    session = Session(plot.picture, alpha=way.alpha, low_pass=way.low_pass)
    for number, step in enumerate(plot.steps):
        mask = step.region if way.locked else None
        asked = EditRequest(plot.picture, step.edit.instruction, mask=mask, seed=seed + number)
        session.edit(editor, asked)
    return [turn.image for turn in session.turns]


def _measure(plot: Plot, pictures: Sequence[Image.Image], recogniser: Recogniser) -> list[dict[str, float]]:
    """After each turn what became of the rest, and `made`: 1 if the turn's own edit is to be seen."""
    found: list[dict[str, float]] = []
    for number, (step, picture, read) in enumerate(
        zip(plot.steps, pictures, recogniser.read(pictures), strict=True), 1
    ):
        row = changes(plot.picture, picture, plot.outside(number))
        if step.case is not None:
            row["made"] = step.case.score(read)["made"]
        found.append(row)
    return found


def changes(before: Image.Image, after: Image.Image, where: Mask) -> dict[str, float]:
    """How far two pictures are apart in a part.

    Args:
        before: Of the size of `where`.
        after: Likewise.
        where: (H, W), somewhere true.

    Returns:
        `l1`, in [0, 1]; `psnr` in dB, at most `metrics.MAX_PSNR`; `greatest`, the greatest difference of a
        channel in levels of 255; `held`: 1 if that is at most 1.
    """
    old, new = (np.asarray(picture.convert("RGB"), dtype=np.float64)[where] for picture in (before, after))
    apart = np.abs(old - new)
    greatest = float(apart.max())
    return {
        "l1": float(apart.mean() / 255),
        "psnr": psnr(images.from_pil(before), images.from_pil(after), torch.from_numpy(where)[None])[0],
        "greatest": greatest,
        "held": float(greatest <= 1),
    }
