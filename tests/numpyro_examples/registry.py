"""All examples, by theme."""

from tests.numpyro_examples import (
    annotation,
    chains,
    deep,
    ecology,
    missing,
    mixtures,
    processes,
    regressions,
    series,
)
from tests.numpyro_examples.example import Example

THEMES = regressions, annotation, chains, ecology, series, mixtures, processes, deep, missing
EXAMPLES: list[Example] = [example for theme in THEMES for example in theme.EXAMPLES]
