"""`LatentDiffusion`: a stock checkpoint of the Stable Diffusion family, loaded and ready to call."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

from wordbrush.diffusion.schedulers import SCHEDULERS
from wordbrush.errors import ModelError, UsageError, one_line
from wordbrush.models import loading, quiet, resolve

# Configurations of the released 8-channel checkpoints: diffusers itself only guesses text-to-image ones.
_EDITOR_CONFIGS = {False: "timbrooks/instruct-pix2pix", True: "diffusers/sdxl-instructpix2pix-768"}
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"


@dataclass(frozen=True)
class TextEmbeds:
    """Encoded prompts."""

    tokens: Tensor
    """(B, L, D)."""
    pooled: Tensor | None = None
    """(B, P), SDXL only."""


@dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """The networks of a checkpoint, all stock classes of diffusers and transformers, and how to call them.

    SD 1.x and 2.x have one tokenizer and text encoder, SDXL two.
    """

    unet: Any
    vae: Any
    tokenizers: tuple[Any, ...]
    text_encoders: tuple[Any, ...]
    scheduler: Any
    """The checkpoint's own; `make_scheduler` makes fresh ones from it."""
    device: torch.device
    zero_null_text: bool = False
    """SDXL: the null text is zeros and not the encoded empty prompt."""
    scale_image_condition: bool = False
    """CosXL: the image condition is scaled as latents are."""

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        unet: str | None = None,
        offload: bool = False,
        loras: Sequence[str | Path] = (),
        config: str | Path | None = None,
    ) -> "LatentDiffusion":
        """Load a checkpoint; weights stored in another precision are cast to `dtype`.

        Args:
            source: an embedded name, a diffusers folder, a hub id, or an original single file
                (`.safetensors`; `.ckpt` is read without running code in it).
            device: where the networks run.
            dtype: their precision; an autoencoder that overflows in float16 stays in float32.
            unet: subfolder of the U-Net to use, where the checkpoint has it; else the main one. A noise
                schedule in it takes the place of the checkpoint's, too.
            offload: keep on the GPU only the network that is running.
            loras: LoRA files (diffusers' or original layout) or PEFT folders, fused into the weights.
            config: for a single file: a diffusers folder or hub id with the configurations.

        Raises:
            ModelError: the checkpoint is missing, damaged, or not of the Stable Diffusion family.
            UsageError: offload without a GPU.
        """
        if offload and device.type == "cpu":
            raise UsageError("offload moves networks between a GPU and memory, but the device is the CPU")
        path = resolve(source)
        pipe = _open(path, dtype, unet, config)
        for lora in loras:
            _fuse_lora(pipe, Path(lora))
        model = cls(
            unet=pipe.unet,
            vae=pipe.vae,
            tokenizers=_present(pipe, "tokenizer", "tokenizer_2"),
            text_encoders=_present(pipe, "text_encoder", "text_encoder_2"),
            scheduler=pipe.scheduler,
            device=device,
            zero_null_text=pipe.config.get("force_zeros_for_empty_prompt", False),
            scale_image_condition=pipe.config.get("is_cosxl_edit") or False,
        )
        model._place(dtype, offload)
        return model

    @property
    def networks(self) -> list[nn.Module]:
        """All networks, in the order in which an edit runs them."""
        return [*self.text_encoders, self.unet, self.vae]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the U-Net."""
        return self.unet.dtype

    @property
    def latent_channels(self) -> int:
        """Channels of the autoencoder's latents."""
        return self.vae.config.latent_channels

    @property
    def latent_grid(self) -> int:
        """Pixels per latent: working sides are multiples of it."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def native_size(self) -> int:
        """The short side in pixels that the U-Net was trained at."""
        size = self.unet.config.sample_size or 64
        return min(size if isinstance(size, list | tuple) else (size,)) * self.latent_grid

    def encode_text(self, prompts: Sequence[str]) -> TextEmbeds:
        """Encode prompts; what lies beyond the window is cut off, see `dropped_words`."""
        parts = [
            self._encode(prompts, tokenizer, encoder)
            for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True)
        ]
        if len(parts) == 1:
            return TextEmbeds(parts[0][0])
        return TextEmbeds(torch.cat([out.hidden_states[-2] for out in parts], dim=-1), parts[-1][0])

    def encode_null_text(self, negative_prompt: str | None = None) -> TextEmbeds:
        """What stands for no text, (1, L, D); a negative prompt takes its place."""
        embeds = self.encode_text([negative_prompt or ""])
        if negative_prompt is not None or not self.zero_null_text:
            return embeds
        pooled = None if embeds.pooled is None else torch.zeros_like(embeds.pooled)
        return TextEmbeds(torch.zeros_like(embeds.tokens), pooled)

    def dropped_words(self, prompt: str) -> str:
        """The end of the prompt, in whole words, that the text encoder's window cuts off; mostly ""."""
        return max((_dropped(prompt, t) for t in self.tokenizers), key=len)

    def encode_image(self, pixels: Tensor, *, tiled: bool = False) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> float32 (B, C, h, w): the mode, unscaled, the image condition."""
        self.vae.use_tiling = tiled
        out = self.vae.encode(pixels.to(self.device, self.vae.dtype))
        latents = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents
        return latents.float()

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Unscaled latents -> those that the U-Net denoises, of about unit variance; `decode` undoes it."""
        mean, std = self._latent_statistics(latents)
        return (latents - mean) * self.vae.config.scaling_factor / std

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Tensor:
        """Latents (B, C, h, w) as the U-Net makes them -> float32 pixels (B, 3, H, W), about [-1, 1]."""
        mean, std = self._latent_statistics(latents)
        latents = latents * std / self.vae.config.scaling_factor + mean
        self.vae.use_tiling = tiled
        return self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()

    def make_scheduler(self, name: str | None = None) -> Any:
        """A fresh scheduler over the checkpoint's noise schedule, by name; None: the checkpoint's own."""
        kind, changes = type(self.scheduler), {}
        if name is not None:
            class_name, changes = SCHEDULERS[name]
            kind = getattr(diffusers, class_name)
        return kind.from_config(self.scheduler.config, **changes)

    def add_time_ids(self, size: tuple[int, int], count: int) -> Tensor | None:
        """SDXL's (count, 6) sizes for an uncropped working picture (H, W); None for other families."""
        if self.unet.config.addition_embed_type != "text_time":
            return None
        return torch.tensor([[*size, 0, 0, *size]] * count, device=self.device)

    def _latent_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            mean, std = (0.0,), (1.0,)
        return like.new_tensor(mean)[:, None, None], like.new_tensor(std)[:, None, None]

    def _encode(self, prompts: Sequence[str], tokenizer: Any, encoder: Any) -> Any:
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=_window(tokenizer),
            truncation=True,
            return_tensors="pt",
        )
        masked = getattr(encoder.config, "use_attention_mask", False)
        return encoder(
            tokens.input_ids.to(self.device),
            attention_mask=tokens.attention_mask.to(self.device) if masked else None,
            output_hidden_states=len(self.text_encoders) > 1,
        )

    def _place(self, dtype: torch.dtype, offload: bool) -> None:
        if dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.to(dtype=torch.float32)
        for network in self.networks:
            network.eval().requires_grad_(False)
        if dtype != torch.float32 and self.device.type != "mps":
            # Half precision's convolutions want it; in float32 it is no gain (docs/speed.md).
            for network in (self.unet, self.vae):
                network.to(memory_format=torch.channels_last)
        if offload:
            offload_networks(self.networks, self.device)
        else:
            for network in self.networks:
                network.to(self.device)


