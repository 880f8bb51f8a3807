"""Jinja templates of the texts about a run."""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sb3_refine.formatting import code_block, code_span, escaped, filled, number_text


@cache
def _environment() -> Environment:
    """Markdown is not HTML: values from files are escaped by the filters ``md`` and ``code``."""
    environment = Environment(
        loader=PackageLoader("sb3_refine.reporting"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(md=escaped, code=code_span, code_block=code_block, fill=filled, number=number_text)
    return environment


def render(name: str, **values: Any) -> str:
    """
    :param name: of a template in this folder
    :param values: what the template shows
    :return: the text; parts are separated by one empty line
    """
    text = _environment().get_template(name).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
