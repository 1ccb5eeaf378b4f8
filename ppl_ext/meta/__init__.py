"""Normal-Inverse-Wishart meta-learning: any episode model lifted into a hierarchy over a stream of episodes."""

from ppl_ext.meta.niw import NIW

__all__ = ["NIW"]
