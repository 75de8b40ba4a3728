"""Guidance: denoisers around denoisers that push what is estimated somewhere.

    name                  what it does to the estimate
    classifier_free       away from the estimate without conditions
    per_condition         the same, with a scale for each condition
    autoguidance          away from a weaker network's
    perturbed_attention   away from that of a network whose attention sees nothing; ``skip_layers``: that lacks blocks
    cfg_pp                classifier-free, the noise from the estimate without conditions
    cfg_zero              classifier-free, the weaker velocity scaled to fit, and none at first
    apg                   classifier-free, mostly across the estimate
    dynamic_thresholding  brings its extremes back into the range of data
    classifier            up the gradient of a log-probability; ``energy``: down that of an energy
    chain                 several, one around another

A guided denoiser is a denoiser and can be guided again, ``DynamicThresholding(ClassifierFree(denoise))``.
"""

from .autoguidance import Autoguidance
from .blocks import ByBlocks, PerturbedAttention, SkipLayers
from .chain import chain
from .conditions import ByConditions, ClassifierFree, PerCondition
from .gradients import ENERGIES, Classifier, Energy, EnergyGuidance
from .guidance import GUIDANCE, Guidance, Ladder
from .rules import APG, CFGPlusPlus, CFGZero
from .thresholding import DynamicThresholding

__all__ = [
    "APG",
    "ENERGIES",
    "GUIDANCE",
    "Autoguidance",
    "ByBlocks",
    "ByConditions",
    "CFGPlusPlus",
    "CFGZero",
    "Classifier",
    "ClassifierFree",
    "DynamicThresholding",
    "Energy",
    "EnergyGuidance",
    "Guidance",
    "Ladder",
    "PerCondition",
    "PerturbedAttention",
    "SkipLayers",
    "chain",
]
