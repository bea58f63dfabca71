"""Sphinx configuration of the documentation site; `make docs` stages the pages and builds them."""

import re
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # mathml
sys.path.insert(0, str(Path(__file__).parents[2]))  # the packages as they are in this checkout

warnings.filterwarnings("ignore", category=FutureWarning)  # of torch.jit, in autodoc

project = "boxdepth"
copyright = "the boxdepth authors, Apache-2.0"  # noqa: A001 - the name that Sphinx wants
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "boxdepth"
html_static_path = ["static"]
html_extra_path = ["../../docs/images"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#b3470b", "color-brand-content": "#b3470b"},
    "dark_css_variables": {"color-brand-primary": "#ffb57a", "color-brand-content": "#ffb57a"},
}
default_role = "literal"  # docstrings mark code with single backticks
highlight_language = "none"
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88


def setup(app):
    """Sphinx's entry point: docstrings are not reST, where a bar would begin a substitution."""
    app.connect("autodoc-process-docstring", _escape_bars)


def _escape_bars(_app, _what, _name, _object, _options, lines):
    lines[:] = [re.sub(r"\|(?=[^`]*(?:`[^`]*`[^`]*)*$)", r"\\|", line) for line in lines]
