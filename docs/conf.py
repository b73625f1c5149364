"""How the documentation is built: pages in MyST that run their code, formulas as MathML, nothing from a network."""

import os
import re
import sys
from importlib.metadata import version as version_of

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

sys.path.insert(0, os.path.dirname(__file__))  # playground.py, widget.py

# The cells compute little, and threads that share cores with other programs mostly wait for one another.
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

project = "minidiff"
author = "the minidiff authors"
release = version = version_of("minidiff")
html_title = "minidiff"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton", "playground", "widget"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
myst_update_mathjax = False

# Every figure and every number on a page comes from the code of today, and an error in a cell ends the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 900  # seconds a cell; the first one that trains may have to compile the kernels
nb_output_stderr = "warn"
nb_merge_streams = True
nb_render_markdown_format = "myst"

highlight_language = "none"  # of what does not say: plain text

html_theme = "furo"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["minidiff.css"]
html_math_renderer = "mathml"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#a8452a", "color-brand-content": "#a8452a"},
    "dark_css_variables": {"color-brand-primary": "#eea27e", "color-brand-content": "#eea27e"},
}
copybutton_prompt_text = "$ "

nitpicky = True  # a link to a function that is not there is a warning; other libraries' pages are out of reach
nitpick_ignore_regex = [
    ("py:.*", r"(numpy|collections|contextlib|pathlib|PIL|Image|re|types)\..*"),
    ("py:class", r".*\.(Batch|EvaluatedImages|JSONFile|Stored|[A-Z])"),
]
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 84


def write_mathml(translator, node):
    """A formula as MathML, which browsers draw themselves."""
    # docutils takes the index of an accented letter for something to be set under it; an empty group parts the two
    tex = re.sub(r"\\(bar|hat|tilde) ?(\\?\w+?)_", r"\\\1{\2}{}_", node.astext())
    mathml = tex2mathml(tex, as_block=isinstance(node, nodes.math_block))
    # thin spaces around a function, as TeX has them: after its name, unless a parenthesis follows, and before it
    mathml = re.sub(r"<mo>(?=&ApplyFunction;</mo>(?!\s*<m(space|o )))", '<mo rspace="0.17em">', mathml)
    mathml = re.sub(
        r"(</m(?:i|n|frac|row|sub|sup)>\s*)(<mi>(?:cos|ln|log|sin)</mi>)", r'\1<mspace width="0.17em"/>\2', mathml
    )
    translator.body.append(mathml.replace(' accent="true"', ""))  # Chromium lets a bar touch its letter
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
