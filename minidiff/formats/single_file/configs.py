"""The configurations of a single-file checkpoint, from the names and shapes of its arrays.

What the shapes do not say is as in Stable Diffusion: 32 norm groups; 8 attention heads in the U-Net of 1.x, heads of 64
channels in that of 2.x, which has linear projections, and in the text encoders; the text encoder's activation goes
with its names. The prediction type is in none of the arrays.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import PREDICTION_TYPES, scaled_linear_schedule
from minidiff.engine.nn import first_few
from minidiff.errors import MinidiffError
from minidiff.formats.schedulers import sampler_to_config, schedule_to_config
from minidiff.formats.single_file.keys import AUTOENCODER, CLIP, OPEN_CLIP, UNET
from minidiff.models.config import CROSS_DOWN, CROSS_UP, DOWN, UP, TextEncoderConfig, TextUNetConfig, VAEConfig

TOKENS = 49408  # of CLIP's vocabulary
HEAD = 64  # channels of an attention head
PREDICTION = "modelspec.prediction_type"
KINDS = {
    r".*\blora_": "a LoRA; sample with it: minidiff sample MODEL --lora FILE",
    r"conditioner\.embedders\.": "Stable Diffusion XL, which is not supported",
    r"(.*\.)?joint_blocks\.": "Stable Diffusion 3, which is not supported",
    r"(.*\.)?double_blocks\.": "Flux, which is not supported",
    r"control_model\.|input_hint_block\.|controlnet_": "a ControlNet, which is not supported",
    r"(encoder\.|decoder\.)?(down_blocks|up_blocks|mid_block)\.": "one network of a diffusers folder; give the folder",
}  # fmt: skip  how a name begins -> what the file holds
INPUTS = {5: "a depth-to-image model", 7: "an upscaler", 8: "an image editing model", 9: "an inpainting model"}

Shapes = Mapping[str, tuple[int, ...]]


def check_kind(shapes: Shapes) -> None:
    """Raises MinidiffError for a file of another kind, by its name, and for one without any of the three networks."""
    names = list(shapes)
    for pattern, kind in KINDS.items():
        if any(re.match(pattern, name) for name in names):
            raise MinidiffError(f"is {kind}")
    for network, prefixes in (("U-Net", (UNET,)), ("autoencoder", (AUTOENCODER,)), ("text encoder", (CLIP, OPEN_CLIP))):
        if not any(name.startswith(prefixes) for name in names):
            raise MinidiffError(
                f"has no {network} (no {prefixes[0]}...), but {first_few(names) or 'nothing'}; "
                "give a whole Stable Diffusion 1.x or 2.x checkpoint"
            )
    inputs = _shape(shapes, f"{UNET}input_blocks.0.0.weight", 4)[1]
    latents = _shape(shapes, f"{AUTOENCODER}decoder.conv_in.weight", 4)[1]
    if inputs != latents:
        kind = INPUTS.get(inputs, "another kind of model")
        raise MinidiffError(f"its U-Net takes {inputs} channels: it is {kind}, and only text-to-image models are read")


def infer_configs(shapes: Shapes, prediction_type: str) -> dict[str, Any]:
    """The configurations of U-Net, autoencoder and text encoder in a file with arrays of these shapes.

    Raises MinidiffError if arrays are missing that say the size, and for sizes that are not supported.
    """
    try:
        unet, vae, text_encoder = _unet(shapes), _vae(shapes), _text_encoder(shapes)
    except MinidiffError as error:
        raise MinidiffError(
            f"{error}; copy it again, or if its sizes are not Stable Diffusion's, import it with --config FOLDER"
        ) from None
    large = unet.use_linear_projection and prediction_type == "v_prediction"
    side = 96 if large else 64  # latents of 768 pixels, or of 512
    pixels = side * 2 ** (len(vae.block_out_channels) - 1)
    return {
        "unet": replace(unet, sample_size=side),
        "vae": replace(vae, sample_size=pixels),
        "text_encoder": text_encoder,
    }


def scheduler_config(prediction_type: str) -> dict[str, Any]:
    """The scheduler_config.json of Stable Diffusion: PNDM, or with "v_prediction" DDIM."""
    schedule = scaled_linear_schedule(1000, 0.00085, 0.012, prediction_type=prediction_type)
    name = "ddim" if prediction_type == "v_prediction" else "pndm"
    sampler = Sampler(name, "leading", offset=1, clip=None, clean_end=False)
    return schedule_to_config(schedule) | sampler_to_config(sampler)


def prediction_in(metadata: Mapping[str, str]) -> str | None:
    """The prediction type in the metadata of a file, as ModelSpec has it; None if it has none.

    https://github.com/Stability-AI/ModelSpec
    """
    written = metadata.get(PREDICTION, "")
    name = {"v": "v_prediction"}.get(written, written)
    return name if name in PREDICTION_TYPES else None


def prediction_metadata(prediction_type: str) -> dict[str, str]:
    """The same, to be written."""
    return {PREDICTION: {"v_prediction": "v"}.get(prediction_type, prediction_type)}


def _unet(shapes: Shapes) -> TextUNetConfig:
    entries = _count(shapes, f"{UNET}input_blocks.")
    downsamplings = [n for n in range(entries) if f"{UNET}input_blocks.{n}.0.op.weight" in shapes]
    layers = (downsamplings[0] if downsamplings else entries) - 1
    if layers < 1:
        raise MinidiffError("its U-Net has no residual blocks; is it a Stable Diffusion checkpoint?")
    firsts = range(1, entries, layers + 1)  # of each level, in input_blocks
    widths = [_shape(shapes, f"{UNET}input_blocks.{n}.0.out_layers.3.weight", 4)[0] for n in firsts]
    down = [f"{UNET}input_blocks.{n}.1.norm.weight" in shapes for n in firsts]
    up = [f"{UNET}output_blocks.{n - 1}.1.norm.weight" in shapes for n in firsts]
    middle = f"{UNET}middle_block.1."
    depth = _count(shapes, f"{middle}transformer_blocks.")
    context = _shape(shapes, f"{middle}transformer_blocks.0.attn2.to_k.weight", 2)[1]
    linear = len(_shape(shapes, f"{middle}proj_in.weight", 2, 4)) == 2
    temb = _shape(shapes, f"{UNET}time_embed.0.weight", 2)[0]
    return TextUNetConfig(
        in_channels=_shape(shapes, f"{UNET}input_blocks.0.0.weight", 4)[1],
        out_channels=_shape(shapes, f"{UNET}out.2.weight", 4)[0],
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        down_block_types=tuple(CROSS_DOWN if attention else DOWN for attention in down),
        up_block_types=tuple(CROSS_UP if attention else UP for attention in up),
        transformer_layers_per_block=depth,
        cross_attention_dim=context,
        use_linear_projection=linear,
        attention_head_dim=tuple(max(1, width // HEAD) for width in widths) if linear else 8,
        time_embedding_dim=None if temb == 4 * widths[0] else temb,
    )


def _vae(shapes: Shapes) -> VAEConfig:
    at = f"{AUTOENCODER}encoder."
    levels = range(_count(shapes, f"{at}down."))
    widths = tuple(_shape(shapes, f"{at}down.{level}.block.0.conv1.weight", 4)[0] for level in levels)
    return VAEConfig(
        in_channels=_shape(shapes, f"{at}conv_in.weight", 4)[1],
        out_channels=_shape(shapes, f"{AUTOENCODER}decoder.conv_out.weight", 4)[0],
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=_count(shapes, f"{at}down.0.block."),
        latent_channels=_shape(shapes, f"{AUTOENCODER}decoder.conv_in.weight", 4)[1],
        mid_block_add_attention=f"{at}mid.attn_1.q.weight" in shapes,
        use_quant_conv=f"{AUTOENCODER}quant_conv.weight" in shapes,
        use_post_quant_conv=f"{AUTOENCODER}post_quant_conv.weight" in shapes,
    )


def _text_encoder(shapes: Shapes) -> TextEncoderConfig:
    clip = any(name.startswith(CLIP) for name in shapes)
    tokens, positions, hidden, layers = (
        ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "mlp.fc1", "encoder.layers.")
        if clip
        else ("token_embedding.weight", "positional_embedding", "mlp.c_fc", "transformer.resblocks.")
    )
    at = CLIP if clip else OPEN_CLIP
    vocab_size, width = _shape(shapes, at + tokens, 2)
    if vocab_size < TOKENS:
        raise MinidiffError(f"its vocabulary has {vocab_size} tokens, fewer than CLIP's {TOKENS}")
    return TextEncoderConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=_shape(shapes, f"{at}{layers}0.{hidden}.weight", 2)[0],
        num_hidden_layers=_count(shapes, at + layers),
        num_attention_heads=max(1, width // HEAD),
        max_position_embeddings=_shape(shapes, at + positions, 2)[0],
        hidden_act="quick_gelu" if clip else "gelu",
    )


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbers follow the prefix in the names."""
    return len({name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)})


def _shape(shapes: Shapes, name: str, *axes: int) -> tuple[int, ...]:
    """The shape of an array. Raises MinidiffError if there is none, or if it has another number of axes."""
    if name not in shapes:
        raise MinidiffError(f"has no {name}")
    if len(shapes[name]) not in axes:
        raise MinidiffError(f"{name} has shape {shapes[name]}, not {' or '.join(map(str, axes))} axes")
    return shapes[name]
