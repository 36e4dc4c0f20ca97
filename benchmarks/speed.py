"""Time an edit through diffusers' pipeline and through ours: same weights, scheduler, steps, size and scales.

    python benchmarks/speed.py                      # the embedded editor, and an SD-1.5-sized one at 256 px
    python benchmarks/speed.py storybook --json speed.json

Every arm is a process of its own, since the allocator is set once a process, and the arms take turns, so
that a busy moment of the machine does not fall on one of them alone:

    diffusers        its pipeline at its defaults (float32)
    diffusers tuned  the same in the dtype that Wordbrush chooses, with the allocator set by the environment
    wordbrush        `wordbrush.load(...).edit(...)` as a user calls it

Ratios are medians over the rounds of (other arm / wordbrush). Memory is the process's peak resident size.
Then how far one noise prediction in bfloat16 is from float32's, as a part of its norm.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ARMS = ("diffusers", "diffusers tuned", "wordbrush")
MODELS = {"storybook": 128, "sd15": 256}
"""Model -> working size in pixels."""
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "34359738368",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "MALLOC_TOP_PAD_": "1073741824",
    "MALLOC_ARENA_MAX": "1",
}
INSTRUCTION = "make it night"
TEXT_SCALE, IMAGE_SCALE = 7.5, 1.5
CACHE = Path(".cache/benchmarks")


def main() -> None:
    options = parse()
    if options.arm:
        serve(options.arm, options.models[0], options.steps)
        return
    report = {
        "machine": machine(),
        "models": {name: measure(name, options.steps, options.rounds) for name in options.models or MODELS},
    }
    for name, result in report["models"].items():
        print_table(name, result)
        errors = ", ".join(f"{error:.4f} at {t}" for t, error in result["bfloat16_error"].items())
        print(f"  one prediction in bfloat16, relative error by timestep: {errors}")
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    # Where none is given, Python 3.11 looks for the list itself among the choices.
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], metavar="MODEL")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(model: str, steps: int, rounds: int) -> dict[str, Any]:
    """Start every arm, let them take turns, and compare."""
    checkpoint(model)
    arms = {arm: start(arm, model, steps) for arm in ARMS}
    answers = [{arm: ask(process) for arm, process in arms.items()} for _ in range(rounds + 1)]
    for process in arms.values():
        process.communicate()
    seconds = {arm: [answer[arm]["seconds"] for answer in answers[1:]] for arm in ARMS}  # the first warms up
    result: dict[str, Any] = {"size": MODELS[model], "steps": steps, "rounds": rounds}
    for arm in ARMS:
        ratios = [theirs / ours for theirs, ours in zip(seconds[arm], seconds["wordbrush"], strict=True)]
        result[arm] = {
            "seconds": statistics.median(seconds[arm]),
            "ratio": statistics.median(ratios),
            "peak_mib": answers[-1][arm]["peak_mib"],
        }
    return result | {"bfloat16_error": rounding(checkpoint(model))}


def rounding(folder: Path) -> dict[int, float]:
    """Timestep -> the relative error of one noise prediction in bfloat16."""
    exact, rounded = predictions(folder, "float32"), predictions(folder, "bfloat16")
    return {t: ((rounded[t] - exact[t]).norm() / exact[t].norm()).item() for t in exact}


def predictions(folder: Path, dtype: str) -> dict[int, Any]:
    """Timestep -> what the U-Net predicts for the same noise."""
    import torch

    import wordbrush

    editor: Any = wordbrush.load(folder, device="cpu", dtype=dtype)
    model = editor.model
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, model.unet.config.in_channels, 16, 16, generator=generator).to(model.unet.dtype)
    text = model.encode_text([INSTRUCTION] * 4).tokens
    with torch.inference_mode():
        return {t: model.unet(noise, t, text).sample.float() for t in (50, 300, 700, 950)}


def start(arm: str, model: str, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, model, "--arm", arm, "--steps", str(steps)]
    environment = os.environ | (ALLOCATOR if arm == "diffusers tuned" else {})
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    """One edit in another process."""
    assert process.stdin and process.stdout
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args} ended early")
    return json.loads(line)


def serve(arm: str, model: str, steps: int) -> None:
    """An arm: edit once for every line that comes in, and answer with the time it took."""
    edit = (ours if arm == "wordbrush" else theirs)(checkpoint(model), MODELS[model], steps, arm)
    for _ in sys.stdin:
        begin = time.perf_counter()
        edit()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}), flush=True)


def ours(folder: Path, size: int, steps: int, arm: str) -> Callable[[], Any]:
    import wordbrush

    editor = wordbrush.load(
        folder, device="cpu", steps=steps, size=size, text_scale=TEXT_SCALE, image_scale=IMAGE_SCALE
    )
    request = wordbrush.EditRequest(picture(size), INSTRUCTION, seed=0)
    return lambda: editor.edit(request)


def theirs(folder: Path, size: int, steps: int, arm: str) -> Callable[[], Any]:
    import torch
    from diffusers import StableDiffusionInstructPix2PixPipeline

    from wordbrush.diffusion.runtime import resolve_dtype

    tuned = arm == "diffusers tuned"
    dtype = resolve_dtype("auto", torch.device("cpu")) if tuned else torch.float32
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, dtype=dtype, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return lambda: pipe(
        INSTRUCTION,
        image=picture(size),
        num_inference_steps=steps,
        guidance_scale=TEXT_SCALE,
        image_guidance_scale=IMAGE_SCALE,
        generator=torch.Generator().manual_seed(0),
    )


def picture(size: int) -> Any:
    from PIL import Image

    return Image.radial_gradient("L").convert("RGB").resize((size, size))


def checkpoint(model: str) -> Path:
    """The embedded editor, or random weights in the shapes of SD 1.5, made once."""
    if model == "storybook":
        from wordbrush.models import resolve

        return resolve(model)
    folder = CACHE / model
    if not (folder / "model_index.json").exists():
        make_sd15(folder)
    return folder


def make_sd15(folder: Path) -> None:
    import torch
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionInstructPix2PixPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    pipe = StableDiffusionInstructPix2PixPipeline(
        unet=UNet2DConditionModel(in_channels=8, sample_size=64, cross_attention_dim=768),
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                vocab_size=190,
                bos_token_id=188,
                eos_token_id=189,
                pad_token_id=189,
            )
        ),
        tokenizer=make_tokenizer(folder),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(folder)


def make_tokenizer(folder: Path) -> Any:
    """One token a character: the speed of an edit does not depend on the words."""
    from transformers import CLIPTokenizer

    characters = [chr(c) for c in range(33, 127)]
    words = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77)


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def machine() -> dict[str, Any]:
    import torch

    from wordbrush.diffusion.runtime import resolve_dtype

    dtype = str(resolve_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    return {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()} | {
        "dtype": dtype,
        "torch": torch.__version__,
    }


def print_table(model: str, result: dict[str, Any]) -> None:
    print(f"{model}, {result['size']} px, {result['steps']} steps, median of {result['rounds']} rounds")
    print(f"  {'':16}{'seconds':>9}{'ratio':>8}{'peak MiB':>10}")
    for arm in ARMS:
        row = result[arm]
        print(f"  {arm:16}{row['seconds']:9.2f}{row['ratio']:8.2f}{row['peak_mib']:10.0f}")


if __name__ == "__main__":
    main()
