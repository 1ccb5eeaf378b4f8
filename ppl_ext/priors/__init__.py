"""Functional priors: say what functions a model should produce, tune the prior of its sites until its draws match.

================================ ==========================================================================================
``lift_prior``                   a model with tunable priors on the latent sites that patterns choose
``Gaussian``                     a family: Gaussians with tuned scales
``ScaleMixture``                 a family: Gaussians with a random variance, inverse-gamma with tuned shape and scale
``Flow``                         a family: planar flows over all of a layer
``GaussianProcess``              a target, with a kernel of tinygp or any other, its hyperparameters fixed or random
``NNGP``                         a target: the limit of wide networks; ``nngp_kernel`` is its covariance
``StudentTProcess``              a target: a Gaussian one with a random scale
``ModelTarget``                  a target: any NumPyro model
``Conditioned``, ``Image``       a Gaussian target given, or seen through, a linear operator: ``values_at``, ``derivative_at``,
                                 ``integral``, ``stacked``, or your own
``SlicedWasserstein``            the default distance between function draws
``Energy``, ``MMD``              distances from pairs of draws
``GaussianW2``, ``GaussianKL``   distances of moments, exact over a linear Gaussian readout
``Sinkhorn``                     entropic optimal transport, by ott-jax
``CriticW1``                     Wasserstein-1 by a critic, as first published
``match``                        tune a lifted prior to a target; gives an ordinary NumPyro model and a report
``measurement_inputs``           where functions are compared: training inputs and points of their box
``posterior_functions``          any fit read in function space: predictions, their scores, R-hat on them
``student_t_posterior``          infinitely wide network with an inverse-gamma last-layer scale, given data: exact
``scale_mixture_posterior``      the same with any prior of the scale, by importance sampling
================================ ==========================================================================================
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppl_ext.priors.conditioned import Conditioned, Image, derivative_at, integral, stacked, values_at
    from ppl_ext.priors.critic import CriticW1
    from ppl_ext.priors.distance import Distance, Functions
    from ppl_ext.priors.energy import MMD, Energy
    from ppl_ext.priors.family import Family
    from ppl_ext.priors.flow import Flow
    from ppl_ext.priors.functions import FunctionDraws, posterior_functions
    from ppl_ext.priors.gaussian import Gaussian
    from ppl_ext.priors.gaussian_moments import GaussianKL, GaussianW2
    from ppl_ext.priors.gaussian_process import NNGP, GaussianProcess
    from ppl_ext.priors.inputs import measurement_inputs
    from ppl_ext.priors.lifting import Lifted, lift_prior
    from ppl_ext.priors.matched import Matched
    from ppl_ext.priors.matching import match
    from ppl_ext.priors.model_target import ModelTarget
    from ppl_ext.priors.nngp import nngp_kernel
    from ppl_ext.priors.scale_mixture import ScaleMixture
    from ppl_ext.priors.sinkhorn import Sinkhorn
    from ppl_ext.priors.sliced import SlicedWasserstein
    from ppl_ext.priors.student_t import StudentTProcess
    from ppl_ext.priors.student_t_network import scale_mixture_posterior, student_t_posterior
    from ppl_ext.priors.target import Target

# By module, so that nobody pays for importing what is not used.
_NAMES = {
    "conditioned": ("Conditioned", "Image", "derivative_at", "integral", "stacked", "values_at"),
    "critic": ("CriticW1",),
    "distance": ("Distance", "Functions"),
    "energy": ("Energy", "MMD"),
    "family": ("Family",),
    "flow": ("Flow",),
    "functions": ("FunctionDraws", "posterior_functions"),
    "gaussian": ("Gaussian",),
    "gaussian_moments": ("GaussianKL", "GaussianW2"),
    "gaussian_process": ("GaussianProcess", "NNGP"),
    "inputs": ("measurement_inputs",),
    "lifting": ("Lifted", "lift_prior"),
    "matched": ("Matched",),
    "matching": ("match",),
    "model_target": ("ModelTarget",),
    "nngp": ("nngp_kernel",),
    "scale_mixture": ("ScaleMixture",),
    "sinkhorn": ("Sinkhorn",),
    "sliced": ("SlicedWasserstein",),
    "student_t": ("StudentTProcess",),
    "student_t_network": ("scale_mixture_posterior", "student_t_posterior"),
    "target": ("Target",),
}

__all__ = [
    "MMD",
    "NNGP",
    "Conditioned",
    "CriticW1",
    "Distance",
    "Energy",
    "Family",
    "Flow",
    "FunctionDraws",
    "Functions",
    "Gaussian",
    "GaussianKL",
    "GaussianProcess",
    "GaussianW2",
    "Image",
    "Lifted",
    "Matched",
    "ModelTarget",
    "ScaleMixture",
    "Sinkhorn",
    "SlicedWasserstein",
    "StudentTProcess",
    "Target",
    "derivative_at",
    "integral",
    "lift_prior",
    "match",
    "measurement_inputs",
    "nngp_kernel",
    "posterior_functions",
    "scale_mixture_posterior",
    "stacked",
    "student_t_posterior",
    "values_at",
]


def __getattr__(name: str):
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"ppl_ext.priors.{module}"), name)
    raise AttributeError(f"module 'ppl_ext.priors' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
