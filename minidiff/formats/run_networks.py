"""The networks of a run with the weights of one of its states, to sample from: no optimiser is built.

The kinds of run (training/) build their networks from the same metadata by the same functions.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minidiff.data import POINTS
from minidiff.diffusion.sampler import Sampler
from minidiff.diffusion.schedule import AnySchedule
from minidiff.engine.nn import Module, Parameter
from minidiff.engine.rng import InitRng
from minidiff.errors import MinidiffError
from minidiff.formats.averages import Weights, average
from minidiff.formats.folders import check_run
from minidiff.formats.networks import check_weight_count
from minidiff.formats.pipeline import TextPipeline
from minidiff.formats.run_state import (
    BUFFERS,
    DamagedPart,
    RunState,
    best_file,
    damaged_metadata,
    kept_states,
    read_newest,
    read_state,
)
from minidiff.formats.schedulers import schedule_from_config
from minidiff.formats.stable_diffusion import PARTS, load_text_encoder, load_vae
from minidiff.formats.tokenizer_files import load_tokenizer
from minidiff.formats.weights import DTYPES, Stored, read_arrays
from minidiff.models.config import TextEncoderConfig, TextUNetConfig, UNetConfig
from minidiff.models.config_rules import FileConfig
from minidiff.models.mlp import MLP, MLPConfig
from minidiff.models.text_encoder import TextEncoder
from minidiff.models.text_unet import TextUNet
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.unet import UNet
from minidiff.models.vae import VAE, Pixels

T = TypeVar("T")
P = TypeVar("P", bound=tuple)
TextParts = tuple[TextUNetConfig, AnySchedule, Tokenizer, VAE | Pixels, TextEncoder | TextEncoderConfig]


def read_chosen(
    folder: Path, weights: str | int | None, read: Callable[[RunState, Weights], T], ema: float | None = None
) -> T:
    """read(state, weights) of a run with the weights that are chosen.

    weights  "raw": the weights of the last step; "best": the moving average at the best checkpoint; a step: the moving
             average at its checkpoint; None: at the newest
    ema      the half-life of that average in steps (`average`); None: the run's own
    Raises MinidiffError for a folder without a run, for a checkpoint that it does not keep, and for an average that it
    does not have.
    """

    def read_average(state: RunState) -> T:
        return read(state, "ema" if ema is None else average(state, ema))

    check_run(folder)
    if weights == "raw" or weights is None:
        return read_newest(folder, read_average if weights is None else lambda state: read(state, "p"))
    return read_average(read_state(best_state(folder) if weights == "best" else kept_state(folder, int(weights))))


def kept_pipelines(pipeline: TextPipeline) -> Iterator[tuple[int, TextPipeline]]:
    """Step and pipeline, with the moving average, of every checkpoint that the pipeline's run keeps, oldest first."""
    for step, path in kept_states(pipeline.folder).items():
        yield step, _with_average(pipeline, read_state(path))


def _with_average(pipeline: TextPipeline, state: RunState) -> TextPipeline:
    """The pipeline with the moving average of a state of its run; what is not trained is shared."""
    state.check_kind("text")
    (frozen,) = read_parts(state, lambda: (json.loads(state.metadata["frozen"]),))
    backend, encoder = pipeline.unet.backend.name, pipeline.text_encoder
    encoder = encoder if "text_encoder" in frozen else TextEncoder(encoder.config, None, backend)
    unet = TextUNet(pipeline.unet.config, None, backend)
    pipeline = replace(pipeline, unet=unet, text_encoder=encoder, step=state.step)
    fill_from_buffer([p for _, p in trained_parameters(pipeline, frozen)], state, "ema")
    return pipeline


def best_state(folder: Path) -> Path:
    """The path of a run's best state. Raises MinidiffError if there is none."""
    check_run(folder)
    if not best_file(folder).is_file():
        raise MinidiffError(f"{folder}: holds no training/best.safetensors, which comes with the next checkpoint")
    return best_file(folder)


def kept_state(folder: Path, step: int) -> Path:
    """The path of a run's state at a step. Raises MinidiffError if it does not keep that checkpoint."""
    check_run(folder)
    states = kept_states(folder)
    if step not in states:
        there = ", ".join(map(str, states)) or "none"
        raise MinidiffError(f"{folder}: keeps no checkpoint of step {step}; choose one that is there: {there}")
    return states[step]


