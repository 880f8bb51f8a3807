"""The build fails where a public name has no entry in the API reference, or no docstring."""

from importlib import import_module
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

PUBLIC = (
    "sb3_refine", "sb3_refine.optimizers", "sb3_refine.objectives", "sb3_refine.evaluators", "sb3_refine.testing",
    "sb3_refine.tuning",
)  # fmt: skip


def missing(documented: set[str]) -> list[str]:
    """
    :param documented: full names that the reference has
    :return: public names that it lacks, and those without a docstring
    """
    found = []
    for module_name in PUBLIC:
        module = import_module(module_name)
        for name in module.__all__:
            value: Any = getattr(module, name)
            is_constant = not callable(value)
            homes = {f"{module_name}.{name}", f"{getattr(value, '__module__', module_name)}.{name}"}
            if not homes & documented:
                found.append(f"{module_name}.{name} is not in the API reference")
            elif not is_constant and not value.__doc__:
                found.append(f"{module_name}.{name} has no docstring")
    return found


def check(app: Sphinx, environment: Any) -> None:
    """Runs when all pages are read."""
    names = missing(set(environment.get_domain("py").objects))
    if names:
        raise ExtensionError("; ".join(names))


def setup(app: Sphinx) -> dict[str, Any]:
    """:param app: the build"""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
