"""The directive `widget`: an interactive figure, plain JavaScript in _static/widgets/NAME.js, with a caption.

:::{widget} ink
The caption.
:::
"""

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Widget(SphinxDirective):
    """A figure that docs/_static/widgets/NAME.js fills in. Only pages that have widgets load scripts."""

    required_arguments = 1
    has_content = True

    def run(self):
        name = self.arguments[0]
        self.env.metadata[self.env.docname].setdefault("widgets", []).append(name)
        return [widget("", *self.parse_inline(" ".join(self.content))[0], name=name)]


class widget(nodes.General, nodes.Element):  # noqa: N801 (docutils' own nodes are written so)
    """The place of a widget; its children are the caption."""


def visit_widget(translator, node):
    translator.body.append(
        f'<figure class="widget" data-widget="{node["name"]}"><div class="widget-body">'
        "<noscript>This figure needs JavaScript.</noscript></div><figcaption>"
    )


def depart_widget(translator, node):
    translator.body.append("</figcaption></figure>\n")


def add_scripts(app, pagename, templatename, context, doctree):
    """The scripts of a page's widgets, after the two that they share."""
    names = dict.fromkeys(app.env.metadata.get(pagename, {}).get("widgets", []))
    for name in ["widget", "diffusion", *names] if names else []:
        app.add_js_file(f"widgets/{name}.js", defer="defer")


def setup(app):
    app.add_node(widget, html=(visit_widget, depart_widget))
    app.add_directive("widget", Widget)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True}
