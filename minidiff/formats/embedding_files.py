"""Files of textual inversion: safetensors with the vectors (V, D), or (D,), of one word.

<robot>      the word itself is the key, as diffusers writes learned_embeds.safetensors
emb_params   kohya's scripts and AUTOMATIC1111's web interface: the name of the file, without suffix, is the word
"""

from pathlib import Path

import numpy as np

from minidiff.engine.nn import first_few
from minidiff.errors import MinidiffError
from minidiff.formats.pipeline import TextPipeline
from minidiff.formats.weights import open_safetensors, refuse_pickles, write_safetensors
from minidiff.models.tokenizer import Tokenizer

LEARNED_EMBEDS = "learned_embeds.safetensors"  # its name in diffusers
NAMELESS = "emb_params"
MOST_VECTORS = 75  # of CLIP's 77 tokens


def load_embedding(path: str | Path, pipeline: TextPipeline) -> tuple[str, np.ndarray]:
    """The word and its vectors (V, D) in a file of textual inversion, or in a folder with learned_embeds.safetensors.

    Raises MinidiffError for a file that is missing, damaged or pickled, several words in it, vectors that are not those
    of the pipeline's text encoder, or not finite, and as `check_word` does.
    """
    path = Path(path)
    if path.exists():
        refuse_pickles(path)
    path = path / LEARNED_EMBEDS if path.is_dir() else path
    stored, _ = open_safetensors(path)
    if len(stored) != 1:
        raise MinidiffError(f"{path}: has {len(stored)} arrays: {first_few(list(stored))}; give a file of one word")
    ((key, array),) = stored.items()
    width = pipeline.text_encoder.config.hidden_size
    *vectors, values = array.shape or (0,)
    if values != width or len(vectors) > 1:
        raise MinidiffError(
            f"{path}: its vectors {array.shape} are not of {width} values, as those of {pipeline.folder}; "
            "it is for another model"
        )
    if not 1 <= array.size // width <= MOST_VECTORS:
        raise MinidiffError(f"{path}: has {array.size // width} vectors; give 1 to {MOST_VECTORS}")
    word = path.stem if key == NAMELESS else key
    check_word(pipeline.tokenizer, word, str(path))
    v = array.read().reshape(-1, width)  # (V, D)
    if not np.isfinite(v).all():
        raise MinidiffError(f"{path}: has values that are not finite; copy or train it again")
    return word, v


def save_embedding(path: Path, word: str, vectors: np.ndarray) -> None:
    """Write a word's vectors (V, D) to a file atomically, as diffusers does."""
    write_safetensors(path, {word: np.ascontiguousarray(vectors)}, {"format": "pt"})


def check_word(tokenizer: Tokenizer, word: str, place: str) -> None:
    """Raises MinidiffError, at `place`, for a new word that no text can contain, or that is a token already.

    The first are blank or not printable, have several spaces in a row, or a special token within.
    """
    if len(tokenizer.encode(word)) == 1:
        raise MinidiffError(f"{place}: {word!r:.80} is in the model's vocabulary; give another word, such as <{word}>")
    spaced = word != " ".join(word.split())
    if not word or not word.isprintable() or spaced or any(name in word for name in tokenizer.special.names):
        raise MinidiffError(f"{place}: {word!r:.80} is no word; give one such as <robot>")
