"""Time training of InstructPix2Pix against the arithmetic of diffusers' train_instruct_pix2pix.py.

    python benchmarks/training.py                       # the embedded editor at 128 px
    python benchmarks/training.py --model FOLDER --size 256 --batch-size 16 --json training.json

Same weights, pictures, batch, optimiser (AdamW), loss and moving average. Every arm is a process of its own,
and the arms take turns, so that a busy moment of the machine does not fall on one of them alone:

    script        what the script computes in a step, in float32, its default
    script tuned  the same under bf16 autocast with the frozen networks in bf16, the allocator set
    wordbrush     `wordbrush train instruct-pix2pix --mixed-precision bf16`, latents and texts encoded before

The script's pictures lie ready in memory, while ours are read as in any run. Ratios are medians over the
rounds of (wordbrush / other arm). Memory is how far the process grows at the peak beyond what its imports
take; on a GPU, the peak there.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ARMS = ("script", "script tuned", "wordbrush")
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "34359738368",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "MALLOC_TOP_PAD_": "1073741824",
    "MALLOC_ARENA_MAX": "1",
}
WORK = Path(".cache/benchmarks/training")
PAIRS = 64


def main() -> None:
    options = parse()
    if options.arm:
        serve(options)
        return
    data(options.size)
    once = subprocess.run(command(options, "wordbrush"), input="go\n", text=True, stdout=subprocess.PIPE)
    if once.returncode:  # it also fills the cache, which a run does once
        raise SystemExit("the benchmark could not start")
    report = compare(options)
    for arm, row in report.items():
        print(f"{arm:14}{row['samples_per_second']:9.2f} samples/s{row['peak_mib']:8.0f} MiB", end="")
        print(f"   wordbrush: {row['speed_ratio']:.2f}x the speed, {row['memory_ratio']:.2f}x the memory")
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "arms": report}, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="storybook", help="an editor in diffusers' layout")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mixed-precision", default="bf16", choices=["no", "bf16"], help="of wordbrush")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="in all arms")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def command(options: argparse.Namespace, arm: str) -> list[str]:
    values = {"model": options.model, "size": options.size, "batch-size": options.batch_size}
    values |= {"steps": options.steps, "arm": arm, "mixed-precision": options.mixed_precision}
    flags = [f"--{name}={value}" for name, value in values.items()]
    checkpointing = ["--gradient-checkpointing"] if options.gradient_checkpointing else []
    return [sys.executable, __file__, *flags, *checkpointing]


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Start every arm, let them take turns, and compare."""
    arms = {
        arm: subprocess.Popen(
            command(options, arm), env=os.environ | (ALLOCATOR if arm == "script tuned" else {}),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for arm in ARMS
    }  # fmt: skip
    answers = [{arm: ask(process) for arm, process in arms.items()} for _ in range(options.rounds + 1)]
    for process in arms.values():
        process.communicate()
    rounds, last = answers[1:], answers[-1]  # the first warms up
    seconds = {arm: [answer[arm]["seconds"] for answer in rounds] for arm in ARMS}
    samples = options.steps * options.batch_size
    return {
        arm: {
            "samples_per_second": samples / statistics.median(seconds[arm]),
            "peak_mib": last[arm]["peak_mib"],
            "speed_ratio": statistics.median(
                theirs / ours for theirs, ours in zip(seconds[arm], seconds["wordbrush"], strict=True)
            ),
            "memory_ratio": last["wordbrush"]["peak_mib"] / last[arm]["peak_mib"],
        }
        for arm in ARMS
    }


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    """One turn of another process."""
    assert process.stdin and process.stdout
    process.stdin.write("go\n")
    process.stdin.flush()
    while line := process.stdout.readline():
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"{process.args} ended early")


def serve(options: argparse.Namespace) -> None:
    (ours if options.arm == "wordbrush" else theirs)(options)


class Turns:
    """Waits for a line, lets some steps pass, and says how long they took."""

    def __init__(self, steps: int, imports_mib: float) -> None:
        self.steps, self.done, self.begin, self.imports_mib = steps, 0, 0.0, imports_mib
        self.wait()

    def wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)  # in the middle of an endless run
        self.begin = time.perf_counter()

    def step(self) -> None:
        self.done += 1
        if self.done % self.steps == 0:
            seconds = time.perf_counter() - self.begin
            print(json.dumps({"seconds": seconds, "peak_mib": peak_mib() - self.imports_mib}), flush=True)
            self.wait()


