"""The widget `pipeline`: what it shows is what the model computes, and its stages can be zoomed into."""

import importlib.util
import json
import re
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import minidiff as md
from minidiff.data.imaging import to_uint8
from minidiff.diffusion.model import evaluate
from minidiff.models.config import TextEncoderConfig, TextUNetConfig, VAEConfig
from minidiff.sampling.prompts import embeddings

DOCS = Path(__file__).parents[2] / "docs"
SHEETS = DOCS / "_static/widgets/pipeline"
CHAPTER = "course/12_stable_diffusion"
FIGURE = 'figure.widget[data-widget="pipeline"]'
STAGES = {
    "tokenizer": "Tokenizer", "encoder": "Text encoder", "noise": "Noise", "unet": "U-Net", "guidance": "Guidance",
    "step": "Scheduler", "decoder": "VAE decoder",
}  # fmt: skip


@pytest.fixture(scope="module")
def script():
    """docs/course/pipeline_images.py, which made the images and numbers."""
    spec = importlib.util.spec_from_file_location("pipeline_images", DOCS / "course/pipeline_images.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def emoji():
    return md.open_pipeline(DOCS / "models/emoji")


@pytest.fixture
def page(open_page):
    return open_page(f"{CHAPTER}.html", reduced_motion="reduce")


@pytest.fixture
def data(page):
    return page.evaluate("minidiff.pipeline.data")


def stage(page, key):
    return page.locator(f'{FIGURE} [data-stage="{key}"]')


def choose(page, label, option):
    page.locator(FIGURE).get_by_label(label).select_option(label=str(option))


def shapes_shown(page):
    """The shape of what comes out of each stage, as in the overview."""
    labels = {key: stage(page, key).get_attribute("aria-label") for key in STAGES}
    return {key: tuple(map(int, re.search(r"\d+(×\d+)+", label)[0].split("×"))) for key, label in labels.items()}


def cell(locator):
    """The part of its sheet that a tile shows, (H, W) indices of colours, and (H, W, 3)."""
    x, y, w, h = map(int, locator.get_attribute("viewBox").split())
    file = locator.locator("image").get_attribute("href").rpartition("/")[2]
    sheet = Image.open(SHEETS / file).crop((x, y, x + w, y + h))
    return np.asarray(sheet), np.asarray(sheet.convert("RGB")).astype(int)


# ---- shapes


@pytest.mark.parametrize("scale", [1, 3])
def test_shapes_shown_are_those_of_the_arrays(page, emoji, scale):
    choose(page, "Guidance scale", scale)
    ids, x_t = emoji.tokenizer(["cat face"]), np.zeros(emoji.vae.latent_shape((1, *emoji.image_shape)), np.float32)
    text, empty = (embeddings(emoji, [prompt]) for prompt in ("cat face", ""))
    batches = []

    def unet(x_t, t, cond):
        prediction = emoji.unet(x_t, t, cond=cond)
        batches.append(prediction.shape)
        return prediction

    prediction = evaluate(md.guided(unet, empty, scale), x_t, np.array([999]), text)
    after = md.ddim_step(emoji.schedule, prediction, x_t, 999, 899, eta=0, z=0)
    with md.no_grad():
        image = emoji.vae.decode(x_t).numpy()
    assert shapes_shown(page) == {
        "tokenizer": ids.shape, "encoder": text.shape, "noise": x_t.shape, "unet": batches[0],
        "guidance": prediction.shape, "step": after.shape, "decoder": image.shape,
    }  # fmt: skip


def test_levels_are_those_of_the_networks(page):
    emoji = md.open_pipeline(DOCS / "models/emoji")  # one whose layers may be replaced
    recorded = {"unet": [], "vae": []}

    def recording(name, layer):
        def call(*args, **kwargs):
            y = layer(*args, **kwargs)
            recorded[name].append(list(y.shape[1:]))
            return y

        return call

    for name, levels in (("unet", emoji.unet.down_blocks), ("vae", emoji.vae.decoder.up_blocks)):
        for level in levels:
            level.resnets[-1] = recording(name, level.resnets[-1])
    md.text_to_image(emoji, ["cat face"], guidance=1, steps=1)
    of_page = page.evaluate("[minidiff.pipeline.unetLevels, minidiff.pipeline.decoderLevels].map("
                            "(levels) => levels(minidiff.pipeline.data.sizes))")  # fmt: skip
    assert of_page == [recorded["unet"], recorded["vae"]]


def test_sizes_of_stable_diffusion_are_those_of_its_configurations(page):
    sd1, text, unet, vae = page.evaluate("minidiff.pipeline.SD1"), TextEncoderConfig(), TextUNetConfig(), VAEConfig()
    assert (sd1["tokens"], sd1["vocabulary"]) == (text.max_position_embeddings, text.vocab_size)
    assert sd1["textLayers"] == text.num_hidden_layers
    assert (sd1["latent"], sd1["unet"]) == (unet.in_channels, list(unet.block_out_channels))
    assert (sd1["latent"], sd1["scaling"]) == (vae.latent_channels, vae.scaling_factor)
    widths = re.search(r"VAEConfig\(\n\s+block_out_channels=\(([\d, ]+)\)", (DOCS / f"{CHAPTER}.md").read_text())[1]
    assert sd1["vae"] == [int(width) for width in widths.split(",")]
    assert page.evaluate("minidiff.pipeline.decoderLevels(minidiff.pipeline.SD1).at(-1)") == [512, 512, 128]


@pytest.mark.parametrize("column, option", [(1, "the emoji model"), (2, "Stable Diffusion 1.x")])
def test_shapes_shown_are_those_of_the_chapters_table(page, column, option):
    table = re.findall(r"^\| ([^|]+) \| ([\dx ]+) \| ([\dx ]+) \|$", (DOCS / f"{CHAPTER}.md").read_text(), re.M)
    of_table = {row[0]: tuple(map(int, row[column].split(" x "))) for row in table}
    choose(page, "Shapes of", option)
    rows = ("token ids", "text embeddings", "noise", "U-Net input, of each step", "guided prediction, of each step",
            "latents", "image")  # fmt: skip
    assert shapes_shown(page) == dict(zip(STAGES, (of_table[row] for row in rows), strict=True))


# ---- numbers


def test_token_ids_are_the_tokenizers(page, data, emoji, script):
    assert [prompt["text"] for prompt in data["prompts"]] == list(script.PROMPTS)
    assert data["sizes"] == json.loads(json.dumps(script.sizes(emoji)))
    start, end = data["special"]
    for prompt in data["prompts"]:
        choose(page, "Prompt", prompt["text"])
        ids = emoji.tokenizer([prompt["text"]])[0].tolist()
        n = len(prompt["ids"])
        assert [start, *prompt["ids"], *[end] * (len(ids) - n - 1)] == ids
        shown = page.locator(f"{FIGURE} .chip ~ text:last-child").all_text_contents()
        assert shown == [*map(str, ids[: n + 2]), f"{len(ids) - n - 2} × {end}"]


def library_guided(p_null, p_cond, scale):
    """`guided` of a model that predicts its condition."""
    model = md.guided(lambda x_t, t, cond: cond, np.full((1, 1, 1, 1), p_null), scale)
    return model(np.zeros((1, 1, 1, 1)), np.zeros(1, int), cond=np.full((1, 1, 1, 1), p_cond)).item()


def test_guidance_and_step_are_the_librarys(page, data, emoji):
    """Of every prompt and scale, at each step; and the state of the next step is what the arithmetic gives.

    The numbers are rounded to 4 decimals, so v is off by at most (2 w + 1) 5e-5, and the state, whose coefficients are
    at most 1, by that and twice 5e-5; 1e-4 more for float32.
    """
    ts, alpha_bar = data["ts"], data["alphaBar"]
    for prompt in data["prompts"]:
        for scale, (x, cond, null) in zip(data["scales"], prompt["arithmetic"], strict=True):
            calls = [[null[i], cond[i], scale, x[i], alpha_bar[i], alpha_bar[i + 1]] for i in range(len(cond))]
            of_page = page.evaluate(
                "calls => calls.map(([none, cond, w, x, a, b]) => { const v = minidiff.pipeline.guided(none, cond, w);"
                "return [v, minidiff.pipeline.ddimStep(x, v, a, b).next]; })",
                calls,
            )
            v = [library_guided(null[i], cond[i], scale) for i in range(len(cond))]
            following = [
                md.ddim_step(emoji.schedule, np.array([v[i]]), np.array([x[i]]), t, t_prev, eta=0, z=0).item()
                for i, (t, t_prev) in enumerate(pairwise(ts))
            ]
            np.testing.assert_allclose(of_page, np.stack([v, following], 1), rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(following, x[1:], rtol=0, atol=(2 * scale + 3) * 5e-5 + 1e-4)


def test_arithmetic_shown_is_that_of_guided(page, data):
    choose(page, "Guidance scale", 7.5)
    stage(page, "guidance").click()
    _, cond, null = (column[1] for column in data["prompts"][0]["arithmetic"][2])  # step 2 is shown at first
    shown = page.locator(f"{FIGURE} .pipeline-numbers").inner_text().splitlines()[-1]
    expected = f"{null:.3f} + 7.5 × ({cond:.3f} - ({null:.3f})) = {library_guided(null, cond, 7.5):.3f}"
    assert null < 0 and shown == expected.replace("-", "−")


# ---- images


@pytest.mark.parametrize("prompt", ["woman singer, medium skin tone", "green heart"])
def test_final_images_are_the_librarys_samples(page, data, emoji, prompt):
    """The mean difference is at most 5 of 255 levels: a sheet has 256 colours. No other scale's sample is as close."""
    choose(page, "Prompt", prompt)
    settings = {"steps": len(data["ts"]) - 1}
    samples = [
        to_uint8(
            md.text_to_image(emoji, [prompt], guidance=scale, rng=np.random.default_rng(data["seed"]), **settings)
        )[0]
        for scale in data["scales"]
    ]
    for i, scale in enumerate(data["scales"]):
        choose(page, "Guidance scale", scale)
        shown = cell(page.locator(f'{FIGURE} [data-stage="decoder"] ~ g svg'))[1]
        differences = [np.abs(shown - sample).mean() for sample in samples]
        assert differences[i] <= 5 and np.argmin(differences) == i


def test_sheets_are_what_the_script_computes(page, emoji, script):
    """Latents and attention to half a level (of 31, of 63), and 1 % for rounding; estimates to 8 of 255 on average."""
    choose(page, "Prompt", "cat face")
    choose(page, "Guidance scale", 7.5)
    page.locator(FIGURE).get_by_label("Step").fill("4")
    computed = script.sampled(emoji, "cat face", 7.5)
    latents = cell(page.locator(f'{FIGURE} [data-stage="step"] ~ g svg'))[0] / 30 * 2 * script.RANGE - script.RANGE
    expected = script.channel_maps(computed.states[4]).clip(-script.RANGE, script.RANGE)
    np.testing.assert_allclose(latents, expected, rtol=0.01, atol=script.RANGE / 30 + 0.01)
    tiles = page.locator(f'{FIGURE} [data-stage="unet"] ~ g svg')
    largest = page.evaluate("minidiff.pipeline.data.prompts[5].attention")
    attention = cell(tiles.nth(1))[0] / 62 * largest
    np.testing.assert_allclose(attention, computed.attention[3, 1], rtol=0.01, atol=largest / 124 + 0.001)
    for i, kind in ((0, 0), (2, 2), (3, 1)):  # grey below the attention; without prompt; with prompt
        assert np.abs(cell(tiles.nth(i))[1] - computed.images[3, kind]).mean() <= 8


def test_sheets_are_small():
    assert sum(path.stat().st_size for path in SHEETS.iterdir()) <= 620_000


# ---- zoom


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_zoom_by_mouse(open_page, motion):
    page = open_page(f"{CHAPTER}.html", reduced_motion=motion)
    for key, name in STAGES.items():
        stage(page, key).click()
        assert page.locator(f"{FIGURE} h4").inner_text() == name
        page.locator(FIGURE).get_by_role("button", name="Back").click()
        assert stage(page, key).is_visible()
        page.evaluate("Promise.all(document.getAnimations().map((animation) => animation.finished))")


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_zoom_by_keyboard(page, key):
    stage(page, "tokenizer").focus()
    for name in STAGES:
        assert page.evaluate("document.activeElement.dataset.stage") == name
        page.keyboard.press(key)
        assert page.locator(f"{FIGURE} h4").inner_text() == STAGES[name]
        page.keyboard.press("Escape")
        page.keyboard.press("Tab")


def test_next_leads_through_all_stages(page):
    stage(page, "tokenizer").click()
    names = [page.locator(f"{FIGURE} h4").inner_text()]
    following = page.locator(FIGURE).get_by_role("button", name="Next")
    while following.count():
        following.click()
        names.append(page.locator(f"{FIGURE} h4").inner_text())
    assert names == list(STAGES.values())


def test_controls_change_what_the_zoom_shows(page):
    stage(page, "guidance").click()
    numbers = page.locator(f"{FIGURE} .pipeline-numbers")
    seen = [numbers.inner_text()]
    page.locator(FIGURE).get_by_label("Step").press("ArrowRight")
    seen.append(numbers.inner_text())
    page.locator(FIGURE).get_by_role("button", name="w = 12").click()
    seen.append(numbers.inner_text())
    choose(page, "Prompt", "cat face")
    seen.append(numbers.inner_text())
    assert len(set(seen)) == 4
    choose(page, "Shapes of", "Stable Diffusion 1.x")
    assert numbers.count() == 0 and "1×64×64×4" in page.locator(FIGURE).inner_text()


def test_links_of_every_stage_exist(page, site_folder):
    for key in STAGES:
        stage(page, key).click()
        links = [link.evaluate("a => a.href") for link in page.locator(f"{FIGURE} a").all()]
        assert len(links) >= 2
        for link in map(urlsplit, links):
            html = (site_folder / link.path.lstrip("/")).read_text()
            assert not link.fragment or f'id="{link.fragment}"' in html
        page.keyboard.press("Escape")


def test_works_from_a_file(open_page, site_folder):
    page = open_page((site_folder / f"{CHAPTER}.html").as_uri(), reduced_motion="reduce")
    stage(page, "decoder").click()
    assert page.locator(f"{FIGURE} h4").inner_text() == "VAE decoder"
