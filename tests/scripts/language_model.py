"""A recurrent language model: batches cut by hand, hidden state carried over, gradients clipped, weights tied."""

import torch
from torch import nn

import paceline

TEXT = "the quick brown fox jumps over the lazy dog and the slow red hen sleeps under the tall tree " * 40
BPTT, BATCH = 16, 8


class RNNModel(nn.Module):
    def __init__(self, tokens, width):
        super().__init__()
        self.encoder = nn.Embedding(tokens, width)
        self.rnn = nn.LSTM(width, width, 1)
        self.decoder = nn.Linear(width, tokens)
        self.decoder.weight = self.encoder.weight
        self.init_weights()

    def init_weights(self):
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, x, hidden):
        output, hidden = self.rnn(self.encoder(x), hidden)
        return self.decoder(output).flatten(0, 1), hidden

    def init_hidden(self, size):
        weight = next(self.parameters())
        return weight.new_zeros(1, size, 32), weight.new_zeros(1, size, 32)


def batchify(data, size):
    count = data.size(0) // size
    return data[: count * size].view(size, -1).t().contiguous()


def main():
    torch.manual_seed(1)
    alphabet = sorted(set(TEXT))
    corpus = torch.tensor([alphabet.index(c) for c in TEXT])
    train_data = batchify(corpus, BATCH)
    batches = [
        (train_data[i : i + BPTT], train_data[i + 1 : i + 1 + BPTT].reshape(-1))
        for i in range(0, train_data.size(0) - BPTT - 1, BPTT)
    ]
    model = RNNModel(len(alphabet), 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    criterion = nn.CrossEntropyLoss()
    model, optimizer = paceline.distribute(model, optimizer)
    batches = paceline.shard(batches)
    for _ in range(12):
        hidden = model.init_hidden(BATCH)
        for x, y in batches:
            optimizer.zero_grad()
            output, hidden = model(x, tuple(h.detach() for h in hidden))
            loss = criterion(output, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    print(f"RESULT {loss.item():.4f}")


if __name__ == "__main__":
    main()
