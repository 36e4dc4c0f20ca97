import dataclasses

import pytest

from wordbrush import METHODS, InstructPix2PixSettings, UsageError
from wordbrush.diffusion.schedulers import SCHEDULERS
from wordbrush.editors import find_method
from wordbrush.editors.imagic_presets import PRESETS
from wordbrush.editors.settings import make_settings, record_of


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_has_a_default_and_a_description(name: str) -> None:
    method = find_method(name)
    for field in method.settings_fields():
        assert field.default.description, field.name  # pyright: ignore
        assert len(field.default.description) < 120  # pyright: ignore
    assert method.settings() == make_settings(method.settings, {})


def test_the_defaults_of_the_paper() -> None:
    settings = InstructPix2PixSettings()
    assert (settings.text_scale, settings.image_scale, settings.steps) == (7.5, 1.5, 20)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.steps = 3  # pyright: ignore


def test_several_faults_in_one_line() -> None:
    with pytest.raises(UsageError) as caught:
        make_settings(InstructPix2PixSettings, {"steps": 0, "text_scale": "much"})
    assert str(caught.value).count(";") == 1
    assert "steps is 0" in str(caught.value)
    assert "text_scale is 'much'" in str(caught.value)


def test_words_to_keep_need_words_to_edit() -> None:
    with pytest.raises(UsageError, match="keep_words takes from the place of blend_words"):
        make_settings(find_method("prompt-to-prompt").settings, {"keep_words": "dog"})


def test_a_record_says_what_a_preset_stood_for() -> None:
    settings = make_settings(find_method("imagic").settings, {"preset": "storybook", "model_steps": 7})
    tuning = record_of(settings)["tuning"]
    assert tuning["model_steps"] == 7
    assert tuning["embedding_steps"] == PRESETS["storybook"].embedding_steps
    assert "tuning" not in record_of(InstructPix2PixSettings())


def test_every_scheduler_is_known_to_diffusers() -> None:
    import diffusers

    assert all(hasattr(diffusers, kind) for kind, _ in SCHEDULERS.values())
