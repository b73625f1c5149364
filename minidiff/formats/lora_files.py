"""LoRA files: safetensors with diffusers' keys, or with kohya's, which most web interfaces write.

    unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight              A (r, I)      diffusers
    unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight              B (O, r)
    text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight
    lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight      A             kohya
    lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight        B
    lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.alpha                 a number
    lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight

kohya's names cannot be split at their underscores, so every layer of the pipeline is looked up by both of its names.
Of a convolution A is (r, I, K, K) and B (O, r, 1, 1). diffusers' keys have no alpha; it is r, unless the metadata has
another. Where it is not, the scale alpha / r is multiplied into B as a file with diffusers' keys is written.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.engine.nn import Conv2d, Linear, first_few
from minidiff.errors import MinidiffError
from minidiff.formats.pipeline import TextPipeline
from minidiff.formats.weights import Stored, open_safetensors, read_arrays, refuse_pickles, write_safetensors
from minidiff.models.lora import Update, updatable_layers

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"  # its name in diffusers
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te"}
KEYS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_down.weight": "A",
    "lora_up.weight": "B",
    "alpha": "alpha",
}  # fmt: skip  end of a key -> what it holds
KEY = re.compile(rf"(.+)\.({'|'.join(map(re.escape, KEYS))})")
ADAPTER = "lora_adapter_metadata"  # diffusers' entry of the metadata: the settings in PEFT, as JSON
UNSUPPORTED = ("use_dora", "use_rslora", "alpha_pattern")  # settings in PEFT that change the formula

LoRA = Mapping[str, Update]  # by the name of the layer, as of `pipeline_layers`


def pipeline_layers(pipeline: TextPipeline) -> dict[str, Linear | Conv2d]:
    """The layers of a pipeline that a LoRA can update, as "unet.NAME" and "text_encoder.NAME"."""
    networks = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    return {
        f"{part}.{name}": layer
        for part, network in networks.items()
        for name, layer in updatable_layers(network).items()
    }


def load_lora(path: str | Path, pipeline: TextPipeline) -> dict[str, Update]:
    """The updates in a LoRA file, or in a folder with pytorch_lora_weights.safetensors, for a pipeline's layers.

    Raises MinidiffError for a file that is missing, damaged or pickled, keys that are not of this pipeline's layers,
    which are counted and named, matrices that are missing, that do not fit each other or their layer, or that are not
    finite, and variants of LoRA with another formula.
    """
    path = Path(path)
    if path.exists():
        refuse_pickles(path)
    path = path / LORA_WEIGHTS if path.is_dir() else path
    stored, metadata = open_safetensors(path)
    layers = pipeline_layers(pipeline)
    alphas = _alphas(path, metadata)
    found = _by_layer(path, stored, pipeline)
    return {
        name: _update(path, name, arrays, layers[name], alphas.get(name.partition(".")[0]))
        for name, arrays in found.items()
    }


def save_lora(path: Path, lora: LoRA, kohya: bool = False, half: bool = False) -> None:
    """Write a LoRA to a file atomically, with diffusers' keys or kohya's; half: A and B in float16."""
    arrays: dict[str, np.ndarray] = {}
    dtype = np.float16 if half else np.float32
    for name, update in lora.items():
        diffusers_name, kohya_name = _names_in_files(name)
        A = np.ascontiguousarray(np.moveaxis(update.A, -1, 1))  # (r, I) or (r, I, K, K)
        B = update.B.reshape(*update.B.shape, *[1] * (A.ndim - 2))  # (O, r) or (O, r, 1, 1)
        B = B if kohya else np.float32(update.scale) * B
        A, B = A.astype(dtype), B.astype(dtype)
        if kohya:
            alpha = np.array(update.alpha, np.float32)
            arrays |= {f"{kohya_name}.lora_down.weight": A, f"{kohya_name}.lora_up.weight": B}
            arrays[f"{kohya_name}.alpha"] = alpha
        else:
            arrays |= {f"{diffusers_name}.lora_A.weight": A, f"{diffusers_name}.lora_B.weight": B}
    write_safetensors(path, arrays, {"format": "pt"})


def _names_in_files(name: str) -> tuple[str, str]:
    """The name of a layer with diffusers' keys, and with kohya's."""
    part, _, inner = name.partition(".")
    inner = f"text_model.{inner}" if part == "text_encoder" else inner
    return f"{part}.{inner}", f"{KOHYA[part]}_{inner.replace('.', '_')}"


def _by_layer(path: Path, stored: dict[str, Stored], pipeline: TextPipeline) -> dict[str, dict[str, Stored]]:
    """Name of a layer -> "A", "B" and maybe "alpha" -> where it lies. Raises MinidiffError for other keys."""
    layers = {
        name_in_file: name for name in pipeline_layers(pipeline) for name_in_file in (name, *_names_in_files(name))
    }
    found: dict[str, dict[str, Stored]] = {}
    unknown = []
    for key, array in stored.items():
        match = KEY.fullmatch(key)
        if match is None or match[1] not in layers:
            unknown.append(key)
        elif KEYS[match[2]] in (arrays := found.setdefault(layers[match[1]], {})):
            raise MinidiffError(f"{path}: has {key} by another name too; keep one")
        else:
            arrays[KEYS[match[2]]] = array
    if not stored:
        raise MinidiffError(f"{path}: holds no arrays; copy it again, or give a LoRA for this model")
    if unknown:
        raise MinidiffError(
            f"{path}: {len(unknown)} of {len(stored)} keys are of no layer of {pipeline.folder}: {first_few(unknown)}; "
            "give a LoRA for this model"
        )
    return found


def _update(path: Path, name: str, arrays: dict[str, Stored], layer: Linear | Conv2d, alpha: float | None) -> Update:
    """The update of a layer. Raises MinidiffError if a matrix is missing, does not fit, or is not finite."""
    if missing := {"A", "B"} - arrays.keys():
        raise MinidiffError(f"{path}: has no {min(missing)} of {name}; copy it again")
    _check_shapes(path, name, {role: array.shape for role, array in arrays.items()}, layer)
    values = dict(zip(arrays, read_arrays(arrays.values()), strict=True))
    for role, a in values.items():
        if not np.isfinite(a).all():
            raise MinidiffError(f"{path}: {role} of {name} has values that are not finite; copy or train it again")
    A, B = np.ascontiguousarray(np.moveaxis(values["A"], 1, -1)), values["B"]  # (r, I) or (r, K, K, I)
    default = float(len(A)) if alpha is None else alpha
    return Update(A, B.reshape(B.shape[:2]), float(values.get("alpha", default)))


def _check_shapes(path: Path, name: str, shapes: dict[str, tuple[int, ...]], layer: Linear | Conv2d) -> None:
    """Raises MinidiffError unless A, B and alpha have the shapes that the layer's weight takes, of one rank."""
    A, B, alpha = shapes["A"], shapes["B"], shapes.get("alpha", ())
    O, *rest = layer.weight.shape
    inputs, kernel = rest[-1], tuple(rest[:-1])  # (I,), and (K, K) of a convolution
    rank = A[0] if A else 0
    fits = A == (rank, inputs, *kernel) and B[:1] + B[2:] == (O, *[1] * len(kernel)) and alpha in ((), (1,))
    if not fits:
        shape = f"({', '.join(map(str, (O, inputs, *kernel)))})"
        raise MinidiffError(f"{path}: A {A} and B {B} do not fit the weight {shape} of {name}; it is for another model")
    if B[1:2] != (rank,) or rank == 0:
        raise MinidiffError(f"{path}: {name} has A of rank {rank} and B of rank {B[1]}; copy or train it again")


def _alphas(path: Path, metadata: dict[str, str]) -> dict[str, float]:
    """alpha of "unet" and "text_encoder", where diffusers' metadata has it.

    Raises MinidiffError if the metadata is damaged, or has a setting that changes the formula.
    """
    try:
        settings: dict[str, Any] = dict(json.loads(metadata.get(ADAPTER, "{}")))
        alphas = {part: float(settings[f"{part}.lora_alpha"]) for part in KOHYA if f"{part}.lora_alpha" in settings}
        if not all(map(math.isfinite, alphas.values())):
            raise ValueError(f"lora_alpha is not finite: {alphas}")
    except (ValueError, TypeError, RecursionError):
        raise MinidiffError(f"{path}: its {ADAPTER} is damaged; copy it again") from None
    for key, value in settings.items():
        if value and key.rpartition(".")[2] in UNSUPPORTED:
            raise MinidiffError(f"{path}: has {key} = {value!r:.80}, which is not supported; train it without")
    return alphas
