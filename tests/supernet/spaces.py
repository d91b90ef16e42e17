"""Search spaces for property tests."""

from hypothesis import strategies as st

from supernet.space import OperatorSpec, SearchSpace

NAMES = ("attention", "conv3", "feed_forward", "identity", "x2_")


@st.composite
def search_spaces(draw, *, max_layers=6, min_open=0):
    """Spaces whose layers have different candidates; at least `min_open` of them have a choice."""
    rows = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True).map(tuple)
    choices = st.lists(st.sampled_from(NAMES), min_size=2, max_size=4, unique=True).map(tuple)
    open_rows = draw(st.lists(choices, min_size=min_open, max_size=min_open))
    others = draw(st.lists(rows, min_size=0 if min_open else 1, max_size=max_layers - min_open))
    layers = draw(st.permutations([*open_rows, *others]))
    return SearchSpace(tuple(layers), {name: OperatorSpec.of("identity") for name in NAMES})
