"""Functional priors: say what functions a model should produce, tune the prior of its sites until its draws
match.

============================== ===============================================================================
``lift_prior``                 a model with tunable priors on the latent sites that patterns choose
``Gaussian``                   a family: Gaussians with tuned scales
``ScaleMixture``               a family: Gaussians with a random variance, inverse-gamma with tuned shape and
                               scale
``ThreeLayer``                 a family: weights that are on or off, alone, in rows or in runs; ``Support`` is
                               the law over what is on, ``SupportedPrecision`` that of the precisions
``Flow``                       a family: planar flows over all of a layer
``GaussianProcess``            a target, with a kernel of tinygp or any other, its hyperparameters fixed or
                               random
``NNGP``                       a target: the limit of wide networks; ``nngp_kernel`` is its covariance
``DeepKernelMachine``          the same with layers that follow the data: a target and a predictor
``StudentTProcess``            a target: a Gaussian one with a random scale
``ModelTarget``                a target: any NumPyro model
``Conditioned``, ``Image``     a Gaussian target given, or seen through, a linear operator: ``values_at``,
                               ``derivative_at``, ``integral``, ``stacked``, or your own
``SlicedWasserstein``          the default distance between function draws
``Energy``, ``MMD``            distances from pairs of draws
``GaussianW2``, ``GaussianKL`` distances of moments, exact over a linear Gaussian readout
``Sinkhorn``                   entropic optimal transport, by ott-jax
``CriticW1``                   Wasserstein-1 by a critic, as first published
``match``                      tune a lifted prior to a target; gives an ordinary NumPyro model and a report
``ARD``                        a latent site with a precision for each axis, refreshed as a fit goes;
                               ``relevance`` says which axes a decoder uses
``KroneckerARD``               normals over an array whose variances are products of one factor an axis;
                               ``type2_em`` finds the factors of a sparse one
``markov``                     a Gaussian process over time as a scan, in O(n)
``MarkovFBM``                  fractional Brownian motion as a scan, in O(n)
``fourier_gp``                 a smooth Gaussian process on a regular grid, by few Fourier coefficients
``excursion_times``            how long a Gaussian process over time stays on one side of its mean
``designed_inputs``            the same by a design: rows of candidates, drawn anew at every step
``measurement_inputs``         where functions are compared: training inputs and points of their box
``posterior_functions``        any fit read in function space: predictions, their scores, R-hat on them
``student_t_posterior``        infinitely wide network with an inverse-gamma last-layer scale, given data:
                               exact
``scale_mixture_posterior``    the same with any prior of the scale, by importance sampling
============================== ===============================================================================
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppl_ext.priors.ard import ARD
    from ppl_ext.priors.distances.critic import CriticW1
    from ppl_ext.priors.distances.distance import Distance, Functions
    from ppl_ext.priors.distances.energy import MMD, Energy
    from ppl_ext.priors.distances.gaussian_moments import GaussianKL, GaussianW2
    from ppl_ext.priors.distances.sinkhorn import Sinkhorn
    from ppl_ext.priors.distances.sliced import SlicedWasserstein
    from ppl_ext.priors.excursions import excursion_times
    from ppl_ext.priors.families.family import Family
    from ppl_ext.priors.families.flow import Flow
    from ppl_ext.priors.families.gaussian import Gaussian
    from ppl_ext.priors.families.scale_mixture import ScaleMixture
    from ppl_ext.priors.families.support import Support, SupportedPrecision
    from ppl_ext.priors.families.three_layer import ThreeLayer
    from ppl_ext.priors.fourier import fourier_gp
    from ppl_ext.priors.fractional import MarkovFBM
    from ppl_ext.priors.functions.posterior_functions import FunctionDraws, posterior_functions
    from ppl_ext.priors.infinite_width import scale_mixture_posterior, student_t_posterior
    from ppl_ext.priors.kronecker_ard import KroneckerARD
    from ppl_ext.priors.lifting import Lifted, lift_prior
    from ppl_ext.priors.markov_process import markov
    from ppl_ext.priors.matching.inputs import designed_inputs, measurement_inputs
    from ppl_ext.priors.matching.match import match
    from ppl_ext.priors.matching.matched import Matched
    from ppl_ext.priors.relevant_axes import relevance
    from ppl_ext.priors.targets.conditioned import (
        Conditioned,
        Image,
        derivative_at,
        integral,
        stacked,
        values_at,
    )
    from ppl_ext.priors.targets.deep_kernel_machine import DeepKernelMachine
    from ppl_ext.priors.targets.gaussian_process import NNGP, GaussianProcess
    from ppl_ext.priors.targets.model_target import ModelTarget
    from ppl_ext.priors.targets.nngp import nngp_kernel
    from ppl_ext.priors.targets.student_t_process import StudentTProcess
    from ppl_ext.priors.targets.target import Target
    from ppl_ext.priors.type2 import type2_em

# By module, so that nobody pays for importing what is not used.
_NAMES = {
    "ard": ("ARD",),
    "distances.critic": ("CriticW1",),
    "distances.distance": ("Distance", "Functions"),
    "distances.energy": ("Energy", "MMD"),
    "distances.gaussian_moments": ("GaussianKL", "GaussianW2"),
    "distances.sinkhorn": ("Sinkhorn",),
    "distances.sliced": ("SlicedWasserstein",),
    "excursions": ("excursion_times",),
    "families.family": ("Family",),
    "families.flow": ("Flow",),
    "families.gaussian": ("Gaussian",),
    "families.scale_mixture": ("ScaleMixture",),
    "families.support": ("Support", "SupportedPrecision"),
    "families.three_layer": ("ThreeLayer",),
    "fourier": ("fourier_gp",),
    "fractional": ("MarkovFBM",),
    "functions.posterior_functions": ("FunctionDraws", "posterior_functions"),
    "infinite_width": ("scale_mixture_posterior", "student_t_posterior"),
    "kronecker_ard": ("KroneckerARD",),
    "lifting": ("Lifted", "lift_prior"),
    "matching.inputs": ("designed_inputs", "measurement_inputs"),
    "markov_process": ("markov",),
    "matching.match": ("match",),
    "matching.matched": ("Matched",),
    "relevant_axes": ("relevance",),
    "targets.conditioned": ("Conditioned", "Image", "derivative_at", "integral", "stacked", "values_at"),
    "targets.deep_kernel_machine": ("DeepKernelMachine",),
    "targets.gaussian_process": ("GaussianProcess", "NNGP"),
    "targets.model_target": ("ModelTarget",),
    "targets.nngp": ("nngp_kernel",),
    "targets.student_t_process": ("StudentTProcess",),
    "targets.target": ("Target",),
    "type2": ("type2_em",),
}

__all__ = [
    "ARD",
    "MMD",
    "NNGP",
    "Conditioned",
    "CriticW1",
    "DeepKernelMachine",
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
    "KroneckerARD",
    "Lifted",
    "MarkovFBM",
    "Matched",
    "ModelTarget",
    "ScaleMixture",
    "Sinkhorn",
    "SlicedWasserstein",
    "StudentTProcess",
    "Support",
    "SupportedPrecision",
    "Target",
    "ThreeLayer",
    "derivative_at",
    "designed_inputs",
    "excursion_times",
    "fourier_gp",
    "integral",
    "lift_prior",
    "markov",
    "match",
    "measurement_inputs",
    "nngp_kernel",
    "posterior_functions",
    "relevance",
    "scale_mixture_posterior",
    "stacked",
    "student_t_posterior",
    "type2_em",
    "values_at",
]


def __getattr__(name: str):
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"ppl_ext.priors.{module}"), name)
    raise AttributeError(f"module 'ppl_ext.priors' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
