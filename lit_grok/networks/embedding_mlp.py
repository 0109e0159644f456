"""Perceptrons on embedded tokens, the second paper's "DNN"."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_grok.kernels.perceptron import residues
from lit_grok.kernels.tables import look_up
from lit_grok.networks.parameters import affine
from lit_grok.networks.tokens import embeddings_of_operands, operand_tokens, vocabulary


class EmbeddingMLP(nn.Module):
    """Perceptron on the embeddings of the tokens a, b and "=", one after the other (arXiv 2504.03162).

    Embedding, Linear(3 d_model → hidden) ReLU … Linear(→ P). The embeddings are drawn from N(0, 1 / d_model), the
    linear layers as PyTorch does; there is no embedding of positions.

    Args:
        P: Number of residues, so of classes.
        d_model: Width of an embedding.
        hidden: Width of each hidden layer.
        operand_offset: Token of the second operand 0; with 0 both operands share their tokens.

    Example:
        >>> network = EmbeddingMLP(P=97)
        >>> sum(p.numel() for p in network.parameters())
        522081
        >>> network(torch.tensor([[3, 5], [96, 0]])).shape
        torch.Size([2, 97])
    """

    def __init__(self, P: int = 97, d_model: int = 128, hidden: Sequence[int] = (512, 512), operand_offset: int = 0):
        super().__init__()
        if min(d_model, *hidden, len(hidden)) < 1:
            raise ValueError(f"d_model={d_model}, hidden={list(hidden)}: one or more widths, all at least 1")
        self.P, self.d_model, self.operand_offset = P, d_model, operand_offset
        self.tokens = vocabulary(P, operand_offset)
        self._embed()
        widths = [3 * d_model, *hidden]
        self.hidden = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.output = nn.Linear(widths[-1], P)

    def embed(self, inputs: Tensor) -> Tensor:
        """Embeddings, shape (B, 3, d_model), of the tokens of integer pairs of residues (B, 2)."""
        return self._embedded(operand_tokens(inputs, self.P, self.operand_offset))

    def preactivations(self, inputs: Tensor) -> dict[str, Tensor]:
        """Pre-activations of every hidden layer: ``hidden.0``, ``hidden.1``, …, each (B, width).

        Args:
            inputs: Integer pairs of residues (B, 2).
        """
        return self.embedded_preactivations(self.embed(inputs))

    def embedded_preactivations(self, x: Tensor) -> dict[str, Tensor]:
        """The same for inputs that are embedded already, (B, 3, d_model)."""
        x, found = x.flatten(1), {}
        for i, layer in enumerate(self.hidden):
            found[f"hidden.{i}"] = layer(x)
            x = F.relu(found[f"hidden.{i}"])
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, shape (B, P), of integer pairs of residues (B, 2)."""
        return self.output(F.relu(self.preactivations(inputs)[f"hidden.{len(self.hidden) - 1}"]))

    def fourier_weights(self) -> dict[str, Tensor]:
        """Weights over the residues: ``a`` and ``b`` of each first neuron, ``output`` of each last neuron."""
        table = self._table({name: p.unsqueeze(0) for name, p in self.named_parameters()})[0]
        a, b, _ = self.hidden[0].weight.unflatten(1, (3, -1)).unbind(1)  # type: ignore[operator]
        P, offset = self.P, self.operand_offset
        return {
            "a": a @ table[:P].t(),
            "b": b @ table[offset : offset + P].t(),
            "output": self.output.weight.t(),
        }

    def neurons(self) -> dict[str, str]:
        """Weights that enter the neurons of each hidden layer, and leave them."""
        names = [*(f"hidden.{i}.weight" for i in range(len(self.hidden))), "output.weight"]
        return dict(pairwise(names))

    def forward_stack(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Logits (R, B, P) of R sets of parameters on pairs (R, B, 2), the first layer a sum of looked-up rows."""
        residues(inputs, self.P)
        tables = self._table(parameters)
        a_weight, b_weight, last_weight = parameters["hidden.0.weight"].mT.unflatten(1, (3, -1)).unbind(1)
        P, offset = self.P, self.operand_offset
        a = look_up(torch.bmm(tables[:, :P], a_weight), inputs[..., 0])
        b = look_up(torch.bmm(tables[:, offset : offset + P], b_weight), inputs[..., 1])
        x = a + b + (torch.bmm(tables[:, -1:], last_weight) + parameters["hidden.0.bias"].unsqueeze(1))
        for i in range(1, len(self.hidden)):
            x = affine(F.relu(x), parameters, f"hidden.{i}")
        return affine(F.relu(x), parameters, "output")

    def residue_embeddings(self) -> dict[str, Tensor]:
        """Embeddings (P, d_model) of the residues: of ``both`` operands, or of ``a`` and ``b`` where they differ."""
        return embeddings_of_operands(self.token_embedding.weight, self.P, self.operand_offset)

    def _embed(self) -> None:
        self.token_embedding = nn.Embedding(self.tokens, self.d_model)
        nn.init.normal_(self.token_embedding.weight, std=self.d_model**-0.5)

    def _embedded(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens)

    def _table(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Embeddings of all tokens, shape (R, tokens, d_model)."""
        return parameters["token_embedding.weight"]


class OneHotMLP(EmbeddingMLP):
    """`EmbeddingMLP` whose embeddings are fixed: a one at the token's own place of d_model, which has room for all.

    Takes the arguments of `EmbeddingMLP`.

    Raises:
        ValueError: Where d_model is less than the number of tokens.

    Example:
        >>> sum(p.numel() for p in OneHotMLP(P=97).parameters())
        509537
    """

    def residue_embeddings(self) -> dict[str, Tensor]:
        """Activations (P, width) of the first hidden layer on the pairs (i, i), since the embeddings never move."""
        every = torch.arange(self.P, device=self.output.weight.device)
        return {"hidden.0": F.relu(self.preactivations(torch.stack((every, every), -1))["hidden.0"])}

    def _embed(self) -> None:
        if self.d_model < self.tokens:
            raise ValueError(f"d_model={self.d_model}: {self.tokens} one-hot tokens need at least as much")

    def _embedded(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens, self.d_model).to(self.output.weight.dtype)

    def _table(self, parameters: Mapping[str, Tensor]) -> Tensor:
        weight = parameters["output.weight"]
        one_hot = torch.eye(self.tokens, self.d_model, dtype=weight.dtype, device=weight.device)
        return one_hot.expand(len(weight), -1, -1)
