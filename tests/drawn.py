"""The matrices of a pair of bases, drawn in NumPy and with `keras.ops`."""

from keras_randlora.bases.kinds import PairSize


def draw_a(spec, rank, columns):
    """Return A `(rank, columns)`."""
    return spec.kind.draw(spec, PairSize(rank, columns, 1, 1))["basis_a"]


def draw_b(spec, rows, columns):
    """Return B `(rows, columns)`."""
    size = PairSize(1, 1, rows, columns)
    _, *of_b = spec.kind.draw(spec, size).values()
    return spec.kind.whole_b(of_b, size)


def draw_a_ops(spec, rank, columns):
    """Return what `draw_a` returns, as a tensor."""
    return spec.kind.draw_ops(spec, PairSize(rank, columns, 1, 1))[0]


def draw_b_ops(spec, rows, columns):
    """Return what `draw_b` returns, as a tensor."""
    size = PairSize(1, 1, rows, columns)
    _, *of_b = spec.kind.draw_ops(spec, size)
    return spec.kind.operator(of_b, size).dense()
