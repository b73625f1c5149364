"""The directive `playground`: minidiff's own source in an editor, run in the page (in_page.py); or an exercise.

:::{playground} sampling
:alt: What the images show
The caption.
:::

:::{playground} exercise 2
The caption.
:::

Until its button is pressed a page loads nothing but its scripts. It shows the images that the unedited source makes,
computed when the docs are built. _static/playground/source.zip holds what the page runs then.
"""

import base64
import inspect
import io
import zipfile
from html import escape
from pathlib import Path

import in_page
import numpy as np
from docutils import nodes
from docutils.parsers.rst import directives
from PIL import Image
from sphinx.util.docutils import SphinxDirective

from minidiff.learn.catalogue import exercise_of
from minidiff.learn.stub import stub

ROOT = Path(__file__).parent.parent
# No page runs them: they need other libraries than NumPy, or processes, or serve the command line alone.
NOT_IN_PAGES = ("bench", "cli", "command.py", "evaluation", "forecast", "kinds", "nano.py")
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # of the files in the archive, so that equal sources give equal archives


class Playground(SphinxDirective):
    """A figure with the source, and the images that it makes."""

    required_arguments = 1
    optional_arguments = 1
    has_content = True
    option_spec = {"alt": directives.unchanged_required}

    def run(self):
        self.env.metadata[self.env.docname]["playground"] = True
        name, *numbers = self.arguments
        content = self.exercise(*map(int, numbers)) if numbers else self.source(name)
        caption = nodes.inline("", "", *self.parse_inline(" ".join(self.content))[0])
        return [playground("", caption, name=name, alt=self.options.get("alt", ""), **content)]

    def exercise(self, number):
        """The blank file of an exercise."""
        label = f"Exercise {number}: {exercise_of(number).title}"
        return {"number": number, "label": label, "text": stub(number), "images": []}

    def source(self, name):
        """The functions of a playground, and the last images that they make."""
        functions = in_page.PLAYGROUNDS[name].functions
        for file in (in_page.__file__, *map(inspect.getfile, functions)):
            self.env.note_dependency(file)
        label = "Source of " + " and ".join(f"{f.__module__}.{f.__name__}" for f in functions)
        text = in_page.text_of(name)
        *_, (_, images) = in_page.run(name, text)
        return {"number": 0, "label": label, "text": text, "images": images}


class playground(nodes.General, nodes.Element):  # noqa: N801 (docutils' own nodes are written so)
    """The place of a playground; its child is the caption."""


def visit_playground(translator, node):
    translator.body.append(
        f'<figure class="playground" data-name="{node["name"]}" data-number="{node["number"]}">'
        + (row_of(node["images"], node["alt"]) if len(node["images"]) else "")
        + f'<p class="label">{escape(node["label"])}</p><pre class="source">{escape(node["text"])}</pre><figcaption>'
    )


def depart_playground(translator, node):
    translator.body.append("</figcaption></figure>\n")


def row_of(images, alt):
    """Images, uint8 (N, H, W, 3), in one row; in two on a narrow screen."""
    n = len(images)
    tags = "".join(f'<img src="{data_uri(image)}" alt="">' for image in images)
    style = f"--columns: {n}; --columns-narrow: {(n + 1) // 2}"
    return f'<div class="images" role="img" aria-label="{escape(alt)}" style="{style}">{tags}</div>'


def data_uri(image):
    """An image, uint8 (H, W, 3), as a PNG inside the page."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def add_files(app, pagename, templatename, context, doctree):
    """The script and the styles, for pages that have a playground."""
    if app.env.metadata.get(pagename, {}).get("playground"):
        app.add_js_file("playground/playground.js", defer="defer")
        app.add_css_file("playground/playground.css")


def write_archive(app, error):
    """source.zip: the source that needs NumPy alone, the network of cats and dogs, and the page's own part."""
    if error or app.builder.format != "html":
        return
    path = Path(app.outdir) / "_static/playground/source.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in sorted(archive_content().items()):
            archive.writestr(zipfile.ZipInfo(name, FIRST_DAY), content, zipfile.ZIP_DEFLATED)


def archive_content():
    """The content of each file of the archive, by its name there."""
    cat = io.BytesIO()
    np.save(cat, in_page.cat())
    content = {}
    for root, pattern in (
        (ROOT, "minidiff/**/*.py"),
        (ROOT, "minidiff/learn/cats_dogs/**/*.*"),
        (ROOT / "kernels", "*/__init__.py"),
        (ROOT / "kernels", "*/reference/*.py"),
    ):
        for path in root.glob(pattern):
            name = path.relative_to(root)
            if not {*name.parts} & {*NOT_IN_PAGES}:
                content[name.as_posix()] = path.read_bytes()
    return content | {"in_page.py": Path(in_page.__file__).read_bytes(), "cat.npy": cat.getvalue()}


def setup(app):
    app.add_node(playground, html=(visit_playground, depart_playground))
    app.add_directive("playground", Playground)
    app.connect("html-page-context", add_files)
    app.connect("build-finished", write_archive)
    return {"parallel_read_safe": True}
