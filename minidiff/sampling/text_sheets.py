"""Sheets of a prompt's effect: guidance scale, cross-attention maps, word replacement, training progress."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.diffusion.reverse import Tick
from minidiff.engine.tensor import Tensor
from minidiff.errors import MinidiffError
from minidiff.formats.pipeline import TextPipeline
from minidiff.models.text_unet import Attention, TextUNet, TransformerBlock
from minidiff.models.tokenizer import Tokenizer
from minidiff.sampling.outputs import finished
from minidiff.sampling.prompts import plain
from minidiff.sampling.text_to_image import text_to_image

GUIDANCE_SCALES = range(1, 11)
DIM = 0.15  # brightness of pixels whose attention to a word is 0


@dataclass(frozen=True)
class PromptSettings:
    """A prompt and its sampling settings; every image starts from the noise of `seed`."""

    prompt: str
    guidance: float = 4.0
    steps: int = 25
    seed: int = 0
    tick: Tick = lambda: None

    def sample(self, pipeline: TextPipeline, prompt: str | None = None, guidance: float | None = None) -> np.ndarray:
        """The image (1, H, W, C) uint8, or that of another prompt or guidance scale."""
        prompt, guidance = self.prompt if prompt is None else prompt, self.guidance if guidance is None else guidance
        rng = np.random.default_rng(self.seed)
        return finished(text_to_image(pipeline, [prompt], "", guidance, self.steps, rng, tick=self.tick))


def training_sheet(settings: PromptSettings, checkpoints: Iterable[tuple[int, TextPipeline]]) -> Image.Image:
    """The image of a prompt by the pipelines of a run's checkpoints (step, pipeline)."""
    images, captions = [], []
    for step, pipeline in checkpoints:  # one at a time in memory
        images.append(settings.sample(pipeline))
        captions.append(f"step {step}")
    return captioned_sheet(np.concatenate(images), captions, columns=min(len(captions), 8))


def guidance_sheet(pipeline: TextPipeline, settings: PromptSettings) -> Image.Image:
    """The image of a prompt at every guidance scale of GUIDANCE_SCALES."""
    images = [settings.sample(pipeline, guidance=guidance) for guidance in GUIDANCE_SCALES]
    return captioned_sheet(np.concatenate(images), [f"guidance {guidance}" for guidance in GUIDANCE_SCALES], columns=5)


def replaced_words(prompt: str, to: str) -> list[str]:
    """The prompt, then with its first word replaced by that of `to`, its first two, ...; without repetitions.

    Raises MinidiffError if the numbers of words differ.
    """
    before, after = prompt.split(), to.split()
    if len(before) != len(after):
        raise MinidiffError(f"--to has {len(after)} words and --prompt {len(before)}: give as many")
    return list(dict.fromkeys(" ".join(after[:i] + before[i:]) for i in range(len(before) + 1)))


def word_replacement_sheet(pipeline: TextPipeline, settings: PromptSettings, to: str) -> Image.Image:
    """The image of each prompt of `replaced_words`."""
    prompts = replaced_words(settings.prompt, to)
    images = np.concatenate([settings.sample(pipeline, prompt) for prompt in prompts])
    return captioned_sheet(images, prompts, len(prompts))


def attention_sheet(pipeline: TextPipeline, settings: PromptSettings) -> Image.Image:
    """The image of a prompt, and for each word the image with the brightness of the word's cross-attention map."""
    with recorded_attention(pipeline.unet) as weights:
        image = settings.sample(pipeline)[0]  # (H, W, C)
    words = plain(settings.prompt).split() or [""]
    maps = attention_maps(weights, token_spans(pipeline.tokenizer, words), image.shape[:2])  # (words, H, W)
    lit = [np.rint(image * (DIM + (1 - DIM) * m / (m.max() or 1))[..., None]).astype(np.uint8) for m in maps]
    return captioned_sheet(np.stack([image, *lit]), [settings.prompt, *words], columns=min(len(words) + 1, 8))


def token_spans(tokenizer: Tokenizer, words: list[str]) -> list[list[int]]:
    """The positions of each word's tokens among those that a prompt's `embeddings` have, start and end tokens too."""
    ends = np.cumsum([0, *(len(tokenizer.encode(word)) for word in words)]).tolist()
    room = tokenizer.length - 2  # tokens of a row
    positions = [1 + i + 2 * (i // room) for i in range(ends[-1])]
    return [positions[start:end] for start, end in itertools.pairwise(ends)]


def attention_maps(weights: list[np.ndarray], spans: list[list[int]], size: tuple[int, int]) -> np.ndarray:
    """Cross-attention maps (words, H, W): each pixel's attention to a word's tokens, the mean over layers and steps.

    weights are the attention weights (h w, S) of one image, averaged over heads, of every layer and step; those of
    lower resolutions are enlarged to `size` (H, W). DAAM (Tang et al. 2022, arXiv 2210.04885) sums where this averages.
    """
    height, width = size
    total = np.zeros((len(spans), height, width), np.float32)
    for pixels in {len(w) for w in weights}:
        h = round((pixels * height / width) ** 0.5)
        at_resolution = np.sum([w for w in weights if len(w) == pixels], 0)  # (h w, S)
        for word_map, span in zip(total, spans, strict=True):
            attention = at_resolution[:, span].sum(1).reshape(h, -1)  # (h, w)
            word_map += np.asarray(Image.fromarray(attention).resize((width, height), Image.Resampling.BICUBIC))
    return total.clip(0) / len(weights)


@contextmanager
def recorded_attention(unet: TextUNet) -> Iterator[list[np.ndarray]]:
    """Within this block each cross-attention layer appends its weights for the batch's first image, (h w, S)."""
    weights: list[np.ndarray] = []
    blocks = list(_blocks(unet))
    before = [block.attn2 for block in blocks]
    for block, attention in zip(blocks, before, strict=True):
        block.attn2 = _recording(attention, weights)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield weights
    finally:
        for block, attention in zip(blocks, before, strict=True):
            block.attn2 = attention


def _blocks(unet: TextUNet) -> Iterator[TransformerBlock]:
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for transformer in level.attentions:
            yield from transformer.transformer_blocks


def _recording(attention: Attention, weights: list[np.ndarray]) -> Callable[..., Tensor]:
    """A layer that returns what `attention` returns and appends its weights, averaged over heads."""

    def call(x: Tensor, context: Tensor, add: Tensor) -> Tensor:
        q, k = (a.numpy()[0] for a in (attention.to_q(x), attention.to_k(context)))  # (T, C), (S, C)
        q, k = (a.reshape(len(a), attention.heads, -1) for a in (q, k))  # (T or S, heads, C / heads)
        scores = np.einsum("thc,shc->hts", q, k) / q.shape[2] ** 0.5
        exponentials = np.exp(scores - scores.max(2, keepdims=True))
        weights.append((exponentials / exponentials.sum(2, keepdims=True)).mean(0))  # (T, S)
        return attention(x, context, add)

    return call
