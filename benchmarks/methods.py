"""Peak memory and time of every editing method at the size of Stable Diffusion 1.5, on random weights.

    python benchmarks/methods.py                                  # every arm, one after the other
    python benchmarks/methods.py diffedit text2live --size 256    # some of them; run again, the others follow
    python benchmarks/methods.py --device cuda --size 512

Every arm is an edit in a process of its own, of few steps of each stage: what a step costs does not depend on
how many there are. Memory is the process's peak resident size, with all that it imports (on a GPU, that of
PyTorch's tensors). A step's time is the median of those in a stage, but for the first, which warms up. Arms
that differ only in how many optimiser steps they take show that no gradient outlives its step: their memory
is the same.

Writes rows.jsonl, which a later run adds to, and table.md.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from speed import CACHE, checkpoint, make_tokenizer, peak_mib, picture

FEW, MORE = 3, 9
MEMORY = ", more"
"""Arms that are there for their memory: steps cost as much as those of the arm with fewer."""
SAME_ERROR = {"null_text_tolerance": 0, "null_text_growth": 0}  # so that no null text is done early
ARMS: dict[str, dict[str, Any]] = {
    "instruct-pix2pix": {},
    "sdedit": {},
    "prompt-to-prompt": {"null_text_steps": FEW} | SAME_ERROR,
    "prompt-to-prompt, more": {"null_text_steps": MORE} | SAME_ERROR,
    "diffedit": {"mask_samples": FEW},
    "imagic": {"embedding_steps": FEW, "model_steps": FEW},
    "imagic, more": {"embedding_steps": MORE, "model_steps": MORE},
    "imagic, adapters": {"embedding_steps": FEW, "model_steps": FEW, "lora_rank": 16},
    "imagic, adapters, saving": {
        "embedding_steps": FEW, "model_steps": FEW, "lora_rank": 16, "save_memory": True,
    },
    "text2live": {"steps": FEW},
    "text2live, more": {"steps": MORE},
}  # fmt: skip
"""Name -> settings; the name begins with the method's."""
TEXTS = ("make it night", "a dog on a beach", "a dog on a beach at night")


def main() -> None:
    options = parse()
    if options.arm:
        print(json.dumps(measure(options.arm, options)), flush=True)
        return
    from wordbrush.evaluation.journal import Journal

    make_models()
    journal = Journal(options.output, {"size": options.size, "device": options.device, "machine": machine()})
    done = {row["arm"] for row in journal.rows}
    for arm in options.arms or ARMS:
        if arm not in done:
            journal.append([{"arm": arm, **run(arm, options)}])
            print(journal.rows[-1], flush=True)
    (options.output / "table.md").write_text(to_table(journal.rows, options))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arms", nargs="*", choices=[*ARMS, []], metavar="ARM")  # [] as in speed.py
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", "-o", type=Path, default=Path("out/benchmark-methods"))
    parser.add_argument("--arm", choices=list(ARMS), help=argparse.SUPPRESS)
    return parser.parse_args()


def run(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """One arm in another process."""
    command = [
        sys.executable,
        __file__,
        "--arm",
        arm,
        "--size",
        str(options.size),
        "--device",
        options.device,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{arm} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Edit once, in this process."""
    import torch

    import wordbrush
    from wordbrush.editors import imagic_tuning

    imagic_tuning._CHECK_NOISES = 1  # its looks at the loss are rare in a tuning of real length
    method = arm.partition(",")[0]
    settings = {"steps": FEW, "size": options.size} | ARMS[arm]
    if method in ("prompt-to-prompt", "diffedit", "imagic"):
        settings["keep_tuned" if method == "imagic" else "keep_inversion"] = False
    model = CACHE / ("clip" if method == "text2live" else "sd15")
    editor = wordbrush.load(model, method, device=options.device, **settings)
    loaded, times = peak(options.device), dict[int, float]()

    def on_step(info: Any) -> None:
        if options.device != "cpu":
            torch.cuda.synchronize()
        times[info.step] = time.perf_counter()

    began = time.perf_counter()
    editor.edit(wordbrush.EditRequest(picture(options.size), *TEXTS, seed=0), on_step=on_step)
    return {
        "loaded_mib": loaded,
        "peak_mib": peak(options.device),
        "seconds": time.perf_counter() - began,
        "step_seconds": step_seconds(method, editor.settings, times),
    }


def step_seconds(method: str, settings: Any, times: dict[int, float]) -> dict[str, float]:
    """Stage -> the median time of its steps, from when each ended."""
    found: dict[str, float] = {}
    for name, first, last in stages(method, settings, max(times)):
        ends = [times[step] for step in range(first, last + 1)]
        found[name] = statistics.median(b - a for a, b in zip(ends, ends[1:], strict=False))
    return found


def stages(method: str, settings: Any, last: int) -> list[tuple[str, int, int]]:
    """The stages of an edit, each with the numbers of its first and its last step."""
    counts: dict[str, int] = {}
    if method == "prompt-to-prompt":
        counts = {"inversion": settings.steps, "null text": settings.steps}
    elif method == "diffedit":
        depth = int(settings.steps * settings.strength)
        counts = {"mask": settings.mask_samples, "inversion": depth}
    elif method == "imagic":
        counts = {"embedding": settings.embedding_steps, "U-Net": settings.model_steps}
    found: list[tuple[str, int, int]] = []
    first = 0
    for name, count in counts.items():
        found.append((name, first, first + count - 1))
        first += count
    return [*found, ("training" if method == "text2live" else "sampling", first, last)]


def peak(device: str) -> float:
    if device == "cpu":
        return peak_mib()
    import torch

    return torch.cuda.max_memory_allocated() / 2**20


def make_models() -> None:
    """Random weights in the shapes of SD 1.5, with an editor's and a text-to-image U-Net, and of ViT-B/32."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPConfig, CLIPModel

    folder, clip = checkpoint("sd15"), CACHE / "clip"
    torch.manual_seed(0)
    if not (folder / "text_to_image" / "config.json").exists():
        unet = UNet2DConditionModel(in_channels=4, sample_size=64, cross_attention_dim=768)
        unet.to(torch.float16).save_pretrained(folder / "text_to_image")
    if not (clip / "preprocessor_config.json").exists():
        tokens = {"vocab_size": 190, "bos_token_id": 188, "eos_token_id": 189, "pad_token_id": 189}
        CLIPModel(CLIPConfig(text_config=tokens)).save_pretrained(clip)
        make_tokenizer(clip).save_pretrained(clip)
        config = {"resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (clip / "preprocessor_config.json").write_text(json.dumps(config))


def machine() -> dict[str, Any]:
    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def to_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    from wordbrush.evaluation.report import markdown_table

    head = ["method", "settings", "loaded", "at the peak", "seconds a step"]
    known = {row["arm"]: row for row in rows}
    lines: list[list[str]] = []
    for arm, settings in ARMS.items():
        if arm in known:
            row = known[arm]
            given = ", ".join(f"{name} {value}" for name, value in settings.items() if name not in SAME_ERROR)
            times = {} if arm.endswith(MEMORY) else row["step_seconds"]
            steps = ", ".join(f"{name} {seconds:.2g}" for name, seconds in times.items())
            memory = [f"{row[name] / 1024:.1f} GiB" for name in ("loaded_mib", "peak_mib")]
            lines.append([arm.partition(",")[0], given, *memory, steps])
    made = f"python benchmarks/methods.py --size {options.size} --device {options.device}"
    return f"{markdown_table(head, lines)}\n\nOne picture at {options.size} px, by `{made}`.\n"


if __name__ == "__main__":
    main()
