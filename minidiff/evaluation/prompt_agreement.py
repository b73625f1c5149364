"""Prompt agreement: whether images show the emoji and the skin tone of their prompts.

Name, by retrieval: the caption of the training image that is nearest in the feature classifier's whitened features.
Tone: that of the nearest palette (skin_tones.py). A combination of name and tone that training lacks cannot be
retrieved, so the two are measured apart; "both" is the fraction of images where both are right.
"""

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np

from minidiff.data.dataset import Dataset, blocks, slices
from minidiff.data.emoji import name_and_tone
from minidiff.diffusion.reverse import Tick
from minidiff.evaluation import metrics
from minidiff.evaluation.feature_classifier import FeatureClassifier
from minidiff.evaluation.report import standardised
from minidiff.evaluation.skin_tones import nearest_tone, palettes
from minidiff.formats.pipeline import TextPipeline
from minidiff.sampling.inputs import num_of_this_rank, of_all_ranks, of_this_rank
from minidiff.sampling.outputs import finished
from minidiff.sampling.prompts import escaped
from minidiff.sampling.text_to_image import latent_shape, text_to_image

PROMPT_BATCH_SIZE = 32  # prompts that are sampled together


class PromptSamples(NamedTuple):
    """n prompts, an image of each, and the real images of these captions, if there are: (n, H, W, C) uint8."""

    prompts: Sequence[str]
    images: np.ndarray
    real: np.ndarray | None = None


def sample_prompts(
    pipeline: TextPipeline, prompts: Sequence[str], guidance: float, steps: int, seed: int, tick: Tick
) -> np.ndarray:
    """An image of each prompt, (n, H, W, C) uint8, by all ranks.

    tick() is called `num_sampling_steps(prompts, steps)` times.
    """
    rng, images, size = np.random.default_rng(seed), [], pipeline.image_shape[:2]
    texts = [list(map(escaped, prompts[part])) for part in slices(len(prompts), PROMPT_BATCH_SIZE)]
    batches = [(latent_shape(pipeline, len(batch), size), batch) for batch in texts]
    for _, batch, rng_here in of_this_rank(batches, repeat(rng), pipeline, steps):
        images.append(finished(text_to_image(pipeline, batch, "", guidance, steps, rng_here, tick=tick)))
    return of_all_ranks(images, pipeline.image_shape)


def num_sampling_steps(prompts: Sequence[str], steps: int) -> int:
    """The number of sampling steps, over all batches of this rank, that `sample_prompts` takes."""
    return num_of_this_rank(-(-len(prompts) // PROMPT_BATCH_SIZE)) * steps


def figures(
    sides: Mapping[str, PromptSamples], train: Dataset, classifier: FeatureClassifier
) -> dict[str, dict[str, float]]:
    """For each side the `agreement` of images with their prompts; of tones only if a prompt of any side names one.

    With real images also "frechet", the Fréchet distance of the images to those in standardised features.
    """
    images = np.concatenate([side.images for side in sides.values()])
    captions, tones = nearest_captions(images, train, classifier), np.full(len(images), -1)
    if any(name_and_tone(prompt)[1] is not None for side in sides.values() for prompt in side.prompts):
        tones = nearest_tone(images, palettes(train))
    fractions, start = {}, 0
    for name, side in sides.items():
        here = slice(start, start := start + len(side.prompts))
        fractions[name] = agreement(side.prompts, captions[here], tones[here])
        if side.real is not None:
            features = standardised(classifier.classify(side.images), classifier.classify(side.real))
            fractions[name]["frechet"] = metrics.frechet_distance_of(*features)
    return fractions


def nearest_captions(images: np.ndarray, train: Dataset, classifier: FeatureClassifier) -> tuple[str, ...]:
    """For each image (n, H, W, C) uint8 the caption of the nearest training image.

    Nearest in the classifier's features, whitened, so that all directions in which training images vary count alike.
    So 63 of the 65 real emoji that are held out find the same person in another tone; 53 if each feature is only
    divided by its standard deviation.
    """
    features = np.concatenate([classifier.classify(block).features for block in blocks(train)])  # (N, 96)
    whiten = metrics.whitening(features)
    indices, _ = metrics.nearest(whiten(classifier.classify(images).features), [whiten(features)])
    return tuple(train.captions[i] for i in indices)


def agreement(prompts: Sequence[str], captions: Sequence[str], tones: np.ndarray) -> dict[str, float]:
    """The fractions of n prompts whose image is right, from each image's nearest caption and tone, (n,).

    name    of all prompts: the caption has the same name, in any tone
    tone    of the prompts with a skin tone: the image has that tone
    both    of the same prompts: name and tone are right
    """
    wanted = [name_and_tone(prompt) for prompt in prompts]
    name_right = np.array([name_and_tone(c)[0] == name for c, (name, _) in zip(captions, wanted, strict=True)])
    with_tone = np.array([tone is not None for _, tone in wanted])
    fractions = {"name": float(name_right.mean())}
    if with_tone.any():
        tone_right = np.array([t == tone for t, (_, tone) in zip(tones, wanted, strict=True)])[with_tone]
        both_right = tone_right & name_right[with_tone]
        fractions |= {"tone": float(tone_right.mean()), "both": float(both_right.mean())}
    return fractions
