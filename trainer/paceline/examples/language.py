"""A language model, byte by byte, on the text of Python's own standard library."""

import argparse
import math
import os
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import paceline
from paceline.examples.saving import save

CONTEXT = 64  # bytes that the model sees
WIDTH, HEADS, LAYERS = 512, 8, 4  # about 12.7 million parameters, 51 MB


class Text(Dataset[torch.Tensor]):
    """Windows of CONTEXT + 1 bytes from the standard library's modules, in the order of their names."""

    def __init__(self, limit: int) -> None:
        files = sorted(Path(os.__file__).parent.glob("*.py"))
        self.text = torch.frombuffer(bytearray(b"\n".join(f.read_bytes() for f in files)[:limit]), dtype=torch.uint8)

    def __len__(self) -> int:
        return (len(self.text) - 1) // CONTEXT

    def __getitem__(self, index: int) -> torch.Tensor:
        start = index * CONTEXT
        return self.text[start : start + CONTEXT + 1].long()


class Transformer(nn.Module):
    """A small decoder-only transformer; the embedding is also the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.output = nn.Linear(WIDTH, 256, bias=False)
        self.output.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.mask: torch.Tensor
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Bytes [batch, time] to logits [batch, time, 256]."""
        hidden = self.embedding(text) + self.positions[: text.shape[1]]
        hidden = self.layers(hidden, mask=self.mask[: text.shape[1], : text.shape[1]], is_causal=True)
        logits: torch.Tensor = self.output(hidden)
        return logits


def groups(model: nn.Module) -> list[dict[str, object]]:
    """Weight decay for matrices, none for biases and norms."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4, help="windows in each worker's step")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--text-bytes", type=int, default=4 << 20)
    parser.add_argument("--save", metavar="FILE", help="where worker 0 writes the weights, as safetensors")
    return parser.parse_args()


def main() -> None:
    """Train, printing the loss in bits for each byte."""
    options = arguments()
    torch.manual_seed(0)
    model: nn.Module = Transformer()
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups(model), lr=options.lr, betas=(0.9, 0.95))
    loader = DataLoader(Text(options.text_bytes), batch_size=options.batch_size, shuffle=True, drop_last=True)
    batches = paceline.shard(loader)
    model, optimizer = paceline.distribute(model, optimizer, total_steps=options.steps)
    warm_up = max(1, options.steps // 10)

    def rate(step: int) -> float:
        done = min(1.0, step / options.steps)
        factor: float = min(1.0, (step + 1) / warm_up) * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        return factor

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    step = 0
    while step < options.steps:
        for window in batches:
            optimizer.zero_grad()
            logits = model(window[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            paceline.report(loss=loss)
            step += 1
            if paceline.rank() == 0 and (step % 10 == 0 or step == 1):
                print(f"step {step}: {loss.item() / math.log(2):.3f} bits per byte")
            if step == options.steps:
                break
    if paceline.rank() == 0:
        paceline.report(bits_per_byte=loss.item() / math.log(2))
        if options.save:
            save(model, options.save)


if __name__ == "__main__":
    main()
