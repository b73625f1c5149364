"""Sheets that show what a text does: over training time, insisted on, word by word, and where each word is heard."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from minidiff.data.captioned_sheet import captioned_sheet
from minidiff.engine.tensor import Tensor
from minidiff.errors import MinidiffError
from minidiff.formats.stable_diffusion import Pipeline
from minidiff.models.text_unet import Attention, TextUNet, TransformerBlock
from minidiff.sampling.setup import finished
from minidiff.sampling.text_to_image import Tick, text_to_image

GUIDANCE_SCALES = range(1, 11)
DIM = 0.15  # how much is left of a picture where a word was not heard


@dataclass(frozen=True)
class PromptSettings:
    """A prompt and how it is drawn: every picture from the same noise, that of the seed."""

    prompt: str
    guidance: float = 4.0
    steps: int = 25
    seed: int = 0
    tick: Tick = lambda: None

    def draw(self, pipeline: Pipeline, prompt: str | None = None, guidance: float | None = None) -> np.ndarray:
        """The picture (1, H, W, C) uint8, or that of another prompt or guidance."""
        prompt, guidance = self.prompt if prompt is None else prompt, self.guidance if guidance is None else guidance
        rng = np.random.default_rng(self.seed)
        return finished(text_to_image(pipeline, [prompt], "", guidance, self.steps, rng, tick=self.tick))


def training_sheet(asked: PromptSettings, checkpoints: Iterable[tuple[int, Pipeline]]) -> Image.Image:
    """The same prompt, by the pipelines of a run's checkpoints (step, pipeline)."""
    images, steps = [], []
    for step, pipeline in checkpoints:  # one at a time in memory
        images.append(asked.draw(pipeline))
        steps.append(f"step {step}")
    return captioned_sheet(np.concatenate(images), steps, columns=min(len(steps), 8))


def guidance_sheet(pipeline: Pipeline, asked: PromptSettings) -> Image.Image:
    """The same prompt, insisted on more and more."""
    images = [asked.draw(pipeline, guidance=guidance) for guidance in GUIDANCE_SCALES]
    return captioned_sheet(np.concatenate(images), [f"guidance {guidance}" for guidance in GUIDANCE_SCALES], columns=5)


def word_swaps(prompt: str, to: str) -> list[str]:
    """One prompt on the way to another, a word at a time. Raises MinidiffError if they differ in how many they have."""
    before, after = prompt.split(), to.split()
    if len(before) != len(after):
        raise MinidiffError(f"--to has {len(after)} words and --prompt {len(before)}: give as many")
    return list(dict.fromkeys(" ".join(after[:i] + before[i:]) for i in range(len(before) + 1)))


def word_swap_sheet(pipeline: Pipeline, asked: PromptSettings, to: str) -> Image.Image:
    """The prompt's words swapped for those of another, one by one."""
    prompts = word_swaps(asked.prompt, to)
    return captioned_sheet(np.concatenate([asked.draw(pipeline, prompt) for prompt in prompts]), prompts, len(prompts))


def attention_sheet(pipeline: Pipeline, asked: PromptSettings) -> Image.Image:
    """The picture, and for each word the picture again, bright where its pixels listened to that word."""
    with recorded_attention(pipeline.unet) as notes:
        picture = asked.draw(pipeline)[0]  # (H, W, C)
    words = asked.prompt.split() or [""]
    of_words = attention_maps(notes, token_spans(pipeline.tokenizer, words), picture.shape[:2])  # (words, H, W)
    lit = [np.rint(picture * (DIM + (1 - DIM) * m / (m.max() or 1))[..., None]).astype(np.uint8) for m in of_words]
    return captioned_sheet(np.stack([picture, *lit]), [asked.prompt, *words], columns=min(len(words) + 1, 8))


def token_spans(tokenizer: Callable[..., Any], words: list[str]) -> list[slice]:
    """Which places of a text each word has, behind the one that begins it; words beyond the last place have none."""
    ends = np.cumsum([1, *(len(tokenizer.encode(word)) for word in words)]).clip(max=tokenizer.length - 1)
    return [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]


def attention_maps(notes: list[np.ndarray], places: list[slice], size: tuple[int, int]) -> np.ndarray:
    """How much each pixel listens to each word, the mean over layers and steps (Tang et al. 2022, arXiv:2210.04885).

    notes are of one picture each, (h w, S): at every layer and step the share of each of S places in what a pixel
    takes; size (H, W) is the picture's, to which those of lower levels are enlarged. Returns (words, H, W).
    """
    height, width = size
    total = np.zeros((len(places), height, width), np.float32)
    for pixels in {len(note) for note in notes}:
        h = round((pixels * height / width) ** 0.5)
        note = np.sum([note for note in notes if len(note) == pixels], 0)  # (h w, S)
        for of_word, place in zip(total, places, strict=True):
            share = note[:, place].sum(1).reshape(h, -1)  # (h, w)
            of_word += np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BICUBIC))
    return total.clip(0) / len(notes)


@contextmanager
def recorded_attention(unet: TextUNet) -> Iterator[list[np.ndarray]]:
    """Within this block all that pixels take from the first text's places is noted, at every layer: (h w, S) each."""
    notes: list[np.ndarray] = []
    blocks = list(_blocks(unet))
    before = [block.attn2 for block in blocks]
    for block, attention in zip(blocks, before, strict=True):
        block.attn2 = _noting(attention, notes)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield notes
    finally:
        for block, attention in zip(blocks, before, strict=True):
            block.attn2 = attention


def _blocks(unet: TextUNet) -> Iterator[TransformerBlock]:
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for transformer in level.attentions:
            yield from transformer.transformer_blocks


def _noting(attention: Attention, notes: list[np.ndarray]) -> Callable[..., Tensor]:
    def call(x: Tensor, heard: Tensor, add: Tensor) -> Tensor:
        q, k = (a.numpy()[0] for a in (attention.to_q(x), attention.to_k(heard)))  # (T, C), (S, C)
        q, k = (a.reshape(len(a), attention.heads, -1) for a in (q, k))  # (T or S, heads, C / heads)
        scores = np.einsum("thc,shc->hts", q, k) / q.shape[2] ** 0.5
        shares = np.exp(scores - scores.max(2, keepdims=True))
        notes.append((shares / shares.sum(2, keepdims=True)).mean(0))  # (T, S)
        return attention(x, heard, add)

    return call
