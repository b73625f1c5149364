"""Whether pictures show what their prompts asked for: the right one among all emoji, in the right skin tone.

Retrieval: each picture is looked up among the training pictures, with the judge's eyes, and is taken for what the
nearest one's caption says. Tone: that of the nearest palette (tones.py). A combination that training never saw has no
caption of its own to be found; so name and tone are measured apart, and "both" is how often the two are right at once.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from minidiff.data.dataset import Dataset, blocks
from minidiff.data.emoji import name_and_tone
from minidiff.diffusion.sampler import Sampler
from minidiff.evaluation import metrics
from minidiff.evaluation.feature_classifier import FeatureClassifier
from minidiff.evaluation.skin_tones import nearest_tone, palettes
from minidiff.formats.stable_diffusion import Pipeline
from minidiff.sampling.setup import finished
from minidiff.sampling.text_to_image import Tick, text_to_image

BATCH = 32  # pictures at a time


class PromptSamples(NamedTuple):
    """n prompts, and a picture of each: (n, H, W, C) uint8."""

    prompts: Sequence[str]
    images: np.ndarray


def sample_prompts(
    pipeline: Pipeline, prompts: Sequence[str], guidance: float, steps: int, sampler: Sampler, seed: int, tick: Tick
) -> PromptSamples:
    """A picture of each prompt; tick() is called `ticks(prompts, steps)` times."""
    rng, images = np.random.default_rng(seed), []
    for start in range(0, len(prompts), BATCH):
        some = list(prompts[start : start + BATCH])
        images.append(finished(text_to_image(pipeline, some, "", guidance, steps, rng, None, sampler, tick)))
    return PromptSamples(prompts, np.concatenate(images))


def num_evaluations(prompts: Sequence[str], steps: int) -> int:
    """How long it takes to draw them."""
    return -(-len(prompts) // BATCH) * steps


def figures(
    sides: Mapping[str, PromptSamples], train: Dataset, judge: FeatureClassifier
) -> dict[str, dict[str, float]]:
    """The `agreement` of pictures with their prompts, for each side. Tones are looked for if a prompt names one."""
    images = np.concatenate([side.images for side in sides.values()])
    found, tones = nearest_captions(images, train, judge), np.full(len(images), -1)
    if any(name_and_tone(prompt)[1] is not None for side in sides.values() for prompt in side.prompts):
        tones = nearest_tone(images, palettes(train))
    shares, start = {}, 0
    for name, side in sides.items():
        here = slice(start, start := start + len(side.prompts))
        shares[name] = agreement(side.prompts, found[here], tones[here])
    return shares


def nearest_captions(images: np.ndarray, train: Dataset, judge: FeatureClassifier) -> tuple[str, ...]:
    """For every picture (n, H, W, C) uint8 the caption of the training picture that is nearest to it.

    In the judge's features, whitened, so that all directions in which training pictures differ count alike. So 63 of
    the 65 real emoji that are held out find the same person in another tone; 53 if each feature is only scaled.
    """
    features = np.concatenate([judge.classify(block).features for block in blocks(train)])  # (N, 96)
    whiten = metrics.whitening(features)
    found, _ = metrics.nearest(whiten(judge.classify(images).features), [whiten(features)])
    return tuple(train.captions[i] for i in found)


def agreement(prompts: Sequence[str], found: Sequence[str], tones: np.ndarray) -> dict[str, float]:
    """The shares of prompts whose picture was right, by what it was taken for: a caption found, a tone (n,).

    name    of all prompts: what was found has the same name, in whatever tone
    tone    of those that ask for one skin tone: it is that tone
    both    of those: name and tone are right
    """
    asked = [name_and_tone(prompt) for prompt in prompts]
    named = np.array([name_and_tone(f)[0] == name for f, (name, _) in zip(found, asked, strict=True)])
    toned = np.array([tone is not None for _, tone in asked])
    shares = {"name": float(named.mean())}
    if toned.any():
        right = np.array([t == tone for t, (_, tone) in zip(tones, asked, strict=True)])[toned]
        shares |= {"tone": float(right.mean()), "both": float((right & named[toned]).mean())}
    return shares
