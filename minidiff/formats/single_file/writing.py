"""Single-file checkpoints to folders of diffusers and back: arrays are copied one after the other, bit by bit."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minidiff.diffusion.schedule import Schedule
from minidiff.errors import MinidiffError
from minidiff.files import JSONFile, check_file, followed, new_folder, read_json, write_json
from minidiff.formats.folders import INDEX, find
from minidiff.formats.networks import check_fits, open_scheduler, sampler_of, schedule_of
from minidiff.formats.pipeline import TextPipeline
from minidiff.formats.single_file.configs import prediction_metadata
from minidiff.formats.single_file.keys import Network, places, shape_in_file
from minidiff.formats.single_file.reading import NETWORKS, SingleFile, open_single_file
from minidiff.formats.stable_diffusion import TEXT_WEIGHTS, check_fit, check_index, existing, save_index
from minidiff.formats.tokenizer_files import load_tokenizer, save_tokenizer
from minidiff.formats.weights import WEIGHTS, Stored, copy_arrays, find_weights
from minidiff.models.tokenizer import Tokenizer


def import_single_file(
    path: Path, out: Path, config: Path | None = None, prediction_type: str | None = None
) -> SingleFile:
    """Write the pipeline of a checkpoint as a new folder, which diffusers opens; arguments as for `open_single_file`.

    Raises MinidiffError as that does, and if its parts do not fit together or the folder cannot be written.
    """
    file = open_single_file(path, config, prediction_type)
    settings = {"schedule": schedule_of(file.scheduler), "sampler": sampler_of(file.scheduler), "folder": path}
    check_fit(TextPipeline(tokenizer=file.tokenizer, **file.networks, **settings))
    with new_folder(out) as folder:
        for name, stored in file.stored.items():
            weights, prefix = _place(name)
            copy_arrays(folder / name / weights, {prefix + key: [a] for key, a in stored.items()}, {"format": "pt"})
            write_json(folder / name / "config.json", file.values[name])
        save_tokenizer(file.tokenizer, folder / "tokenizer")
        write_json(folder / "scheduler" / "scheduler_config.json", file.scheduler.value)
        save_index(folder, file.scheduler.value["_class_name"])
    return file


def export_single_file(folder: Path, path: Path, half: bool = False) -> bool:
    """Write the networks of a Stable Diffusion folder as one file; half: in float16.

    Returns whether `open_single_file` infers the folder's configurations, tokenizer and schedule from it, without
    `config`. Raises MinidiffError for a folder of another kind, for a file whose name says another format, and if
    it cannot be written.
    """
    if folder.is_file():
        raise MinidiffError(f"{folder}: is a file already; give a Stable Diffusion folder")
    if find(folder, "text").json(folder / INDEX).parse(check_index):
        raise MinidiffError(f"{folder}: its U-Net works on pixels; a single file holds models with an autoencoder")
    scheduler = open_scheduler(folder)
    networks = {name: _network(folder, name) for name in NETWORKS}
    arrays: dict[str, list[Stored]] = {}
    for name, network in networks.items():
        arrays |= _arrays(folder, name, network)
    if path.suffix != ".safetensors":  # by which a file is taken for a single-file checkpoint
        raise MinidiffError(f"{path}: is to be a safetensors file; give a name that ends in .safetensors")
    check_file(path, *{stored.path for parts in arrays.values() for stored in parts})
    prediction_type = schedule_of(scheduler).prediction_type
    copy_arrays(followed(path), arrays, {"format": "pt"} | prediction_metadata(prediction_type), half)
    return _is_inferred(path, networks, load_tokenizer(folder / "tokenizer"), scheduler)


def _place(name: str) -> tuple[str, str]:
    """The name of a network's weights file in a folder, and the prefix of the parameters in it."""
    return (TEXT_WEIGHTS, "text_model.") if name == "text_encoder" else (WEIGHTS, "")


def _network(folder: Path, name: str) -> Network:
    """A network of a folder, of zeros."""
    network, config_class = NETWORKS[name]
    return network(read_json(existing(folder / name) / "config.json", config_class.of), None, "numpy")


def _arrays(folder: Path, name: str, network: Network) -> dict[str, list[Stored]]:
    """Key in the single file -> the parts of the array, where they lie in a folder."""
    weights, prefix = _place(name)
    stored = {key.removeprefix(prefix): a for key, a in find_weights(folder / name, weights).items()}
    check_fits(network, stored, folder / name / weights)
    return {
        key: [stored[part].part(0, shape_in_file(key, stored[part].shape)) for part in parts]
        for key, parts in places(network).items()
    }


def _is_inferred(path: Path, networks: Mapping[str, Network], tokenizer: Tokenizer, scheduler: JSONFile) -> bool:
    """Whether a file says by itself what was in the folder that it was written from."""
    try:
        file = open_single_file(path)
    except MinidiffError:  # of sizes that Stable Diffusion does not have
        return False
    schedule, inferred = schedule_of(scheduler), schedule_of(file.scheduler)
    return (
        all(file.configs[name] == network.config for name, network in networks.items())
        and file.tokenizer.vocab == tokenizer.vocab
        and isinstance(schedule, Schedule)
        and isinstance(inferred, Schedule)
        and schedule.prediction_type == inferred.prediction_type
        and np.allclose(schedule.betas, inferred.betas, rtol=1e-6, atol=0)
    )
