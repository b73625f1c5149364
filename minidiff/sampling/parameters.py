"""The parameters of sampled images: from the options of minidiff sample, and back to them."""

import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minidiff.errors import MinidiffError
from minidiff.formats.png_parameters import Parameters
from minidiff.sampling import inputs
from minidiff.sampling.inputs import parse_seeds, seeds_text

KEYS = {  # the setting -> the option of minidiff sample
    "Steps": "steps", "Sampler": "sampler", "CFG scale": "guidance", "Seed": "seed", "Class": "name",
    "Spacing": "spacing", "Karras": "karras", "Eta": "eta", "Churn": "churn", "Guidance interval": "guidance_interval",
    "Guidance rescale": "guidance_rescale", "Autoguide": "autoguide", "Noise": "noise", "Raw": "raw", "Best": "best",
    "Checkpoint": "step", "EMA": "ema", "Seeds": "seeds", "Batch size": "n", "Precision": "precision",
}  # fmt: skip
FILES = {
    "LoRA": "lora",
    "Embedding": "embedding",
    "Classifier": "classifier",
}  # recorded by name alone; no path is taken from an image
# AUTOMATIC1111's names of samplers -> ours of the same algorithm.
OF_OTHERS = {
    "Euler": "euler", "Euler a": "euler_ancestral", "Heun": "heun", "DDIM": "ddim", "PLMS": "pndm", "UniPC": "unipc",
    "DPM++ 2M": "dpmpp_2m", "DPM++ 2M SDE": "dpmpp_2m_sde", "DPM++ SDE": "dpmpp_sde",
}  # fmt: skip
SCHEDULE = "Schedule type"  # their noise levels; older versions have them at the end of the sampler's name
EVEN = ("Automatic", "Uniform")  # evenly spaced timesteps
POSITION = "Batch pos"  # of a single image among those of its settings, from 0
SIZE = "Size"  # width x height
ORDER = ("Steps", "Sampler", "CFG scale", "Seed", SIZE, "Model", *KEYS, *FILES, POSITION, "Version")


def parameters(
    options: dict[str, Any], folder: Path, size: tuple[int, ...], prompts: list[str], negative: str
) -> Parameters:
    """The parameters of all images of a command: its options, None or False if not given, model and image size (H, W).

    options: by name, as in KEYS and FILES
    """
    given = {option: value for option, value in options.items() if value is not None and value is not False}
    settings = {key: _text(given[option]) for key, option in KEYS.items() if option in given}
    files = {key: _names(given[option]) for key, option in FILES.items() if given.get(option)}
    model = {SIZE: f"{size[1]}x{size[0]}", "Model": _name(folder)}
    program = {"Version": f"minidiff {version('minidiff')}"}
    return Parameters(_in_order(settings | model | files | program), tuple(prompts), negative)


def of_each(whole: Parameters, n: int, classes: list[str] | None) -> list[Parameters]:
    """The parameters of each of n images: of the whole's with its own prompt, seed or class, and its position.

    classes: the class of each image
    """
    seeds = parse_seeds(whole.settings["Seeds"]) if "Seeds" in whole.settings else None
    images = []
    for i in range(n):
        image = _of_prompt(whole, i, n, seeds) if whole.prompts else _of_batch(whole, i, n, seeds)
        settings = image.settings | ({"Class": classes[i]} if classes else {})
        images.append(replace(image, settings=_in_order(settings)))
    return images


