"""Textual inversion: ids as transformers', gradients as torch's, images as diffusers', files in both directions."""

import numpy as np
import pytest
import small_pipeline
import torch
from against_torch import nchw, rms_error
from one_thread import one_thread  # noqa: F401  for all tests of this module
from safetensors.torch import save_file

from minidiff.data.imaging import to_uint8
from minidiff.engine.losses import mse
from minidiff.engine.torch_generator import torch_generator
from minidiff.formats.embedding_files import LEARNED_EMBEDS, save_embedding
from minidiff.sampling.embeddings import with_embeddings, with_words
from minidiff.sampling.opening import open_pipeline
from minidiff.sampling.text_to_image import text_to_image

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers on torch

GUIDANCE = 40.0  # so much that the random network's images show the words
PROMPT = "a black <Zib-2> cat, zibs"
TEXTS = [
    PROMPT, "<zib-2><ZIB-2>", "x<zib-2>y", "a  <zib-2>\t, b", "zib", "Zib zibzib azib", "kÄtzchen ka\u0308tzchen",
    "<|endoftext|> zib <zib-3>", "<zib -2>", "",
]  # fmt: skip


@pytest.fixture
def theirs():
    return small_pipeline.pipeline()


@pytest.fixture
def ours(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "pipeline")
    return open_pipeline(tmp_path / "pipeline")


def drawn(vectors, seed=0):
    return np.random.default_rng(seed).standard_normal((vectors, 16)).astype(np.float32)


def image_of(pipeline, prompt=PROMPT):
    arguments = dict(num_inference_steps=4, guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(3))
    return pipeline(prompt, negative_prompt="zib", output_type="np", **arguments)[0]


def equal(ours, words, want, prompt=PROMPT):
    """At most 1 of 255 off on 99.9 % of the values; and not the image of a pipeline that does not know the words."""
    got, without = (
        to_uint8(text_to_image(pipeline, [prompt], "zib", GUIDANCE, 4, torch_generator(3)))
        for pipeline in (words, ours)
    )
    assert np.mean(np.abs(got.astype(int) - (want * 255).round()) <= 1) >= 0.999
    assert np.mean(np.abs(got.astype(int) - without) > 1) > 0.5


def test_ids_equal_those_of_transformers(theirs, ours):
    words = ["<zib-2>", "zib", "kätzchen"]
    theirs.tokenizer.add_tokens(words)
    pipeline = with_words(ours, {word: drawn(1) for word in words})
    want = theirs.tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="np").input_ids
    np.testing.assert_array_equal(pipeline.tokenizer(TEXTS), want)
    assert ours.tokenizer.words == {}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("vectors", [1, 3])
def test_gradients_equal_those_of_transformers(backend, vectors, theirs, ours):
    """Of every vector; transformers' table gets the same rows, and a gradient there; nothing else is trained."""
    ours = ours.to(backend)
    for network in (ours.unet, ours.text_encoder):
        for p in network.parameters():
            p.requires_grad = False
    start = drawn(vectors)
    pipeline = with_words(ours, {"<zib-2>": start})
    rng = np.random.default_rng(1)
    x_t, eps = rng.standard_normal((2, 2, 8, 8, 4), dtype=np.float32)
    t, ids = np.array([3, 700]), pipeline.tokenizer([PROMPT, "<zib-2> <zib-2>"])
    mse(pipeline.unet(x_t, t, pipeline.text_encoder(ids)), eps).backward()
    got = pipeline.text_encoder.embeddings.token_embedding.vectors.grad

    rows = len(theirs.tokenizer)
    theirs.text_encoder.resize_token_embeddings(rows + vectors, mean_resizing=False)
    table = theirs.text_encoder.get_input_embeddings().weight
    table.data[rows:] = torch.tensor(start)
    x_t, eps = (nchw(torch.tensor(a)) for a in (x_t, eps))
    text = theirs.text_encoder(torch.tensor(ids)).last_hidden_state
    torch.nn.functional.mse_loss(theirs.unet(x_t, torch.tensor(t), text).sample, eps).backward()
    assert rms_error(got, table.grad[rows:].numpy()) <= 1e-5
    assert all(p.grad is None for network in (ours.unet, ours.text_encoder) for p in network.parameters())


@pytest.mark.parametrize("vectors", [1, 3])
def test_our_file_gives_the_same_image_in_diffusers(vectors, theirs, ours, tmp_path):
    save_embedding(tmp_path / LEARNED_EMBEDS, "<zib-2>", drawn(vectors))
    theirs.load_textual_inversion(str(tmp_path))
    # diffusers replaces a word by its tokens as it is written, and ours in either case
    equal(ours, with_embeddings(ours, [tmp_path]), image_of(theirs, PROMPT.lower()))


def test_several_words_at_once(theirs, ours, tmp_path):
    for i, (word, vectors) in enumerate({"<zib-2>": 2, "zib": 1}.items()):
        save_embedding(tmp_path / f"{i}.safetensors", word, drawn(vectors, i))
        theirs.load_textual_inversion(str(tmp_path / f"{i}.safetensors"))
    words = with_embeddings(ours, [tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
    equal(ours, words, image_of(theirs, PROMPT.lower()))


@pytest.mark.parametrize("shape", [(16,), (1, 16), (2, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("key", ["<zib-2>", "emb_params"])
def test_their_file_gives_the_same_image_here(key, dtype, shape, theirs, ours, tmp_path):
    """With the word as its key, or named by the file, as kohya's scripts and AUTOMATIC1111's web interface have it."""
    path = tmp_path / "<zib-2>.safetensors"
    save_file({key: torch.tensor(drawn(2)).reshape(-1)[: np.prod(shape)].reshape(shape).to(dtype)}, path)
    theirs.load_textual_inversion(str(path), token="<zib-2>")
    equal(ours, with_embeddings(ours, [path]), image_of(theirs, PROMPT.lower()))
