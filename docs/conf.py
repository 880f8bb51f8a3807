"""Configuration of the documentation: ``python -m sphinx -W -b html docs OUT``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the check of the API reference

import sb3_refine

project = "sb3_refine"
author = "the sb3_refine contributors"
release = sb3_refine.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "api_coverage"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["cluster/*"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_class_signature = "mixed"
highlight_language = "text"
html_theme = "furo"
html_title = f"sb3_refine {release}"
