"""Training and evaluating one transformer of one layer on pairs of residues, compiled.

Only the last token is read, and what it attends to are tables: of P rows for either operand, of one for itself. With
w the attention weights of a head h (they sum to 1) and F its values, already multiplied by whatever comes before the
ReLU, the pre-activations of the pair (a, b) are sums of rows of tables,

    z(a, b) = base + Σ_h [w_a (F_h[a] − F_h[=]) + w_b (F_h[b] − F_h[=])],

and the logits are those of the stream, found in the same way, and (W_U W_out) relu(z). Of the products over all
examples that of P × d_mlp is left: at the size of the paper a third of the arithmetic of the layers one after another
(`saves`). The gradients of the tables are summed up on the way back, and from there on nothing depends on the number
of examples.

A transformer is an array of P, d_model, heads, d_mlp, the token of the second operand 0, the number of tokens, and
where each of its eleven parameters starts in the replica's row (`PARAMETERS`).
"""

from collections.abc import Mapping
from functools import partial

import numba
import numpy as np

from lit_grok.kernels.compiled import CompiledSteps, compiled, inlined
from lit_grok.kernels.losses import loss_and_hits, loss_gradient
from lit_grok.kernels.perceptron import one_thread_a_product, prepare_pairs
from lit_grok.kernels.updates import update

#: In the order in which `transformer_table` has them.
PARAMETERS = (
    "token_embedding.weight",
    "position_embedding.weight",
    *(f"blocks.0.attention.{name}.weight" for name in ("query", "key", "value", "output")),
    *(f"blocks.0.{layer}.{name}" for layer in ("mlp_in", "mlp_out") for name in ("weight", "bias")),
    "unembedding.weight",
)

_CHUNK = 256  # examples at a time: the activations of more would leave the cache
_SIZES = 6  # numbers in the table before the places of the parameters


def saves(P: int, d_model: int, heads: int, d_mlp: int) -> bool:
    """Whether this way is clearly shorter than the layers one after another, by the multiplications an example takes.

    P d_mlp + 2 heads (d_mlp + P) against d_model² + 2 d_model d_mlp + d_model P, less a quarter for the tables.

    Example:
        >>> saves(97, 128, 4, 512), saves(401, 128, 4, 512)
        (True, False)
    """
    layers = d_model**2 + 2 * d_model * d_mlp + d_model * P
    return P * d_mlp + 2 * heads * (d_mlp + P) < 0.75 * layers


def transformer_table(sizes: tuple[int, int, int, int, int, int], offsets: Mapping[str, int]) -> np.ndarray:
    """The array that describes a transformer to the functions of this module.

    Args:
        sizes: P, d_model, heads, d_mlp, the token of the second operand 0, and the number of tokens, of which the last
            is read off.
        offsets: Where each parameter starts in a row.
    """
    one_thread_a_product()
    return np.array([*sizes, *(offsets[name] for name in PARAMETERS)], dtype=np.int64)


def transformer_steps(table: np.ndarray, squared: bool) -> CompiledSteps:
    """The steps of a transformer whose inputs are pairs of residues.

    Args:
        table: Of `transformer_table`.
        squared: Squared error instead of cross entropy.
    """
    prepare = partial(prepare_pairs, int(table[0]))
    return CompiledSteps(prepare, *(partial(step, table, squared) for step in (_gradient, _train, _evaluate)))


@inlined
def _matrix(row, start, n, m):
    return row[start : start + n * m].reshape(n, m)


@inlined
def _parameters(row, table):
    """The parameters in a row of weights or gradients, in the order of `PARAMETERS`."""
    P, d, m, tokens = table[0], table[1], table[3], table[5]
    at = table[_SIZES:]
    return (
        _matrix(row, at[0], tokens, d),
        _matrix(row, at[1], 3, d),
        _matrix(row, at[2], d, d),
        _matrix(row, at[3], d, d),
        _matrix(row, at[4], d, d),
        _matrix(row, at[5], d, d),
        _matrix(row, at[6], m, d),
        row[at[7] : at[7] + m],
        _matrix(row, at[8], d, m),
        row[at[9] : at[9] + d],
        _matrix(row, at[10], P, d),
    )


