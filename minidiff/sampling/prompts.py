"""Prompts as the U-Net cross-attends to them: with weights of words, and of any length.

The syntax of weights is that of AUTOMATIC1111's web UI: (word:1.2) has weight 1.2, (word) 1.1 and [word] 1 / 1.1;
weights of nested brackets are multiplied, and a bracket or a backslash after a backslash is the character itself. A
weight w moves the embedding of a token away from that of the empty prompt at the same position, as in ComfyUI:

    z' = z_empty + w (z - z_empty)

so w = 1 is the prompt without weights, and w = 0 leaves nothing of the word at its own position.
"""

import re

import numpy as np

from minidiff.engine.tensor import no_grad
from minidiff.errors import MinidiffError
from minidiff.formats.pipeline import TextPipeline
from minidiff.models.tokenizer import Tokenizer

EMPHASIS = {"(": 1.1, "[": 1 / 1.1}  # weights of brackets
LARGEST = 100  # weight, in absolute value
CLOSES = {")": "(", "]": "["}
PART = re.compile(r"\\[\\()\[\]]|[()\[\]]|[^\\()\[\]]+|\\")  # an escaped character, a bracket, or text
LORA = re.compile(r"<(?:lora|lyco|hypernet):[^>]*>")  # the web UI's way to name files in a prompt
NUMBER = re.compile(r":\s*([^\s:_]+)\s*$")  # before a closing parenthesis


def weighted(prompt: str) -> list[tuple[str, float]]:
    """The texts of a prompt, each with its weight; texts in a row have different weights.

    Raises MinidiffError for a bracket without its other one, for a weight beyond LARGEST, and for the web UI's LoRAs.
    """
    if lora := LORA.search(prompt):
        raise _error(prompt, f"has {lora[0]:.80}, which is no text; give --lora PATH:WEIGHT in its place")
    texts: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []  # brackets, and the number of texts before them
    for part in PART.findall(prompt):
        if part in EMPHASIS:
            opened.append((part, len(texts)))
        elif part in CLOSES:
            if not opened or opened[-1][0] != CLOSES[part]:
                raise _error(prompt, f"has {part} without {CLOSES[part]}; write \\{part} for the character")
            bracket, first = opened.pop()
            factor = EMPHASIS[bracket]
            if part == ")" and len(texts) > first and (number := _number(texts[-1][0])):
                texts[-1], factor = (number[0], texts[-1][1]), number[1]
            texts[first:] = [(text, weight * factor) for text, weight in texts[first:]]
        else:
            texts.append((part if part == "\\" else re.sub(r"^\\", "", part), 1.0))
    if opened:
        raise _error(prompt, f"has {opened[-1][0]} that is not closed; write \\{opened[-1][0]} for the character")
    if not all(abs(weight) <= LARGEST for _, weight in texts):  # NaN is not
        raise _error(prompt, f"has a weight beyond {LARGEST}, or none that is a number; give one such as (word:1.2)")
    return _joined(texts)


def escaped(text: str) -> str:
    """A prompt that is this text, brackets included, without weights."""
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


def plain(prompt: str) -> str:
    """The text of a prompt, without weights."""
    return "".join(text for text, _ in weighted(prompt))


def num_chunks(tokenizer: Tokenizer, prompts: list[str]) -> int:
    """The number of rows of tokens that the longest of the prompts takes."""
    return max(len(chunks(tokenizer, prompt)[0]) for prompt in prompts)


def chunks(tokenizer: Tokenizer, prompt: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (K, T) and weights (K, T) float32 of a prompt: T - 2 tokens a row, between start and end tokens.

    Start, end and padding have weight 1.
    """
    texts = [(tokenizer.encode(text), weight) for text, weight in weighted(prompt)]
    ids = [i for encoded, _ in texts for i in encoded]
    weights = [weight for encoded, weight in texts for _ in encoded]
    T = tokenizer.length
    firsts = range(0, max(len(ids), 1), max(T - 2, 1))
    rows = np.stack([tokenizer.row(ids[first : first + T - 2]) for first in firsts])  # (K, T)
    row_weights = np.ones(rows.shape, np.float32)
    for row, first in zip(row_weights, firsts, strict=True):
        own = weights[first : first + T - 2]
        row[1 : len(own) + 1] = own
    return rows, row_weights


def embeddings(pipeline: TextPipeline, prompts: list[str], num_rows: int | None = None) -> np.ndarray:
    """What the U-Net cross-attends to (N, K T, D): the text encoder's output of K rows of T tokens, in a row.

    num_rows: K, at least `num_chunks`, which None stands for; shorter prompts have empty rows at the end. Rows are
    encoded on their own, so that each has its start, end and positions.
    """
    tokenizer = pipeline.tokenizer
    K = num_rows or num_chunks(tokenizer, prompts)
    empty = tokenizer([""])  # (1, T)
    ids = np.repeat(empty[None], len(prompts), 0).repeat(K, 1)  # (N, K, T)
    weights = np.ones(ids.shape, np.float32)
    for prompt, row_ids, row_weights in zip(prompts, ids, weights, strict=True):
        own_ids, own_weights = chunks(tokenizer, prompt)
        row_ids[: len(own_ids)], row_weights[: len(own_ids)] = own_ids, own_weights
    with no_grad():
        z = pipeline.text_encoder(ids.reshape(-1, ids.shape[2])).numpy()  # (N K, T, D)
        if (weights != 1).any():
            z_empty = pipeline.text_encoder(empty).numpy()  # (1, T, D)
            w = weights.reshape(-1, ids.shape[2], 1)  # (N K, T, 1)
            z = np.where(w == 1, z, z_empty + w * (z - z_empty))
    return z.reshape(len(prompts), -1, z.shape[2])  # (N, K T, D)


def _number(text: str) -> tuple[str, float] | None:
    """A text that ends with a colon and a number, without them, and the number."""
    match = NUMBER.search(text)
    try:
        return (text[: match.start()], float(match[1])) if match else None
    except ValueError:  # the colon is part of the text
        return None


def _joined(texts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Texts in a row that have the same weight as one; without empty texts."""
    joined: list[tuple[str, float]] = []
    for text, weight in texts:
        if joined and joined[-1][1] == weight:
            joined[-1] = joined[-1][0] + text, weight
        elif text:
            joined.append((text, weight))
    return joined


def _error(prompt: str, reason: str) -> MinidiffError:
    return MinidiffError(f"the prompt {prompt!r:.80} {reason}")
