"""Configuration of the documentation: ``python -m sphinx -W -b html docs OUT``."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the check of the API reference

import sb3_refine

project = "sb3_refine"
author = "the sb3_refine contributors"
copyright = "2026, the sb3_refine contributors"
release = sb3_refine.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "api_coverage"]
source_suffix = {".md": "myst-nb"}
exclude_patterns = ["cluster/*", "conda/*"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# The tutorials run when the documentation is built. A run is kept until the tutorial changes.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_excludepatterns = [] if find_spec("panda_gym") else ["tutorials/smooth_arm.md"]
nb_merge_streams = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_class_signature = "mixed"
highlight_language = "text"
html_theme = "furo"
html_title = f"sb3_refine {release}"
