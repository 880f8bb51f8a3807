"""Versions of the packages that decide what an episode is."""

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "sb3-refine", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy", "torch",
    "pybullet", "pybullet-envs-gymnasium", "panda-gym", "mujoco", "box2d", "ale-py", "gymnasium-robotics",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """:return: by package, of those that are installed"""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
