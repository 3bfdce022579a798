"""What can be made worse on purpose, to see how much of it a policy bears."""

from teamvla.sim.perturbations.base import (
    PERTURBATIONS,
    Perturbation,
    PerturbedEnv,
    fitting,
    parse_perturbations,
    perturbed,
)

__all__ = [
    "PERTURBATIONS",
    "Perturbation",
    "PerturbedEnv",
    "fitting",
    "parse_perturbations",
    "perturbed",
]