def ours(options: argparse.Namespace) -> None:
    import shutil

    from wordbrush.diffusion.runtime import prepare_process

    prepare_process()
    from wordbrush.training.instruct_pix2pix import Config, InstructPix2PixRecipe
    from wordbrush.training.loop import train

    imports_mib = peak_mib()
    output = WORK / f"run-{Path(options.model).name}-{options.size}"
    shutil.rmtree(output / "state", ignore_errors=True)
    config = Config(
        data=[str(data(options.size))], init_from=options.model, output=output, size=options.size,
        batch_size=options.batch_size, optimizer="adamw", mixed_precision=options.mixed_precision,
        multiscale=False, steps=10**6, log_steps=10**6, checkpoint_minutes=10**6,
        gradient_checkpointing=options.gradient_checkpointing,
    )  # fmt: skip
    recipe = InstructPix2PixRecipe(config)
    recipe.samples()  # filled the first time
    turns = Turns(options.steps, imports_mib)
    train(recipe, config, on_step=lambda step, averaged: turns.step())


def theirs(options: argparse.Namespace) -> None:
    """The loop of the script, without what it does to load, log and save."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler, StableDiffusionInstructPix2PixPipeline
    from diffusers.training_utils import EMAModel

    from wordbrush.models import resolve

    imports_mib = peak_mib()
    tuned = options.arm == "script tuned"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = resolve(options.model)
    pipe: Any = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None
    )
    unet, vae, text_encoder = pipe.unet.to(device), pipe.vae.to(device), pipe.text_encoder.to(device)
    scheduler: Any = DDPMScheduler.from_config(pipe.scheduler.config)
    weight_dtype = torch.bfloat16 if tuned else torch.float32
    for frozen in (vae, text_encoder):
        frozen.requires_grad_(False).to(dtype=weight_dtype)
    unet.train()
    if options.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    ema = EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
    ema.to(device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=1e-2)
    null_ids = ids(pipe.tokenizer, [""]).to(device)

    def encode(pixels: Any) -> Any:
        with torch.no_grad():
            return vae.encode(pixels.to(device, weight_dtype))

    def step(original: Any, edited: Any, instructions: list[str]) -> None:
        latents = sampled(encode(edited)) * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),), device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        text = text_encoder(ids(pipe.tokenizer, instructions).to(device))[0]
        condition = mode(encode(original))
        random_p = torch.rand(len(latents), device=device)
        prompt_mask = (random_p < 0.1).reshape(-1, 1, 1)
        text = torch.where(prompt_mask, text_encoder(null_ids)[0], text)
        keep = 1 - ((random_p >= 0.05) * (random_p < 0.15)).to(condition.dtype)
        condition = keep.reshape(-1, 1, 1, 1) * condition
        if scheduler.config.prediction_type == "epsilon":
            target = noise
        else:
            target = scheduler.get_velocity(latents, noise, timesteps)
        with torch.autocast(device, torch.bfloat16, enabled=tuned):
            predicted = unet(torch.cat([noisy, condition], 1), timesteps, text, return_dict=False)[0]
            loss = F.mse_loss(predicted.float(), target.float())
        loss.item()  # the script gathers it in every step
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())

    original, edited, instructions = pictures(options.size)
    turns = Turns(options.steps, imports_mib)
    for number in range(10**9):
        rows = [(number * options.batch_size + i) % PAIRS for i in range(options.batch_size)]
        step(original[rows], edited[rows], [instructions[row] for row in rows])
        turns.step()


def sampled(encoded: Any) -> Any:
    return encoded.latent_dist.sample() if hasattr(encoded, "latent_dist") else encoded.latents


def mode(encoded: Any) -> Any:
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents


def ids(tokenizer: Any, texts: list[str]) -> Any:
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return tokenizer(texts, max_length=tokenizer.model_max_length, **options).input_ids


def pictures(size: int) -> tuple[Any, Any, list[str]]:
    """All before, all after (n, 3, size, size) in [-1, 1], and the instructions."""
    import numpy as np
    import torch

    from wordbrush.data.blocks import open_blocks

    edits = [edit for block in open_blocks([str(data(size))]) for edit in block.read()]
    pairs = np.array([[np.asarray(picture) for picture in edit.pictures()] for edit in edits])
    pixels = torch.from_numpy(pairs).permute(1, 0, 4, 2, 3).float() / 127.5 - 1
    return pixels[0], pixels[1], [edit.instruction for edit in edits]


def data(size: int) -> Path:
    """Some pairs of smooth random pictures, made once."""
    import numpy as np
    from PIL import Image

    from wordbrush.data.rows import Row, encode_png
    from wordbrush.data.shards import write_shards

    folder = WORK / f"pairs-{size}"
    if folder.exists():
        return folder
    rng = np.random.default_rng(0)

    def picture() -> bytes:
        small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        return encode_png(small.resize((size, size), Image.Resampling.BICUBIC))

    rows = [
        Row(input_image=picture(), edit_prompt=f"make it {n}", edited_image=picture()) for n in range(PAIRS)
    ]
    partial = folder.with_name(f".{folder.name}")
    write_shards(partial, "train", rows)
    partial.rename(folder)
    return folder


def peak_mib() -> float:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
