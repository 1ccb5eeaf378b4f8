"""Pictures of new episodes: what was seen, and the band of what is predicted."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpyro.handlers import substitute
from numpyro.infer import Predictive

from ppl_ext.diagnostics.plots.axes import colour, several_axes, tidy
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.meta.fitted import MetaFit
from ppl_ext.meta.streams.arriving import finite_stream
from ppl_ext.runtime.arguments import check_array, check_call, check_key, check_number, described
from ppl_ext.runtime.results import NUM_SAMPLES


def plot_episodes(
    fit: MetaFit,
    episodes: Sequence[Any],
    at: Any,
    axes: Any = None,
    *,
    site: str | None = None,
    level: float = 0.9,
    labels: Sequence[str] | None = None,
    num_samples: int = NUM_SAMPLES,
    rng_key: jax.Array | None = None,
) -> np.ndarray:
    """Draw for each episode its rows, and the mean and band of the predictions after adapting to them.

    The episode model's first argument is the horizontal axis, its last the data, which it must be able to do
    without.

    :param episodes: new episodes, one panel each.
    :param at: (n,), where to predict, in the place of the first argument.
    :param axes: Matplotlib axes, one for each episode; by default a new row of them, each with a scale of its
        own.
    :param site: the observed site, if there are several.
    :param level: of the central band.
    :return: the axes, (episode,).
    :raises ArgumentError: if the site is not there, or axes or labels are too few or too many.
    :raises MissingExtraError: if there is no Matplotlib.

    >>> import jax, numpy as np, numpyro, numpyro.distributions as dist
    >>> from ppl_ext.meta import ExactLinearGaussian, lift
    >>> def episode(x, y=None):
    ...     level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", len(x)):
    ...         numpyro.sample("y", dist.Normal(level, 1.0), obs=y)
    >>> rows = [(np.zeros(2, np.float32), np.full(2, y, np.float32)) for y in (1.0, 2.0, 3.0)]
    >>> fit = lift(episode, ["level"]).untrained(rows, ExactLinearGaussian())  # .fit(key, rows) trains
    >>> import matplotlib.pyplot as plt
    >>> axes = plot_episodes(fit, rows[:1], at=np.linspace(0.0, 1.0, 3), num_samples=50)
    >>> axes.shape, axes[0].get_title()
    ((1,), 'episode 0')
    >>> plt.close("all")
    """
    if not isinstance(fit, MetaFit):
        raise ArgumentTypeError(f"plot_episodes: fit must be a MetaFit, got {described(fit)}.")
    check_number("plot_episodes: level", level)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    check_key("plot_episodes: rng_key", rng_key)
    stream = finite_stream("plot_episodes", episodes)
    check_array("plot_episodes: at", at)
    at = np.asarray(at, np.float32)
    check_call(
        "plot_episodes: the episode model, called without its data,", fit.hierarchy.form.model, (at,), {}
    )
    if at.ndim != 1 or not at.size or not 0 < level < 1:
        raise ArgumentError(
            f"plot_episodes: at must have shape (n,) and level lie in (0, 1), got {at.shape} and "
            f"{described(level)}."
        )
    if labels is not None and len(labels) != len(stream):
        raise ArgumentError(
            f"plot_episodes: {len(stream)} labels are needed, one for each episode, got {len(labels)}."
        )
    axes = several_axes(axes, len(stream), (max(4.5, 3.4 * len(stream)), 3.4), "episode")
    program = substitute(fit.hierarchy.form.model, data=fit.shared)
    order = np.argsort(at)
    for i, ax in enumerate(axes):
        of_fit, of_draws = jax.random.split(jax.random.fold_in(rng_key, i))
        x, *_, y = stream[i]
        post = fit.adapt(of_fit, *stream[i], num_samples=num_samples)
        drawn = Predictive(program, posterior_samples=post.samples)(of_draws, at)
        found = {n: v for n, v in drawn.items() if n not in post.samples and v.shape[1:] == at.shape}
        if (name := next(iter(found), None) if site is None else site) not in found:
            raise ArgumentError(
                f"plot_episodes: there is no observed site '{name}' with a value for each row; there are "
                f"{sorted(found)}."
            )
        values = np.asarray(found[name])[:, order]
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
        ax.fill_between(
            at[order],
            low,
            high,
            color=colour(0),
            alpha=0.25,
            lw=0,
            label=f"{100 * level:.3g} % of predictions",
        )
        ax.plot(at[order], values.mean(0), color=colour(0), lw=1.6, label="mean")
        ax.plot(x, y, "o", color=colour(6), ms=4, label="seen")
        tidy(ax, labels[i] if labels is not None else f"episode {i}", xlabel="x")
    tidy(axes[0], ylabel=str(name))
    axes[0].legend(frameon=False, fontsize="small")
    return axes
