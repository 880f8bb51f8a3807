"""Search methods. A new one is a file here and a line in the registry."""

from sb3_refine.optimizers.ars import ARS
from sb3_refine.optimizers.base import Optimizer
from sb3_refine.optimizers.population import ExplicitPopulation, NoisePopulation, Population

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "ars": ARS,
}

__all__ = ["ARS", "OPTIMIZERS", "ExplicitPopulation", "NoisePopulation", "Optimizer", "Population"]
