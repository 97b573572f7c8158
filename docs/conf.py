"""How Sphinx renders the site. `make site` gathers its pages first, see `mmchar.study.site`."""

from docutils import nodes
from docutils.utils.math import latex2mathml

import mmchar

project, author, version, release = "mmchar", "the authors of mmchar", mmchar.__version__, mmchar.__version__
copyright = "the authors of mmchar, Apache-2.0"
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["**/.ipynb_checkpoints"]

# Notebooks are shown as they were rendered; nothing runs here.
nb_execution_mode = "off"
nb_code_prompt_show = "Show code"
nb_code_prompt_hide = "Hide code"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
suppress_warnings = [
    "myst.header",  # a notebook's cells, and parts of a page, may begin below the level before
    "misc.highlighting_failure",  # what Pygments has no lexer for, such as CSV, is shown plain
    "mystnb.unknown_mime_type",  # what a browser cannot show stands beside a text that it can
]

# Docstrings are numpydoc's, with `names` in single backticks.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "mmchar"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_js_files = ["tables.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # which would fetch pages, and a browser does not fetch from the file system
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
html_math_renderer = "mathml"


def inline_math(translator, node):
    """A formula in a line, as MathML, which browsers draw without a script."""
    translator.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def block_math(translator, node):
    """A formula on a line of its own, as MathML."""
    formula = latex2mathml.tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="math">{formula}</div>')
    raise nodes.SkipNode


def setup(app):
    """Draw formulas as MathML: no script, nothing to download."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
