"""Files of a release agree with each other."""

import re
from importlib.metadata import requires
from pathlib import Path

import yaml
from packaging.requirements import Requirement

import sb3_refine

ROOT = Path(__file__).parents[1]


def read(name):
    return (ROOT / name).read_text()


def test_all_files_name_the_same_version():
    newest = re.search(r"^## Release (\S+) \((\S+)\)", read("CHANGELOG.md"), re.MULTILINE)
    citation = yaml.safe_load(read("CITATION.cff"))
    recipe = yaml.safe_load(read("docs/conda/recipe.yaml"))
    assert newest[1] == citation["version"] == recipe["context"]["version"] == sb3_refine.__version__
    assert newest[2] == str(citation["date-released"])


def test_the_conda_recipe_has_the_dependencies_of_the_package():
    renamed = {"matplotlib": "matplotlib-base", "typing-extensions": "typing_extensions"}
    needed = {}
    for each in map(Requirement, requires("sb3-refine")):
        if each.marker is None:
            name = each.name.lower().replace("_", "-")
            needed[renamed.get(name, name)] = set(map(str, each.specifier))
    listed = {}
    for line in yaml.safe_load(read("docs/conda/recipe.yaml"))["requirements"]["run"]:
        name, _, versions = line.partition(" ")
        listed[name] = set(versions.split(","))
    del listed["python"]
    assert listed == needed