def read_networks(state: RunState, weights: Weights, backend: str = "numba") -> dict[str, Any]:
    """What a state holds of a pipeline, by the pipeline's names; with these trained weights (`fill_from_buffer`)."""
    if state.kind == "points":
        mlp, data = read_mlp(state, weights, backend)
        return {"unet": mlp, "data": data}
    if state.kind != "text":
        return {"unet": read_unet(state, weights, backend)}
    pipeline = read_pipeline(state, weights, backend)
    return {part: getattr(pipeline, part) for part in PARTS}


def read_unet(state: RunState, weights: Weights, backend: str = "numba") -> UNet:
    """The U-Net of a state with these weights (`fill_from_buffer`)."""
    state.check_kind("unet")
    network, _ = read_parts(state, lambda: unet_parts(state.metadata))
    unet = UNet(network, None, backend)
    fill_from_buffer(unet.parameters(), state, weights)
    return unet


def read_mlp(state: RunState, weights: Weights, backend: str = "numba") -> tuple[MLP, str]:
    """The MLP of a state, with these trained weights (`fill_from_buffer`), and the name of the dataset."""
    state.check_kind("points")
    network, _ = read_parts(state, lambda: mlp_parts(state.metadata))
    data = state.config.get("data")
    if data not in POINTS:
        raise damaged_metadata(state.path)
    mlp = MLP(network, None, backend)
    fill_from_buffer(mlp.parameters(), state, weights)
    return mlp, data


def read_pipeline(state: RunState, weights: Weights, backend: str = "numba") -> TextPipeline:
    """The pipeline of a state with these trained weights (`fill_from_buffer`)."""
    state.check_kind("text")
    parts = read_parts(state, lambda: text_parts(state.path.parent.parent, state.metadata, backend))
    pipeline = build_pipeline(*parts, rng=None, backend=backend)
    frozen = json.loads(state.metadata["frozen"])
    fill_from_buffer([p for _, p in trained_parameters(pipeline, frozen)], state, weights)
    return pipeline


def read_parts(state: RunState, parse: Callable[[], P]) -> P:
    """What `parse` builds of a state's metadata, such as `unet_parts`.

    Raises MinidiffError if that fails, and if a network would have more weights than the state.
    """
    try:
        parts = parse()
    except (KeyError, ValueError, RecursionError):
        raise damaged_metadata(state.path) from None
    except DamagedPart:
        raise
    except MinidiffError as error:
        raise MinidiffError(f"{state.path}: {error}") from None
    for part in parts:
        if isinstance(part, FileConfig):
            check_weight_count(part, state.size, state.path)
    return parts


def unet_parts(metadata: Mapping[str, str]) -> tuple[UNetConfig, AnySchedule]:
    """The configuration of the U-Net and the schedule, from a state's metadata.

    Raises KeyError, ValueError or MinidiffError if they are damaged.
    """
    return UNetConfig.of(json.loads(metadata["unet"])), schedule_from_config(json.loads(metadata["schedule"]))


def mlp_parts(metadata: Mapping[str, str]) -> tuple[MLPConfig, AnySchedule]:
    """The configuration of the MLP and the schedule, as `unet_parts`."""
    return MLPConfig.of(json.loads(metadata["mlp"])), schedule_from_config(json.loads(metadata["schedule"]))


def text_parts(folder: Path, metadata: Mapping[str, str], backend: str) -> TextParts:
    """The parts of a text-conditional run: of the trained networks their configurations, the frozen ones read.

    Raises KeyError, ValueError or MinidiffError if they are damaged, and DamagedPart if a frozen part is damaged or not
    the one that the run was started with.
    """
    network, frozen = TextUNetConfig.of(json.loads(metadata["unet"])), json.loads(metadata["frozen"])
    if not isinstance(frozen, dict):
        raise MinidiffError("the digests of the frozen parts are damaged: start a new run")
    schedule = schedule_from_config(json.loads(metadata["schedule"]))
    vae, encoder = Pixels(network.in_channels), TextEncoderConfig.of(json.loads(metadata["text_encoder"]))
    try:
        tokenizer = load_tokenizer(folder / "tokenizer")
        if "vae" in frozen:
            vae = load_vae(folder / "vae", backend)
        if "text_encoder" in frozen:
            encoder = load_text_encoder(folder / "text_encoder", backend)
    except MinidiffError as error:
        raise DamagedPart(str(error)) from None
    for name, digest in digests(tokenizer, vae, encoder).items():
        if frozen.get(name) != digest:
            raise DamagedPart(f"{folder / name}: is not the one that the run was started with; copy it again")
    return network, schedule, tokenizer, vae, encoder


