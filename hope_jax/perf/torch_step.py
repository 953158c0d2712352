"""A train step of a plain transformer of the pilot's size in PyTorch, where that is installed."""

import importlib
import time
from typing import Any

import numpy as np


def speed(small: bool) -> dict[str, Any]:
    """Tokens/s of its step: bfloat16 products, fused attention, AdamW; 6 rows of 2,048 tokens, 12 layers of
    width 512. Not compiled by torch. small: a toy, on the CPU."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return {"absent": "torch is not installed"}
    if not small and not torch.cuda.is_available():
        return {"absent": "torch finds no GPU"}
    device = "cpu" if small else "cuda"
    layers, width, heads, vocabulary, rows, tokens = (
        (1, 16, 2, 64, 2, 64) if small else (12, 512, 8, 32000, 6, 2048)
    )
    model = _transformer(torch, layers, width, heads, vocabulary).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = torch.randint(vocabulary, (rows, tokens + 1), device=device)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        float(loss.detach())  # waits for the device

    step()
    samples: list[float] = []
    while len(samples) < 3 or (len(samples) < 20 and sum(samples) < 30):
        started = time.perf_counter()
        step()
        samples.append(time.perf_counter() - started)
    peak = None if small else torch.cuda.max_memory_allocated()
    return {
        "tokens_per_second": rows * tokens / float(np.median(samples)),
        "seconds": samples,
        "peak_bytes": peak,
    }


def _transformer(torch: Any, layers: int, width: int, heads: int, vocabulary: int) -> Any:
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[name-defined]
        """Causal attention and an MLP, each after a norm and beside a residual."""

        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
            self.heads, self.out = (
                nn.Linear(width, 3 * width, bias=False),
                nn.Linear(width, width, bias=False),
            )
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x: Any) -> Any:
            """[B, T, D] -> [B, T, D]."""
            qkv = self.heads(self.norms[0](x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(*qkv, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).flatten(2))
            return x + self.mlp(self.norms[1](x))

    blocks = (Block() for _ in range(layers))
    return nn.Sequential(
        nn.Embedding(vocabulary, width), *blocks, nn.LayerNorm(width), nn.Linear(width, vocabulary)
    )