def _of_prompt(whole: Parameters, i: int, n: int, seeds: list[int] | None) -> Parameters:
    """The i-th image of prompts, which are sampled one by one: its seed's, or the last of i + 1 images of one seed."""
    prompt = whole.prompts[i * len(whole.prompts) // n]
    if seeds:
        return replace(whole, settings=_with(whole, {"Seed": seeds[i % len(seeds)]}), prompts=(prompt,))
    place = {"Batch size": i + 1, POSITION: i} if i else {}
    return replace(whole, settings=_with(whole, place), prompts=(prompt,))


def _of_batch(whole: Parameters, i: int, n: int, seeds: list[int] | None) -> Parameters:
    """The i-th image of several that are sampled together: the same batch, since another size rounds otherwise."""
    first = i - i % inputs.BATCH_SIZE
    end = min(n, first + inputs.BATCH_SIZE)
    if not seeds:
        place = {"Batch size": end} | ({POSITION: i} if end > 1 else {})
        return replace(whole, settings=_with(whole, place))
    alone = end - first == 1
    place = {"Batch size": 1} if alone else {"Seeds": seeds_text(seeds[first:end]), POSITION: i - first}
    return replace(whole, settings=_with(whole, {"Seed": seeds[i], **place}))


def _with(whole: Parameters, own: dict[str, Any]) -> dict[str, str]:
    """The whole's settings with an image's own in the place of the seeds and the number of images."""
    shared = {key: value for key, value in whole.settings.items() if key not in ("Seeds", "Batch size")}
    return shared | {key: str(value) for key, value in own.items()}


def _in_order(settings: dict[str, str]) -> dict[str, str]:
    return {key: settings[key] for key in dict.fromkeys(ORDER) if key in settings}


def options_of(given: Parameters) -> tuple[dict[str, Any], int | None]:
    """The options, as text, that repeat an image, and its position, or None for all images of the options.

    Raises MinidiffError for a size or a position that is not valid; the values of the options are not checked.
    """
    settings = given.settings
    options: dict[str, Any] = {option: settings[key] for key, option in KEYS.items() if key in settings}
    options |= _sampler_options(settings)
    if "seeds" in options:
        options.pop("seed", None)  # the image's own
    if given.prompts:
        options |= {"prompt": list(given.prompts), "negative_prompt": given.negative}
        if SIZE in settings:
            options["width"], options["height"] = _size(settings[SIZE])
    if POSITION not in settings:
        return options, None
    n = str(len(parse_seeds(options["seeds"]))) if "seeds" in options else options.get("n", "1")
    position = settings[POSITION]
    if not re.fullmatch("[0-9]{1,6}", position) or not re.fullmatch("[0-9]{1,6}", n) or int(position) >= int(n):
        raise MinidiffError(f"{POSITION}: {position:.80} is no position among {n:.80} images")
    return options, int(position)


def files_of(given: Parameters) -> dict[str, str]:
    """The option of each file that an image was sampled with -> the file's name, without its folder."""
    return {option: given.settings[key] for key, option in FILES.items() if key in given.settings}


def _sampler_options(settings: dict[str, str]) -> dict[str, str]:
    """The options of a sampler, whose name may be another program's; one that is unknown stays as it is."""
    schedule = settings.get(SCHEDULE, EVEN[0])
    whole = settings.get("Sampler", "") + ("" if schedule in EVEN else f" {schedule}")
    name = whole.removesuffix(" Karras")
    if name in OF_OTHERS:
        return {"sampler": OF_OTHERS[name]} | ({"karras": "True"} if name != whole else {})
    return {"sampler": whole} if whole else {}


def _size(text: str) -> tuple[str, str]:
    match = re.fullmatch("([0-9]+)x([0-9]+)", text)
    if not match:
        raise MinidiffError(f"{SIZE}: {text:.80} is no width x height")
    return match[1], match[2]


def _text(value: Any) -> str:
    """A number in the shortest form that is read as the same number; anything else as it is."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def _names(paths: Any) -> str:
    """The last parts of paths, one or several; PATH:WEIGHT keeps its weight."""
    return ", ".join(_name(Path(path)) for path in (paths if isinstance(paths, list) else [paths]))


def _name(path: Path) -> str:
    """The last part of a path; bytes that are not UTF-8 become question marks."""
    return path.resolve().name.encode("utf-8", "replace").decode()