def build_pipeline(
    network: TextUNetConfig,
    schedule: AnySchedule,
    tokenizer: Tokenizer,
    vae: VAE | Pixels,
    text_encoder: TextEncoder | TextEncoderConfig,
    rng: InitRng,
    backend: str,
) -> TextPipeline:
    """The pipeline of a text-conditional run; rng initialises the weights of what is trained, None: zeros.

    text_encoder  the configuration of one to train, or one that stays frozen
    """
    unet = TextUNet(network, rng, backend)
    if isinstance(text_encoder, TextEncoderConfig):
        text_encoder = TextEncoder(text_encoder, rng, backend)
    sampler = Sampler(offset=1, clip=None if isinstance(vae, VAE) else 1.0)  # offset: as diffusers wants it
    return TextPipeline(
        unet=unet, schedule=schedule, sampler=sampler, tokenizer=tokenizer, text_encoder=text_encoder, vae=vae
    )


def trained_parameters(pipeline: TextPipeline, frozen: Iterable[str]) -> Iterator[tuple[str, Parameter]]:
    """The parameters that a text-conditional run trains, by name, in the order of its optimiser."""
    for name, network in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder)):
        if name not in frozen:
            yield from ((f"{name}.{inner}", p) for inner, p in network.named_parameters())


def digests(tokenizer: Tokenizer, vae: VAE | Pixels, text_encoder: TextEncoder | TextEncoderConfig) -> dict[str, str]:
    """SHA-256 of the frozen parts, by name: of a tokenizer's vocabulary and merges, of a network's weights."""
    special, digest = tokenizer.special, sha256()
    tokens = [special.bos, special.eos, special.unk, special.pad, sorted(special.after_clean)]
    digest.update(json.dumps([list(tokenizer.vocab.items()), list(tokenizer.ranks), tokens, tokenizer.length]).encode())
    digests = {"tokenizer": digest.hexdigest()}
    for name, network in (("vae", vae), ("text_encoder", text_encoder)):
        if isinstance(network, Module):
            digests[name] = weights_digest(network)
    return digests


def weights_digest(network: Module) -> str:
    """SHA-256 of a network's weights."""
    digest = sha256()
    for p in network.parameters():
        digest.update(p.numpy().tobytes())
    return digest.hexdigest()


def fill_from_buffer(parameters: list[Parameter], state: RunState, weights: Weights) -> None:
    """Read the weights of parameters, one after the other in their order, from flat buffers.

    weights: the name of one of the state's buffers, "p", "ema" or a further average's, or coefficients and buffers, in
    files of the same run, that are summed in float64.
    Raises MinidiffError if a buffer has another size.
    """
    size = sum(prod(p.shape) for p in parameters)
    if isinstance(weights, str):
        state.check_buffers(size, {*BUFFERS, weights})
        weights = [(1.0, state.buffers[weights])]
    for _, buffer in weights:
        if buffer.shape != (size,):
            raise MinidiffError(f"{buffer.path}: {buffer.name} does not fit the network of its run; delete this file")
    coefficients = [c for c, _ in weights]
    for p, *arrays in zip(parameters, *(_pieces(buffer, parameters) for _, buffer in weights), strict=True):
        total = sum(c * a.astype(np.float64) for c, a in zip(coefficients, arrays, strict=True))
        p.fill(np.asarray(total, np.float32))


def _pieces(buffer: Stored, parameters: list[Parameter]) -> Iterator[np.ndarray]:
    """A flat buffer's arrays for the parameters, read one after the other."""
    itemsize = np.dtype(DTYPES[buffer.dtype]).itemsize
    offsets = accumulate((itemsize * prod(p.shape) for p in parameters), initial=buffer.offset)
    return read_arrays(replace(buffer, shape=p.shape, offset=i) for p, i in zip(parameters, offsets, strict=False))
