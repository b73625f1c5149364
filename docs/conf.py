"""How the documentation is built: pages in MyST that run their code, formulas as MathML, nothing from a network."""

import re
from importlib.metadata import version as version_of

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "minidiff"
author = "the minidiff authors"
release = version = version_of("minidiff")
html_title = "minidiff"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

# Every figure and every number on a page comes from the code of today, and an error in a cell ends the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds a cell; the first one that launches kernels may have to compile them
nb_output_stderr = "warn"
nb_merge_streams = True
nb_render_markdown_format = "myst"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["minidiff.css"]
html_math_renderer = "mathml"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#a8452a", "color-brand-content": "#a8452a"},
    "dark_css_variables": {"color-brand-primary": "#eea27e", "color-brand-content": "#eea27e"},
}
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 84


def write_mathml(translator, node):
    """A formula as MathML, which browsers draw themselves."""
    translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def to_rest(app, what, name, obj, options, lines):
    """Docstrings are plain text: what is aligned in columns or indented stays as it is, the rest is prose."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    lines[:] = []
    for paragraph in paragraphs:
        rows = paragraph.splitlines()
        if any(re.search(r"^ |\S {2,}\S", row) for row in rows):
            lines += ["::", "", *(f"    {row}" for row in rows), ""]
        else:
            lines += [*map(escape, rows), ""]


def escape(row):
    """A line of prose: `code` as reST has it, and its special characters disarmed."""
    parts = row.split("`")  # code has the odd places
    prose = (re.sub(r"([*_|\\])", r"\\\1", part) for part in parts[::2])
    code = (f"``{part}``" for part in parts[1::2])
    return "".join(part for both in zip(prose, [*code, ""], strict=True) for part in both)


def setup(app):
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
    app.connect("autodoc-process-docstring", to_rest)