def offload_networks(networks: Sequence[nn.Module], device: torch.device) -> None:
    """Keep the networks in memory; move each to `device` when it runs, and back when another one does."""
    from accelerate.hooks import ModelHook, add_hook_to_module
    from accelerate.utils.operations import send_to_device

    there: nn.Module | None = None

    class Alone(ModelHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            nonlocal there
            if there is not module:  # step after step it is the U-Net
                if there is not None:
                    there.to("cpu")
                there = module.to(device)
            return send_to_device(args, device), send_to_device(kwargs, device)

    for network in networks:
        add_hook_to_module(network.to("cpu"), Alone())


def _open(path: Path, dtype: torch.dtype, unet: str | None, config: str | Path | None) -> Any:
    """The checkpoint as a diffusers pipeline, which only serves as the container of its parts."""
    options: dict[str, Any] = {"dtype": dtype, "safety_checker": None, "requires_safety_checker": False}
    with loading(f"the checkpoint {path}"):
        pipe = _open_folder(path, unet, options) if path.is_dir() else _open_file(path, config, options)
    _check(path, pipe)
    return pipe


def _check(path: Path, pipe: Any) -> None:
    if missing := [name for name in _PARTS if getattr(pipe, name, None) is None]:
        raise ModelError(
            f"the checkpoint {path} is not of the Stable Diffusion family: it has no {missing[0]}"
        )
    parts: dict[str, Any] = pipe.components
    for name, part in parts.items():
        if isinstance(part, nn.Module) and any(p.is_meta for p in part.parameters()):
            raise ModelError(f"the checkpoint {path} is damaged: weights of its {name} are missing")
    for name, tokenizer in parts.items():
        if name.startswith("tokenizer") and tokenizer and len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ModelError(f"the checkpoint {path} is damaged: its {name} has no vocabulary")


def _open_folder(path: Path, unet: str | None, options: dict[str, Any]) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME

    if not (path / "model_index.json").is_file():
        raise ModelError(f"{path} is not a diffusers folder: it has no model_index.json")
    if unet is not None and (path / unet).is_dir():
        dtype = options["dtype"]
        other = UNet2DConditionModel.from_pretrained(path, subfolder=unet, dtype=dtype, local_files_only=True)
        options = options | {"unet": other}
    options = options | _open_text_encoders(path, options["dtype"])
    pipe: Any = DiffusionPipeline.from_pretrained(path, local_files_only=True, **options)
    if unet is not None and (path / unet / SCHEDULER_CONFIG_NAME).is_file():
        pipe.scheduler = type(pipe.scheduler).from_pretrained(path / unet)
    return pipe


def _open_text_encoders(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Transformers would start missing weights at random without a word, so these are opened apart."""
    index = json.loads((path / "model_index.json").read_text())
    if not isinstance(index, dict):
        raise ModelError(f"the checkpoint {path} is damaged: its model_index.json holds no table")
    encoders: dict[str, Any] = {}
    for name, (_, kind) in ((n, v) for n, v in index.items() if n.startswith("text_encoder") and v[0]):
        encoders[name], report = getattr(transformers, kind).from_pretrained(
            path / name, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ModelError(f"the checkpoint {path} is damaged: weights of its {name} are missing")
    return encoders


def _open_file(path: Path, config: str | Path | None, options: dict[str, Any]) -> Any:
    if path.suffix not in (".safetensors", ".ckpt"):
        raise ModelError(f"{path} is not a checkpoint: expected a folder, a .safetensors or a .ckpt file")
    shapes = _shapes(path)
    if _FIRST_CONV not in shapes:
        raise ModelError(f"{path} is not an original Stable Diffusion checkpoint: it has no {_FIRST_CONV}")
    is_xl = any(name.startswith("conditioner.") for name in shapes)
    if config is None and shapes[_FIRST_CONV][1] == 8:
        config = _EDITOR_CONFIGS[is_xl]
    kind = "StableDiffusionXLInstructPix2PixPipeline" if is_xl else "StableDiffusionInstructPix2PixPipeline"
    return getattr(diffusers, kind).from_single_file(
        str(path), config=None if config is None else str(config), **options
    )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if path.suffix == ".ckpt":
        weights = _read_pickle(path)
        weights = weights.get("state_dict", weights)
        return {name: tuple(value.shape) for name, value in weights.items() if isinstance(value, Tensor)}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as weights:
        return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118


def _read_pickle(path: Path) -> dict[str, Any]:
    """The names and (without their values) the weights of a `.ckpt`; nothing in it is executed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weights = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # whose text would advise to run what the file says
        raise ModelError(f"{path} is damaged or holds more than weights: look for a .safetensors") from error
    if not isinstance(weights, dict):
        raise ModelError(f"{path} is not a checkpoint: it holds a {type(weights).__name__}")
    return weights


def _fuse_lora(pipe: Any, path: Path) -> None:
    if not path.exists():
        raise ModelError(f"there is no LoRA file {path}")
    try:
        with quiet():
            if (path / "adapter_config.json").is_file():
                from peft import PeftModel

                pipe.unet = PeftModel.from_pretrained(pipe.unet, path).merge_and_unload()
                return
            folder, name = (path, None) if path.is_dir() else (path.parent, path.name)
            pipe.load_lora_weights(str(folder), weight_name=name, local_files_only=True)
            if not pipe.get_list_adapters():
                raise ModelError("none of its weights belongs to this model")
            pipe.fuse_lora()
            pipe.unload_lora_weights()
    except Exception as error:  # as in `_open`
        raise ModelError(f"cannot use the LoRA file {path}: {one_line(error)}") from error


def _present(pipe: Any, *names: str) -> tuple[Any, ...]:
    return tuple(part for name in names if (part := getattr(pipe, name, None)) is not None)


def _window(tokenizer: Any) -> int:
    return tokenizer.model_max_length


def _dropped(prompt: str, tokenizer: Any) -> str:
    found = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
    if len(found.input_ids) <= _window(tokenizer):
        return ""
    end = found.offset_mapping[_window(tokenizer) - 2][1]  # the window's last token ends the text
    return prompt[end:].strip()
