"""How Sphinx builds these pages: `./run docs`, with warnings as errors."""

import sys
from pathlib import Path

import distill

sys.path.insert(0, str(Path(__file__).parent / "ext"))

project = "distill"
version = release = distill.__version__
author = "the distill contributors"
copyright = f"{author}; Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "recipe_reference",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"distill {release}"
html_show_copyright = False

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_inherit_docstrings = False  # torch's own say nothing about our modules
autodoc_preserve_defaults = True
add_module_names = False

default_role = "code"  # docstrings write `x` as these pages do
nitpicky = True
nitpick_ignore_regex = [  # names in annotations and in `Raises:` that have no page here
    (r"py:.*", r"(torch|nn|pydantic|annotated_types|typing|collections|pathlib|abc)(\..*)?"),
    (r"py:.*", r"(Tensor|Path|UserError|load_state_dict|distill\.recipe\..*|distill\.networks\.Role|16 hex digits .*)"),
]


def plain_docstrings(app, what, name, obj, options, lines) -> None:
    """Our docstrings are plain text: |x| is a size, and indented code after a module's paragraph is code."""
    for i, line in enumerate(lines):
        parts = line.split("`")  # every second one is code
        lines[i] = "`".join(part.replace("|", "\\|") if n % 2 == 0 else part for n, part in enumerate(parts))
    if what == "module":
        starts = [i for i in range(2, len(lines)) if lines[i].startswith("    ") and not lines[i - 1]]
        for i in reversed([i for i in starts if lines[i - 2] and not lines[i - 2].startswith(" ")]):
            lines[i - 1 : i] = ["", "::", ""]


def setup(app) -> None:
    app.connect("autodoc-process-docstring", plain_docstrings)
