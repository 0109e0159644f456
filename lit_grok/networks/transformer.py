"""The transformer of arithmetic on pairs of residues."""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_grok.kernels.attention import saves, transformer_steps, transformer_table
from lit_grok.kernels.compiled import CompiledSteps
from lit_grok.kernels.perceptron import residues
from lit_grok.kernels.tables import look_up
from lit_grok.networks.parameters import affine
from lit_grok.networks.tokens import embeddings_of_operands, operand_tokens, toeplitz_, vocabulary

Activation = Literal["relu", "gelu"]
Normalisation = Literal["none", "layer"]
EmbeddingInit = Literal["normal", "toeplitz"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class Attention(nn.Module):
    """Causal attention of several heads, without biases: query, key, value, output."""

    def __init__(self, d_model: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, T, d_model) of inputs (B, T, d_model)."""
        query, key, value = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.query, self.key, self.value))
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(key.shape[-1])
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return self.output(torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2))


class Block(nn.Module):
    """x ← x + attention(x), x ← x + W_out σ(W_in x + b_in) + b_out; with normalisation, of x normalised."""

    def __init__(self, d_model: int, heads: int, d_mlp: int, activation: Activation, normalisation: Normalisation):
        super().__init__()
        norms = [nn.LayerNorm(d_model) if normalisation == "layer" else nn.Identity() for _ in range(2)]
        self.attention_norm, self.mlp_norm = norms
        self.attention = Attention(d_model, heads)
        self.mlp_in = nn.Linear(d_model, d_mlp)
        self.mlp_out = nn.Linear(d_mlp, d_model)
        self.activation = activation

    def attend(self, x: Tensor) -> Tensor:
        """The stream (B, T, d_model) after attention."""
        return x + self.attention(self.attention_norm(x))

    def preactivations(self, x: Tensor) -> Tensor:
        """Of the MLP, shape (…, d_mlp), for the stream after attention."""
        return self.mlp_in(self.mlp_norm(x))

    def transform(self, x: Tensor) -> Tensor:
        """The stream after the perceptron, for that after attention."""
        return x + self.mlp_out(ACTIVATIONS[self.activation](self.preactivations(x)))

    def forward(self, x: Tensor) -> Tensor:
        """The stream (B, T, d_model) after the block."""
        return self.transform(self.attend(x))


class Transformer(nn.Module):
    """Decoder on the three tokens a, b and "=", read off at the last (Nanda et al. 2023; arXiv 2504.03162).

    Learned embeddings of tokens and positions, blocks of attention and a two-layer perceptron, unembedding; no dropout,
    and by default no normalisation. Every matrix is drawn from N(0, 1 / d_model), biases are zero.

    Args:
        P: Number of residues, so of classes.
        layers: Number of blocks.
        d_model: Width of the stream, a multiple of ``heads``.
        heads: Attention heads, each of d_model / heads dimensions.
        d_mlp: Hidden neurons of each block's perceptron.
        activation: ``relu`` or ``gelu``.
        normalisation: ``none``, or ``layer``: layer normalisation before attention, perceptron and unembedding.
        operand_offset: Token of the second operand 0; with 0 both operands share their tokens.
        embedding_init: ``normal``, as all other matrices, or ``toeplitz`` (`lit_grok.networks.tokens.toeplitz_`).

    Example:
        >>> network = Transformer(P=97)
        >>> sum(p.numel() for p in network.parameters())
        222592
        >>> network(torch.tensor([[3, 5], [96, 0]])).shape
        torch.Size([2, 97])
    """

    def __init__(
        self,
        P: int = 97,
        layers: int = 1,
        d_model: int = 128,
        heads: int = 4,
        d_mlp: int = 512,
        activation: Activation = "relu",
        normalisation: Normalisation = "none",
        operand_offset: int = 0,
        embedding_init: EmbeddingInit = "normal",
    ):
        super().__init__()
        if min(layers, d_model, heads, d_mlp) < 1 or d_model % heads:
            raise ValueError(
                f"layers={layers}, d_model={d_model}, heads={heads}, d_mlp={d_mlp}: all are at least 1, and d_model is "
                "a multiple of heads"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation}: unknown; allowed: {', '.join(ACTIVATIONS)}")
        if normalisation not in ("none", "layer"):
            raise ValueError(f"normalisation={normalisation}: unknown; allowed: none, layer")
        if embedding_init not in ("normal", "toeplitz"):
            raise ValueError(f"embedding_init={embedding_init}: unknown; allowed: normal, toeplitz")
        self.P, self.operand_offset = P, operand_offset
        self.token_embedding = nn.Embedding(vocabulary(P, operand_offset), d_model)
        self.position_embedding = nn.Embedding(3, d_model)
        self.blocks = nn.ModuleList(Block(d_model, heads, d_mlp, activation, normalisation) for _ in range(layers))
        self.final_norm = nn.LayerNorm(d_model) if normalisation == "layer" else nn.Identity()
        self.unembedding = nn.Linear(d_model, P, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                nn.init.normal_(module.weight, std=d_model**-0.5)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if embedding_init == "toeplitz":
            toeplitz_(self.token_embedding.weight)

    def embed(self, inputs: Tensor) -> Tensor:
        """The stream, shape (B, 3, d_model), before the first block, of integer pairs of residues (B, 2)."""
        tokens = operand_tokens(inputs, self.P, self.operand_offset)
        return self.token_embedding(tokens) + self.position_embedding.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, shape (B, P), of integer pairs of residues (B, 2)."""
        x = self.embed(inputs)
        for block in self.blocks:
            x = block(x)
        return self.unembedding(self.final_norm(x[:, -1]))

    def preactivations(self, inputs: Tensor) -> dict[str, Tensor]:
        """Pre-activations of every block's perceptron at the last token: ``blocks.0``, …, each (B, d_mlp).

        Args:
            inputs: Integer pairs of residues (B, 2).
        """
        return self.embedded_preactivations(self.embed(inputs))

    def embedded_preactivations(self, x: Tensor) -> dict[str, Tensor]:
        """The same for inputs that are embedded already, (B, 3, d_model)."""
        found = {}
        for i, block in enumerate(cast(list[Block], list(self.blocks))):
            attended = block.attend(x)
            found[f"blocks.{i}"] = block.preactivations(attended[:, -1])
            if i + 1 < len(self.blocks):
                x = block.transform(attended)
        return found

    def residue_embeddings(self) -> dict[str, Tensor]:
        """Embeddings (P, d_model) of the residues: of ``both`` operands, or of ``a`` and ``b`` where they differ."""
        return embeddings_of_operands(self.token_embedding.weight, self.P, self.operand_offset)

    def fourier_weights(self) -> dict[str, Tensor]:
        """Weights over the residues: of each dimension of the ``embedding``, and of each last neuron's ``output``."""
        last = self.blocks[-1].mlp_out.weight  # type: ignore[union-attr]
        return {
            "embedding": self.token_embedding.weight[: self.P].t(),
            "output": (self.unembedding.weight @ last).t(),  # type: ignore[operator]
        }

    def neurons(self) -> dict[str, str]:
        """Weights that enter the neurons of each perceptron, and leave them."""
        return {f"blocks.{i}.mlp_in.weight": f"blocks.{i}.mlp_out.weight" for i in range(len(self.blocks))}

    def forward_stack(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Logits (R, B, P) of R sets of parameters on pairs (R, B, 2), without what the last token does not read.

        Attention is causal: the first token sees nothing but a, so that at every depth its stream is a table of P rows;
        before the first block that of the second token is one over b, and "=" is a single row. Keys and values of a
        table are found row by row and looked up. In the last block only the last token goes on: with one layer one
        token in three.
        """
        residues(inputs, self.P)
        tokens, positions = parameters["token_embedding.weight"], parameters["position_embedding.weight"].unsqueeze(2)
        P, offset = self.P, self.operand_offset
        streams = [
            _Rows(tokens[:, :P] + positions[:, 0], inputs[..., 0]),
            _Rows(tokens[:, offset : offset + P] + positions[:, 1], inputs[..., 1]),
            _Rows(tokens[:, -1:] + positions[:, 2]),
        ]
        for i in range(len(self.blocks)):
            prefix = f"blocks.{i}."
            own = {name.removeprefix(prefix): p for name, p in parameters.items() if name.startswith(prefix)}
            streams = self._block_stack(own, streams, only_last=i == len(self.blocks) - 1)
        return affine(_normalised(streams[-1].rows, parameters, "final_norm"), parameters, "unembedding")

    column_major = ()

    def compiled_steps(self, offsets: Mapping[str, int], squared: bool) -> CompiledSteps | None:
        """Its training step for the CPU: of one layer, with ReLU and without normalisation, where that is shorter.

        None for any other, and for one whose layers are not those of its sizes any more.
        """
        block = cast(Block, self.blocks[0])
        (d_mlp, d_model), heads = block.mlp_in.weight.shape, block.attention.heads
        tokens = vocabulary(self.P, self.operand_offset)
        square = (d_model, d_model)
        shapes = {
            "token_embedding.weight": (tokens, d_model),
            "position_embedding.weight": (3, d_model),
            **{f"blocks.0.attention.{name}.weight": square for name in ("query", "key", "value", "output")},
            "blocks.0.mlp_in.weight": (d_mlp, d_model),
            "blocks.0.mlp_in.bias": (d_mlp,),
            "blocks.0.mlp_out.weight": (d_model, d_mlp),
            "blocks.0.mlp_out.bias": (d_model,),
            "unembedding.weight": (self.P, d_model),
        }
        if {name: tuple(p.shape) for name, p in self.named_parameters()} != shapes or d_model % heads:
            return None
        plain = (block.attention_norm, block.mlp_norm, self.final_norm)
        if len(self.blocks) > 1 or block.activation != "relu" or not all(type(m) is nn.Identity for m in plain):
            return None
        if not saves(self.P, d_model, heads, d_mlp):
            return None
        sizes = (self.P, d_model, heads, d_mlp, self.operand_offset, tokens)
        return transformer_steps(transformer_table(sizes, offsets), squared)

    def _block_stack(self, own: Mapping[str, Tensor], streams: "list[_Rows]", only_last: bool) -> "list[_Rows]":
        """The streams after a block, all of them or that of the last token."""
        block = cast(Block, self.blocks[0])

        def projected(stream: _Rows, name: str) -> _Rows:
            normal = _normalised(stream.rows, own, "attention_norm")
            return _Rows(affine(normal, own, f"attention.{name}").unflatten(-1, (block.attention.heads, -1)), stream.of)

        keys, values = ([projected(stream, name) for stream in streams] for name in ("key", "value"))
        found = []
        for t in range(len(streams) - 1 if only_last else 0, len(streams)):
            if t == 0:  # it attends to itself alone
                stream, mixed = streams[0], values[0].rows
            else:
                query = projected(streams[t], "query")
                scores = torch.stack(torch.broadcast_tensors(*(_scores(query, key) for key in keys[: t + 1])))
                weights = (scores / math.sqrt(query.rows.shape[-1])).softmax(0).unsqueeze(-1)
                mixed = torch.stack([w * v.each() for w, v in zip(weights, values[: t + 1], strict=True)]).sum(0)
                stream = _Rows(streams[t].each())
            x = stream.rows + affine(mixed.flatten(-2), own, "attention.output")
            hidden = affine(_normalised(x, own, "mlp_norm"), own, "mlp_in")
            found.append(_Rows(x + affine(ACTIVATIONS[block.activation](hidden), own, "mlp_out"), stream.of))
        return found


class _Rows(NamedTuple):
    """What a token has for every input: rows (R, B, …), one for all (R, 1, …), or a table and which of its rows."""

    rows: Tensor
    of: Tensor | None = None

    def each(self) -> Tensor:
        """One row for every input, or one for all."""
        return self.rows if self.of is None else look_up(self.rows, self.of)


def _scores(query: _Rows, key: _Rows) -> Tensor:
    """Products (R, B or 1, heads) of query and key."""
    if query.of is None and query.rows.shape[1] == 1:  # then those of a table are a table
        return _Rows((query.rows * key.rows).sum(-1), key.of).each()
    return (query.each() * key.each()).sum(-1)


def _normalised(x: Tensor, parameters: Mapping[str, Tensor], name: str) -> Tensor:
    """Layer normalisation of x (R, T, d), where there is one of this name."""
    if f"{name}.weight" not in parameters:
        return x
    weight, bias = (parameters[f"{name}.{part}"].unsqueeze(1) for part in ("weight", "bias"))
    return F.layer_norm(x, x.shape[-1:]) * weight + bias