@inlined
def _padded(table):
    """Room for the hidden neurons, and for the logits after them, in a row of a table: multiples of 16 numbers."""
    return -(-table[3] // 16) * 16, -(-table[0] // 16) * 16


@inlined
def _streams(theta, table):
    """What enters the block, (2P + 1, d): of the first operand, of the second, of the last token."""
    P, d, second, tokens = table[0], table[1], table[4], table[5]
    embedding, position = _parameters(theta, table)[:2]
    x = np.empty((2 * P + 1, d), np.float32)
    for j in range(d):
        for i in range(P):
            x[i, j] = embedding[i, j] + position[0, j]
            x[P + i, j] = embedding[second + i, j] + position[1, j]
        x[2 * P, j] = embedding[tokens - 1, j] + position[2, j]
    return x


@inlined
def _columns(matrix, h, heads):
    """The columns of a matrix that belong to a head, contiguous."""
    n, size = len(matrix), matrix.shape[1] // heads
    columns = np.empty((n, size), np.float32)
    for i in range(n):
        for j in range(size):
            columns[i, j] = matrix[i, h * size + j]
    return columns


@inlined
def _put_columns(matrix, start, columns):
    for i in range(len(columns)):
        for j in range(columns.shape[1]):
            matrix[i, start + j] = columns[i, j]


@inlined
def _readers(theta, table):
    """What reads the stream: the hidden neurons and, past the perceptron, the logits, each with zeros after them."""
    P, d, m = table[0], table[1], table[3]
    hidden, classes = _padded(table)
    weight, up = _parameters(theta, table)[6], _parameters(theta, table)[10]
    readers = np.zeros((hidden + classes, d), np.float32)
    for j in range(d):
        for i in range(m):
            readers[i, j] = weight[i, j]
        for i in range(P):
            readers[hidden + i, j] = up[i, j]
    return readers


@inlined
def _down(theta, table):
    """W_out with columns of zeros for the room after the hidden neurons, (d, hidden)."""
    d, m, down = table[1], table[3], _parameters(theta, table)[8]
    padded = np.zeros((d, _padded(table)[0]), np.float32)
    for i in range(d):
        for j in range(m):
            padded[i, j] = down[i, j]
    return padded


@inlined
def _asked(theta, table, last):
    """Query of the last token, (d,), and what each head looks for in a stream, scaled, (heads, d)."""
    d, heads = table[1], table[2]
    query, key = _parameters(theta, table)[2:4]
    asked = np.zeros((heads, d), np.float32)
    q = np.dot(query, last)
    scale = np.float32(1 / np.sqrt(d // heads))
    for i in range(d):
        h = i // (d // heads)
        for j in range(d):
            asked[h, j] += q[i] * scale * key[i, j]
    return q, asked


@inlined
def _tables(theta, table):
    """All that is the same for every example.

    Returns:
        The scores (2P + 1, heads) of all streams; the rows F − F[=], (2P, heads, hidden + classes), and the base of
        the pre-activations and direct logits; the way from hidden neurons to logits, (P, hidden).
    """
    P, heads, m = table[0], table[2], table[3]
    hidden, classes = _padded(table)
    _, _, _, _, value, output, _, hidden_bias, _, bias, up = _parameters(theta, table)
    x, readers = _streams(theta, table), _readers(theta, table)
    scores = np.dot(x, _asked(theta, table, x[2 * P])[1].T)
    values = np.dot(x, value.T)
    base = np.dot(readers, x[2 * P])
    constant = np.dot(up, bias)
    for j in range(m):
        base[j] += hidden_bias[j]
    for j in range(P):
        base[hidden + j] += constant[j]
    rows = np.empty((2 * P, heads, hidden + classes), np.float32)
    found = np.empty((2 * P + 1, hidden + classes), np.float32)
    through = np.dot(readers, output)
    for h in range(heads):
        np.dot(_columns(values, h, heads), _columns(through, h, heads).T, found)
        own = found[2 * P]
        for j in range(len(own)):
            base[j] += own[j]
        for i in range(2 * P):
            for j in range(len(own)):
                rows[i, h, j] = found[i, j] - own[j]
    return scores, rows, base, np.dot(up, _down(theta, table))


@inlined
def _attend(scores, pairs, weights):
    """Write the attention weights (B, heads, 3) on the first operand, the second and the last token itself."""
    P, heads = scores.shape[0] // 2, scores.shape[1]
    for n in range(len(pairs)):
        a, b = pairs[n, 0], P + pairs[n, 1]
        for h in range(heads):
            top = max(scores[a, h], scores[b, h], scores[2 * P, h])
            first, second = np.exp(scores[a, h] - top), np.exp(scores[b, h] - top)
            own = np.exp(scores[2 * P, h] - top)
            mass = first + second + own
            weights[n, h, 0] = first / mass
            weights[n, h, 1] = second / mass
            weights[n, h, 2] = own / mass


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _add_rows(out, p, left, q, right):
    for j in range(len(out)):
        out[j] += p * left[j] + q * right[j]


@inlined
def _forward(tables, pairs, weights, hidden, direct, logits):
    """Write attention weights (B, heads, 3), hidden activations (B, hidden) and logits (B, P) of pairs.

    ``direct`` is room for the logits of the stream before the perceptron, (B, P).
    """
    scores, rows, base, across = tables
    B, M = hidden.shape
    heads, P = rows.shape[1], logits.shape[1]
    z = np.empty_like(base)
    _attend(scores, pairs, weights)
    for n in range(B):
        a, b = pairs[n, 0], P + pairs[n, 1]
        for j in range(len(z)):
            z[j] = base[j]
        for h in range(heads):
            _add_rows(z, weights[n, h, 0], rows[a, h], weights[n, h, 1], rows[b, h])
        for j in range(M):
            hidden[n, j] = np.float32(0) if z[j] <= 0 else z[j]
        for j in range(P):
            direct[n, j] = z[M + j]
    np.dot(hidden, across.T, logits)
    for n in range(B):
        for j in range(P):
            logits[n, j] += direct[n, j]


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
def _gather(d, p, left, d_left, q, right, d_right):
    """Products of d with two rows, to whose gradients p · d and q · d are added."""
    first, second = np.float32(0), np.float32(0)
    for j in range(len(d)):
        first += d[j] * left[j]
        second += d[j] * right[j]
        d_left[j] += p * d[j]
        d_right[j] += q * d[j]
    return first, second


@inlined
def _backward(tables, d_tables, pairs, weights, hidden, d_logits, d_hidden, room):
    """Add the gradients of the tables for those of the logits (B, P).

    ``d_hidden``, (B, hidden), and ``room``, (P, hidden), are room.
    """
    _, rows, base, across = tables
    d_scores, d_rows, all_base, d_across = d_tables
    B, M = hidden.shape
    heads, P = rows.shape[1], d_logits.shape[1]
    d_base, d_own = np.zeros_like(all_base), np.zeros(heads, np.float32)  # of the chunk: long sums lose digits
    np.dot(d_logits.T, hidden, room)
    for i in range(P):
        for j in range(M):
            d_across[i, j] += room[i, j]
    np.dot(d_logits, across, d_hidden)
    d = np.zeros_like(base)
    for n in range(B):
        a, b = pairs[n, 0], P + pairs[n, 1]
        for j in range(M):
            d[j] = np.float32(0) if hidden[n, j] <= 0 else d_hidden[n, j]
        for j in range(P):
            d[M + j] = d_logits[n, j]
        for j in range(len(d)):
            d_base[j] += d[j]
        for h in range(heads):
            p, q = weights[n, h, 0], weights[n, h, 1]
            left, right = _gather(d, p, rows[a, h], d_rows[a, h], q, rows[b, h], d_rows[b, h])
            mean = p * left + q * right
            d_scores[a, h] += p * (left - mean)
            d_scores[b, h] += q * (right - mean)
            d_own[h] -= weights[n, h, 2] * mean
    for h in range(heads):
        d_scores[2 * P, h] += d_own[h]
    for j in range(len(d)):
        all_base[j] += d_base[j]


@inlined
def _add_outer(out, column, row):
    for i in range(len(column)):
        for j in range(len(row)):
            out[i, j] += column[i] * row[j]


@inlined
def _through_tables(theta, grad, table, d_tables):
    """Write the gradients of all parameters, for those of the tables."""
    P, d, heads, m, second, tokens = table[0], table[1], table[2], table[3], table[4], table[5]
    size, M = d // heads, _padded(table)[0]
    d_scores, d_rows, d_base, d_across = d_tables
    _, _, query, key, value, output, _, _, _, bias, up = _parameters(theta, table)
    d_embedding, d_position, d_query, d_key, d_value, d_output, d_in, d_in_bias, d_down, d_bias, d_up = _parameters(
        grad, table
    )
    x, readers, down = _streams(theta, table), _readers(theta, table), _down(theta, table)
    last = x[2 * P]
    q, asked = _asked(theta, table, last)

    # Through the rows of each head, values and outputs.
    values, through = np.dot(x, value.T), np.dot(readers, output)
    d_values, d_through = np.empty_like(values), np.empty_like(through)
    d_found = np.empty((2 * P + 1, len(d_base)), np.float32)
    for h in range(heads):
        own = d_found[2 * P]
        for j in range(len(own)):
            own[j] = d_base[j]
        for i in range(2 * P):
            for j in range(len(own)):
                d_found[i, j] = d_rows[i, h, j]
                own[j] -= d_rows[i, h, j]
        _put_columns(d_values, h * size, np.dot(d_found, _columns(through, h, heads)))
        _put_columns(d_through, h * size, np.dot(d_found.T, _columns(values, h, heads)))
    np.dot(d_values.T, x, d_value)
    np.dot(readers.T, d_through, d_output)
    d_readers = np.dot(d_through, output.T)

    # Through the perceptron and the unembedding.
    _add_outer(d_readers, d_base, last)
    for i in range(m):
        d_in_bias[i] = d_base[i]
        for j in range(d):
            d_in[i, j] = d_readers[i, j]
    d_direct = d_base[M : M + P]
    np.dot(up.T, d_direct, d_bias)
    d_padded = np.dot(up.T, d_across)
    for i in range(d):
        for j in range(m):
            d_down[i, j] = d_padded[i, j]
    np.dot(d_across, down.T, d_up)
    _add_outer(d_up, d_direct, bias)
    for i in range(P):
        for j in range(d):
            d_up[i, j] += d_readers[M + i, j]

    # Through the scores.
    d_x, d_asked = np.dot(d_values, value), np.dot(d_scores.T, x)
    d_q = np.empty(d, np.float32)
    scale = np.float32(1 / np.sqrt(size))
    for i in range(d):
        h = i // size
        d_q[i] = scale * np.dot(key[i], d_asked[h])
        for j in range(d):
            d_key[i, j] = scale * q[i] * d_asked[h, j]
            d_query[i, j] = d_q[i] * last[j]
    for h in range(heads):
        _add_outer(d_x, d_scores[:, h], asked[h])
    to_query, to_base = np.dot(query.T, d_q), np.dot(readers.T, d_base)

    d_embedding[:] = 0
    d_position[:] = 0
    for j in range(d):
        d_x[2 * P, j] += to_query[j] + to_base[j]
        d_embedding[tokens - 1, j] = d_x[2 * P, j]
        d_position[2, j] = d_x[2 * P, j]
    for i in range(P):
        for j in range(d):
            d_embedding[i, j] += d_x[i, j]
            d_embedding[second + i, j] += d_x[P + i, j]
            d_position[0, j] += d_x[i, j]
            d_position[1, j] += d_x[P + i, j]


@inlined
def _rooms(table, N):
    """Attention weights, hidden activations, direct logits and logits of a chunk of at most N examples."""
    P, heads, size = table[0], table[2], min(_CHUNK, N)
    return (
        np.empty((size, heads, 3), np.float32),
        np.empty((size, _padded(table)[0]), np.float32),
        np.empty((size, P), np.float32),
        np.empty((size, P), np.float32),
    )


@inlined
def _by_first(pairs, targets, P):
    """Pairs and targets in the order of the first residues."""
    starts = np.zeros(P + 1, np.int64)
    for n in range(len(pairs)):
        starts[pairs[n, 0] + 1] += 1
    for a in range(P):
        starts[a + 1] += starts[a]
    ordered, labels = np.empty_like(pairs), np.empty_like(targets)
    for n in range(len(pairs)):
        place = starts[pairs[n, 0]]
        starts[pairs[n, 0]] += 1
        ordered[place, 0], ordered[place, 1], labels[place] = pairs[n, 0], pairs[n, 1], targets[n]
    return ordered, labels


@inlined
def _step(table, squared, theta, grad, pairs, targets):
    N = len(pairs)
    tables = _tables(theta, table)
    scores, rows, base, across = tables
    d_tables = np.zeros_like(scores), np.zeros_like(rows), np.zeros_like(base), np.zeros_like(across)
    weights, hidden, direct, logits = _rooms(table, N)
    d_hidden, room = np.empty_like(hidden), np.empty_like(across)
    pairs, targets = _by_first(pairs, targets, table[0])  # so that the rows of the first operand stay in the cache
    loss = 0.0
    for start in range(0, N, _CHUNK):
        part, labels = pairs[start : start + _CHUNK], targets[start : start + _CHUNK]
        B = len(part)
        _forward(tables, part, weights[:B], hidden[:B], direct[:B], logits[:B])
        share = B / N
        loss += share * loss_gradient(logits[:B], labels, squared)
        for n in range(B):
            for j in range(table[0]):
                logits[n, j] *= np.float32(share)
        _backward(tables, d_tables, part, weights[:B], hidden[:B], logits[:B], d_hidden[:B], room)
    _through_tables(theta, grad, table, d_tables)
    return loss


@compiled
def _gradient(table, squared, theta, grad, pairs, targets):
    return _step(table, squared, theta, grad, pairs, targets)


@compiled
def _train(table, squared, theta, grad, kind, first, second, done, hyper, pairs, targets, batch_size):
    for start in range(0, len(pairs), batch_size):
        _step(table, squared, theta, grad, pairs[start : start + batch_size], targets[start : start + batch_size])
        done += 1
        update(theta, grad, kind, first, second, done, hyper)


@compiled
def _evaluate(table, squared, theta, pairs, targets):
    N = len(pairs)
    tables = _tables(theta, table)
    weights, hidden, direct, logits = _rooms(table, N)
    loss, hits = 0.0, 0
    for start in range(0, N, _CHUNK):
        part, labels = pairs[start : start + _CHUNK], targets[start : start + _CHUNK]
        B = len(part)
        _forward(tables, part, weights[:B], hidden[:B], direct[:B], logits[:B])
        more, right = loss_and_hits(logits[:B], labels, squared)
        loss += more
        hits += right
    return loss / N, hits / N
