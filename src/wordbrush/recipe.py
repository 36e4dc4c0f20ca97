"""How to make an edit again: the record that every written result carries, read back."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, ValidationError

from wordbrush.editors import find_method
from wordbrush.editors.asked import Asked
from wordbrush.errors import ImageError

if TYPE_CHECKING:
    from wordbrush.images import Picture


class Recipe(Asked):
    """What makes a result: the model, the method and its settings, and what was asked of it."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str = "storybook"
    method: str = "instruct-pix2pix"
    dtype: str = "auto"
    lora: list[Path] = []
    concept: list[Path] = []
    upscale: str | None = None
    watermark: str | None = None
    config: str | None = None
    source_sha256: str | None = None
    mask_sha256: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the method, as far as they are recorded."""
        recorded = self.model_extra or {}
        names = (setting.name for setting in find_method(self.method).settings_fields())
        return {name: recorded[name] for name in names if name in recorded}

    def differences(self, source: "Picture", mask: "Picture | None") -> Iterator[str]:
        """What keeps the recorded result from coming out again, in words."""
        if self.source_sha256 not in (None, source.sha256):
            yield "this is not the picture that the recorded edit was made from; the result will differ"
        if self.mask_sha256 not in (None, mask and mask.sha256):
            yield "this is not the mask that the recorded edit was made with; the result will differ"
        if self.upscale is not None:
            yield f"the recorded result was made larger: --upscale {self.upscale} does it again"
        if self.watermark is not None:
            yield "the recorded result carries a watermark: --watermark puts it in again"


def read_recipe(path: Path) -> Recipe:
    """Read the record in a written result.

    Raises:
        ImageError: the file cannot be read, or its record is missing or damaged.
    """
    from wordbrush.provenance import read_provenance

    record = read_provenance(path)
    try:
        return Recipe(**record["settings"] | {"source_sha256": record.get("source_sha256")})
    except (ValidationError, TypeError) as error:
        raise ImageError(f"{path}: its record of how it was made is damaged") from error
