"""The editing methods by name, and `load`, which binds one to a model. Light: torch comes with the model."""

import dataclasses
import importlib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wordbrush.editors.settings import (
    DiffEditSettings,
    EmuEditSettings,
    ImagicSettings,
    InstructPix2PixSettings,
    PromptToPromptSettings,
    SDEditSettings,
    Text2LiveSettings,
    make_settings,
)
from wordbrush.errors import ModelError, UsageError
from wordbrush.models import own_settings
from wordbrush.types import Editor, EditRequest

_FLAGS = {"source_caption": " (--source)", "target_caption": " (--target)"}
_TEXTS = ("instruction", "source_caption", "target_caption", "task")


@dataclass(frozen=True)
class Method:
    """One editing method as the command line and the page show it."""

    name: str
    description: str
    settings: type
    factory: str
    """`module:path.in.it`, imported when the method is used."""
    needs: tuple[str, ...] = ()
    """Fields of `EditRequest` that must be given, besides the picture."""
    optional: tuple[str, ...] = ()
    """Texts of `EditRequest` that it reads besides those."""
    finds: str = ""
    """The intermediate that `--save-mask` or `--save-layer` writes: "mask", "layer" or nothing."""

    @property
    def reads(self) -> tuple[str, ...]:
        """All texts of `EditRequest` that it reads."""
        return (*self.needs, *self.optional)

    def known(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of some settings that the method has."""
        names = {field.name for field in self.settings_fields()}
        return {name: value for name, value in given.items() if name in names}

    def settings_fields(self) -> tuple[dataclasses.Field[Any], ...]:
        """The fields of the settings dataclass, in order."""
        return dataclasses.fields(self.settings)

    def check(self, request: EditRequest) -> None:
        """Raise a `UsageError` that names the first field that the request lacks."""
        for name in self.needs:
            value = getattr(request, name)
            if value is None or (isinstance(value, str) and not value.strip()):
                others = "".join(f"; {text} is for other methods" for text in self.unread(request))
                flag = _FLAGS.get(name, "")
                raise UsageError(f"{self.name} needs {name}{flag}, which is empty{others}".replace("_", " "))

    def unread(self, request: EditRequest) -> list[str]:
        """The texts that a request has and this method does not look at."""
        return [name for name in _TEXTS if name not in self.reads and getattr(request, name)]

    def load_factory(self) -> Callable[..., Editor]:
        """Import and return the function that makes the editor."""
        module, _, path = self.factory.partition(":")
        return operator.attrgetter(path)(importlib.import_module(module))


METHODS = {
    method.name: method
    for method in (
        Method(
            "instruct-pix2pix",
            "follows an instruction (InstructPix2Pix, 2211.09800)",
            InstructPix2PixSettings,
            "wordbrush.editors.instruct_pix2pix:InstructPix2Pix.load",
            needs=("instruction",),
        ),
        Method(
            "emu-edit",
            "follows an instruction, as the task that it belongs to (Emu Edit, 2311.10089)",
            EmuEditSettings,
            "wordbrush.editors.emu_edit:EmuEdit.load",
            needs=("instruction",),
            optional=("task",),
        ),
        Method(
            "sdedit",
            "noises the picture and denoises it towards a caption (SDEdit, 2108.01073)",
            SDEditSettings,
            "wordbrush.editors.sdedit:SDEdit.load",
            needs=("target_caption",),
        ),
        Method(
            "prompt-to-prompt",
            "inverts the picture and edits its attention to words (Prompt-to-Prompt, 2208.01626, 2211.09794)",
            PromptToPromptSettings,
            "wordbrush.editors.prompt_to_prompt:PromptToPrompt.load",
            needs=("source_caption", "target_caption"),
        ),
        Method(
            "diffedit",
            "finds where two captions differ and repaints there (DiffEdit, 2210.11427)",
            DiffEditSettings,
            "wordbrush.editors.diffedit:DiffEdit.load",
            needs=("target_caption",),
            optional=("source_caption",),
            finds="mask",
        ),
        Method(
            "imagic",
            "tunes the model to the picture, then goes towards a caption (Imagic, 2210.09276)",
            ImagicSettings,
            "wordbrush.editors.imagic:Imagic.load",
            optional=("target_caption",),  # a tuned picture has its own
        ),
        Method(
            "text2live",
            "trains a layer of colour and opacity over the picture by CLIP alone (Text2LIVE, 2204.02491)",
            Text2LiveSettings,
            "wordbrush.editors.text2live:Text2Live.load",
            needs=("source_caption", "target_caption"),
            finds="layer",
        ),
    )
}


def find_method(name: str) -> Method:
    """The method of that name, or a `UsageError` that names them all."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; one of {', '.join(METHODS)}")
    return METHODS[name]


def settings_for(model: str | Path, method: Method, given: Mapping[str, Any]) -> Any:
    """A method's settings on a model: what is given, else as the checkpoint says, else the method's default.

    Raises:
        UsageError: an unknown setting, or a value out of range.
        ModelError: what the checkpoint says of its settings is damaged.
    """
    own = own_settings(model, method.name)
    try:
        make_settings(method.settings, own)
    except UsageError as error:
        raise ModelError(f"the wordbrush.json of {model}: {error}") from error
    return make_settings(method.settings, own | dict(given))


def load(
    model: str | Path = "storybook",
    method: str = "instruct-pix2pix",
    *,
    device: str = "auto",
    dtype: str = "auto",
    offload: bool = False,
    lora: Sequence[str | Path] = (),
    concept: Sequence[str | Path] = (),
    config: str | Path | None = None,
    **settings: Any,
) -> Editor:
    """Load a model and return an editor.

    Args:
        model: an embedded name, a diffusers folder, a single-file checkpoint, or a hub id.
        method: one of `wordbrush methods`.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        dtype: "auto", "float32", "bfloat16" or "float16".
        offload: keep on the GPU only the network that is running.
        lora: LoRA files, fused into the weights.
        concept: files of learned words (textual inversion), which prompts may then use.
        config: for a single-file checkpoint: a diffusers folder (or hub id) with its configuration.
        **settings: the method's settings, see its settings dataclass. What is not given is as the checkpoint
            says (`wordbrush.json` in its folder: method -> settings), else the method's default.

    Raises:
        UsageError: an unknown method, setting or scheduler, or a value out of range.
        ModelError: the checkpoint is missing, damaged or does not fit the method.
        DeviceError: the device is not there.
    """
    chosen = find_method(method)
    values = settings_for(model, chosen, settings)
    return chosen.load_factory()(
        model, values, device=device, dtype=dtype, offload=offload, lora=lora, concept=concept, config=config
    )
