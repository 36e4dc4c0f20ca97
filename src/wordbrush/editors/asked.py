"""What is asked of an editor, in words: the part of a request that files keep."""

from PIL import Image
from pydantic import BaseModel

from wordbrush.types import EditRequest


class Asked(BaseModel):
    """The fields of an `EditRequest` that are no pictures."""

    instruction: str = ""
    source_caption: str = ""
    target_caption: str = ""
    negative_prompt: str | None = None
    task: str | None = None
    seed: int | None = None

    def request(
        self, image: Image.Image, mask: Image.Image | None = None, num_variations: int = 1
    ) -> EditRequest:
        """The same, asked of a picture."""
        asked = {name: getattr(self, name) for name in Asked.model_fields}
        return EditRequest(image, mask=mask, num_variations=num_variations, **asked)
