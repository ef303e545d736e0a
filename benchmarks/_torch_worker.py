"""PyTorch DLRM as a peer: sparse EmbeddingBags, or the MLET authors' EmbeddingBag + Linear per table.

Started by `benchmarks.training`; needs torch and NumPy only.
"""

import itertools
import json
import sys

import torch
from torch import nn

from benchmarks import _click_data, _harness

_GEMM_MULTIPLE = 16


class DLRM(nn.Module):
    """DLRM whose odd matrix widths are padded with zeros, as they would slow its products down."""

    def __init__(self, sizes: list[int], dim: int, hidden_dim: int | None):
        """`hidden_dim` None makes direct embeddings; vocabularies of at most `hidden_dim` stay direct."""
        super().__init__()
        hidden = [hidden_dim if hidden_dim and size > hidden_dim else None for size in sizes]
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(n, k or dim, mode="sum", sparse=True) for n, k in zip(sizes, hidden, strict=True)
        )
        self.projections = nn.ModuleList(
            nn.Linear(k, dim, bias=False) if k else nn.Identity() for k in hidden
        )
        count = len(sizes) + 1
        self.register_buffer("pairs", torch.tril_indices(count, count, -1))
        width = dim + self.pairs.shape[1]
        self.padding = -width % _GEMM_MULTIPLE
        self.dense_padding = -_click_data.NUM_DENSE % _GEMM_MULTIPLE
        self.bottom = _mlp([_click_data.NUM_DENSE + self.dense_padding, 512, 256, dim], last=nn.ReLU())
        self.top = _mlp([width + self.padding, 512, 256, 1], last=nn.Identity())

    def forward(self, dense: torch.Tensor, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Returns logits [B]."""
        x = self.bottom(nn.functional.pad(dense, (0, self.dense_padding)))
        vectors = [
            p(t(i, offsets)) for t, p, i in zip(self.tables, self.projections, ids.unbind(0), strict=True)
        ]
        stacked = torch.stack([x, *vectors], dim=1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        joined = torch.cat([x, products, products.new_zeros(len(x), self.padding)], dim=1)
        return self.top(joined).squeeze(1)


def _mlp(widths: list[int], last: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (rows, columns) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(rows, columns), last if i == len(widths) - 2 else nn.ReLU()]
    return nn.Sequential(*layers)


def main() -> None:
    """Trains as the parent process asks."""
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = _click_data.vocabulary_sizes(spec["rows"])
    model = DLRM(sizes, spec["d"], spec["k"])
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01, initial_accumulator_value=0.1)
    loss_function = nn.BCEWithLogitsLoss()
    offsets = torch.arange(spec["batch"])
    data = [
        (torch.from_numpy(dense), torch.from_numpy(ids.T.copy()), torch.from_numpy(labels))
        for dense, ids, labels in _click_data.batches(sizes, spec["batch"], spec["batches"])
    ]
    position = 0

    def run(steps: int) -> float:
        nonlocal position
        for _ in range(steps):
            dense, ids, labels = data[position % len(data)]
            position += 1
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=spec.get("autocast", False)):
                logits = model(dense, ids, offsets)
            loss = loss_function(logits.float(), labels)
            loss.backward()
            optimizer.step()
        return loss.item()

    _harness.serve(run)


if __name__ == "__main__":
    main()
