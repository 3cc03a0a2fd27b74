"""Random schedules for property tests: single ones, and composed ones up to a few levels deep."""

from hypothesis import settings
from hypothesis import strategies as st

from fusedtricks.lr_scheduler import (
    Constant,
    ConstantWarmup,
    Cosine,
    Cyclic,
    Exponential,
    GradualWarmup,
    InverseSqrt,
    Linear,
    LinearWarmup,
    OneCycle,
    Piecewise,
    Polynomial,
    Sequence,
    Step,
    WarmRestarts,
    WarmUpRestarts,
    WarmupStableDecay,
)

# The same examples in every run, and no files beside the tests.
SETTINGS = settings(derandomize=True, database=None, deadline=None, max_examples=60)

shares = st.floats(0.0, 1.0)
factors = st.floats(0.05, 1.1)
counts = st.integers(1, 20)
# Whole updates and quarters: their differences are exact.
times = st.integers(0, 400).map(lambda quarters: quarters / 4)


@st.composite
def pieces(draw):
    milestones = sorted(draw(st.sets(st.integers(1, 30), min_size=1, max_size=4)))
    size = len(milestones) + 1
    return Piecewise(milestones, draw(st.lists(shares, min_size=size, max_size=size)))


@st.composite
def one_cycles(draw):
    three_phase = draw(st.booleans())
    return OneCycle(
        draw(st.integers(2, 40)),
        pct_start=draw(st.floats(0.0, 0.5 if three_phase else 1.0)),
        start=draw(shares),
        peak=draw(shares),
        end=draw(shares),
        anneal_strategy=draw(st.sampled_from(["cos", "linear"])),
        three_phase=three_phase,
    )


@st.composite
def stable_decays(draw):
    warmup, stable, decay = (draw(counts) for _ in range(3))
    shape = draw(st.sampled_from(["linear", "cosine", "sqrt"]))
    return WarmupStableDecay(warmup + stable + decay, warmup, decay, shape, end=draw(shares))


@st.composite
def warm_up_restarts(draw):
    T_up = draw(st.integers(0, 6))
    return WarmUpRestarts(
        T_up + draw(counts),
        T_mult=draw(st.integers(1, 4)),
        eta_max=draw(shares),
        T_up=T_up,
        gamma=draw(factors),
    )


warmups = st.one_of(
    st.builds(LinearWarmup, counts, start=shares, offset=st.integers(0, 1)),
    st.builds(ConstantWarmup, counts, shares),
    st.builds(GradualWarmup, counts, st.integers(2, 64)),
)
# Those that a warm-up can be fitted into.
fitted = st.one_of(
    st.builds(Linear, st.integers(11, 30), start=shares, end=shares),
    st.builds(Polynomial, st.integers(11, 30), power=st.floats(0.25, 4.0), end=shares),
    st.builds(Cosine, st.integers(11, 30), end=shares),
)
finite_leaves = st.one_of(
    st.builds(Linear, counts, start=shares, end=shares),
    st.builds(Polynomial, counts, power=st.floats(0.25, 4.0), end=shares),
    st.builds(Cosine, counts, end=shares),
    one_cycles(),
    stable_decays(),
    warmups,
)
endless_leaves = st.one_of(
    st.builds(Constant, shares),
    pieces(),
    st.builds(Step, counts, gamma=factors),
    st.builds(Exponential, factors, every=counts),
    st.builds(InverseSqrt, counts),
    st.builds(WarmRestarts, counts, T_mult=st.integers(1, 4), end=shares, gamma=factors),
    st.builds(
        Cyclic,
        counts,
        st.none() | counts,
        mode=st.sampled_from(["triangular", "triangular2", "exp_range"]),
        gamma=factors,
        window=st.sampled_from(["triangular", "welch", "hann"]),
    ),
)


def composed(parts):
    """Compose two or three of the parts; what is finite stays finite."""
    return st.one_of(
        st.builds(lambda a, b: a * b, parts, parts),
        st.builds(lambda a, b, after: a.then(b, after=after), parts, parts, counts),
        st.builds(
            lambda a, b, c, first, more: Sequence([a, b, c], [first, first + more]),
            *[parts, parts, parts, counts, counts],
        ),
        st.builds(lambda s, warmup: s.with_warmup(warmup, budget="before"), parts, counts),
        st.builds(lambda s, warmup: s.with_warmup(warmup, budget="before"), parts, warmups),
        st.builds(
            lambda s, warmup: s.with_warmup(warmup, budget="inside"), fitted, st.integers(1, 9)
        ),
    )


def bounded(parts):
    """Put schedules between two rates, or between one and the base."""
    low, high = shares | st.none(), shares
    return st.builds(lambda s, low, high: s.between(low=low, high=high), parts, low, high)


finite_schedules = st.recursive(finite_leaves, composed, max_leaves=5)
relative_schedules = st.recursive(finite_leaves | endless_leaves, composed, max_leaves=5)
absolute_schedules = st.one_of(
    warm_up_restarts(),
    bounded(relative_schedules),
    st.builds(lambda a, b: a * b, relative_schedules, warm_up_restarts()),
    st.builds(lambda a, b: a * b, bounded(relative_schedules), relative_schedules),
)
schedules = relative_schedules | absolute_schedules
