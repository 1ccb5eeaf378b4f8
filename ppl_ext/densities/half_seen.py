"""Values of which ``obs_mask`` observes one half and leaves the other latent."""

from collections.abc import Mapping


def observed_twin(name: str, sites: Mapping[str, dict]) -> dict | None:
    """The site that holds the observed half of a value under ``obs_mask``, of whose other half this is the
    name. Where it is seen it takes the other's place for all who read the value."""
    stem = name.removesuffix("_unobserved")
    twin = sites.get(f"{stem}_observed") if stem != name else None
    return twin if twin is not None and twin["is_observed"] else None
