"""The names of an original (CompVis) Stable Diffusion 1 checkpoint, for tests of single files."""

import re
from typing import Any

from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def single_file(pipe: Any) -> dict[str, Tensor]:
    """All weights of an SD 1 pipeline under their original names."""
    weights = {
        f"model.diffusion_model.{_unet_name(pipe.unet, k)}": v for k, v in pipe.unet.state_dict().items()
    }
    for key, value in pipe.vae.state_dict().items():
        name = _vae_name(pipe.vae, key)
        is_attention = re.search(r"\.(q|k|v|proj_out)\.weight$", name)
        weights[f"first_stage_model.{name}"] = value[..., None, None] if is_attention else value
    for key, value in pipe.text_encoder.state_dict().items():
        weights[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    return {name: value.contiguous() for name, value in weights.items()}


def _unet_name(unet: Any, key: str) -> str:
    layers = unet.config.layers_per_block
    for ours, original in {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }.items():
        if key.startswith(ours + "."):
            return _in_resnet(original + key.removeprefix(ours))
    side, block, kind, index, rest = re.fullmatch(
        r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key
    ).groups()
    i, j = int(block), int(index)
    if kind == "downsamplers":
        return f"input_blocks.{(i + 1) * (layers + 1)}.0.{rest.replace('conv.', 'op.')}"
    if kind == "upsamplers":
        place = 2 if hasattr(unet.up_blocks[i], "attentions") else 1
        return f"output_blocks.{i * (layers + 1) + layers}.{place}.{rest}"
    place = int(kind == "attentions")
    blocks, n = (
        ("input_blocks", 1 + i * (layers + 1) + j)
        if side == "down"
        else ("output_blocks", i * (layers + 1) + j)
    )
    return _in_resnet(f"{blocks}.{n}.{place}.{rest}")


def _in_resnet(name: str) -> str:
    for ours, original in _RESNET.items():
        block = r"((?:input|output)_blocks\.\d+\.0|middle_block\.\d)"
        name = re.sub(rf"{block}\.{ours}\.", rf"\1.{original}.", name)
    return name


def _vae_name(vae: Any, key: str) -> str:
    top = len(vae.config.block_out_channels) - 1
    key = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{top - int(m[1])}", key)
    for pattern, original in (
        (r"down_blocks\.", "down."),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"\.resnets\.", ".block."),
        (r"(down|up)samplers\.0", r"\1sample"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
        (r"group_norm", "norm"),
        (r"to_out\.0", "proj_out"),
        (r"to_([qkv])\.", r"\1."),
    ):
        key = re.sub(pattern, original, key)
    return key
