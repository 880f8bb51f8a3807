"""Modules that an agent's files name: imported where they are installed, or where the user names them as well."""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from sb3_refine.errors import RefineError

_FOR_ENVIRONMENTS = {"gym", "gymnasium", "stable-baselines3", "sb3-contrib", "rl-zoo3", "pettingzoo", "shimmy"}


def check_importable(module: str, named_by: str, gym_packages: Iterable[str] = ()) -> None:
    """
    Decide, without importing anything, whether a module that a file names may be imported.

    :param module: dotted name
    :param named_by: the file and its entry, for the message
    :param gym_packages: modules that the user has named
    :raises RefineError: unless the module is one of ``gym_packages`` or below one of them, or belongs to an installed
        distribution that is or requires one of :data:`_FOR_ENVIRONMENTS`; so modules in the working directory, beside
        the agent, or of any other package are refused
    """
    if any(module == package or module.startswith(f"{package}.") for package in gym_packages):
        return
    is_public = all(part.isidentifier() and not part.startswith("_") for part in module.split("."))
    if is_public and _is_for_environments(module):
        return
    raise RefineError(
        f"{named_by}: the module {module[:80]!r} is not imported: no installed package that depends on "
        "gymnasium has it; install that package, or if you trust the agent's author, add the module to "
        "`gym_packages`"
    )


def _is_for_environments(module: str) -> bool:
    """
    :param module: dotted name
    :return: whether its package belongs to an installed distribution that is one of :data:`_FOR_ENVIRONMENTS` or
        requires one, and would be imported from there
    """
    package = module.partition(".")[0]
    if package == "sb3_refine":
        return True
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location and spec.origin else ())]
    return bool(places) and any(
        all(Path(place).resolve().is_relative_to(root) for place in places) for root in _install_folders(package)
    )


def _install_folders(package: str) -> Iterator[Path]:
    """Folders of the distributions that provide a package; the working directory does not count."""
    working_directory = Path.cwd().resolve()
    path = [entry for entry in sys.path if entry and Path(entry).resolve() != working_directory]
    for distribution in metadata.distributions(path=path):
        if package in _packages_of(distribution) and _requires_environments(distribution):
            yield Path(str(distribution.locate_file(""))).resolve()
            yield from _editable_folder(distribution)


def _requires_environments(distribution: metadata.Distribution) -> bool:
    """Importing a module of any other package could run a script."""
    names = [distribution.name, *(distribution.requires or ())]
    return any(re.split(r"[^\w.-]", name)[0].lower().replace("_", "-") in _FOR_ENVIRONMENTS for name in names)


def _packages_of(distribution: metadata.Distribution) -> set[str]:
    """Names of the packages and modules that a distribution has installed, as far as it lists them."""
    named = distribution.read_text("top_level.txt")
    if named is not None:
        return set(named.split())
    files = distribution.files or ()
    return {file.parts[0] if len(file.parts) > 1 else file.stem for file in files if file.suffix == ".py"}


def _editable_folder(distribution: metadata.Distribution) -> Iterator[Path]:
    """The project's folder, where a distribution is installed from it (``pip install -e``)."""

    text = distribution.read_text("direct_url.json")
    if text is None:
        return
    origin = json.loads(text)
    if origin.get("dir_info", {}).get("editable") and origin.get("url", "").startswith("file:"):
        yield Path(url2pathname(urlparse(origin["url"]).path)).resolve()


def add_working_directory() -> None:
    """Make modules of the working directory importable, as ``python -m`` does, after all others."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append("")
