"""How models are built and used."""

from tests.compatibility.table import SERVERS, Row, refused

MODELS = [
    Row("an ordinary model", """
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
train(model, optimizer)
"""),
    Row("`distribute` gives back the objects that went in", """
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
same = paceline.distribute(model, optimizer)
assert same[0] is model and same[1] is optimizer
assert type(model) is nn.Sequential and isinstance(optimizer, torch.optim.SGD)
assert len(model) == 3 and model[0] is list(model)[0]
train(model, optimizer)
"""),
    Row("a method of the model that calls it (`model.loss(x, y)`)", """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = net()
    def forward(self, x):
        return self.layers(x)
    def loss(self, x, y):
        return F.cross_entropy(self(x), y)
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    optimizer.zero_grad()
    model.loss(*batch(step)).backward()
    optimizer.step()
"""),
    Row("an attribute set after `distribute`, read by `forward`", """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.scale = net(), 1.0
    def forward(self, x):
        return self.layers(x) * self.scale
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
model.scale = 3.0
train(model, optimizer)
"""),
    Row("parts of the model called by themselves", """
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(model[2](torch.tanh(model[0](x))), y).backward()
    optimizer.step()
"""),
    Row("a layer unfrozen after some steps (`requires_grad_(True)`)", """
model = net()
model[0].requires_grad_(False)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
model, optimizer = paceline.distribute(model, optimizer)
def after(step):
    if step == 2:
        model[0].requires_grad_(True)
train(model, optimizer, after=after)
"""),
    Row("a layer frozen after some steps", """
model = net()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
model, optimizer = paceline.distribute(model, optimizer)
def after(step):
    if step == 2:
        model[0].requires_grad_(False)
train(model, optimizer, after=after)
"""),
    Row("frozen layers that no optimizer has", """
model = net()
model[0].requires_grad_(False)
optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
train(model, optimizer)
"""),
    Row("a parameter that only the optimizer has", """
model, temperature = net(), nn.Parameter(torch.ones(()))
optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(model(x) * temperature, y).backward()
    optimizer.step()
result = temperature.item()
"""),
    Row("layers used by turns", """
model = seeded(lambda: nn.ModuleList([nn.Linear(6, 3) for _ in range(3)]))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(model[step % 3](x), y).backward()
    optimizer.step()
"""),
    Row("other layers on each worker, by its data", """
model = seeded(lambda: nn.ModuleList([nn.Linear(6, 3) for _ in range(3)]))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    whole = draw(step)
    parts = range(2) if not SHARED else [R]
    optimizer.zero_grad()
    loss = sum(F.cross_entropy(model[(step + r) % 3](whole[0][r::2]), whole[1][r::2]) for r in parts) / len(parts)
    loss.backward()
    optimizer.step()
"""),
    Row("tied weights", """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight
    def forward(self, x):
        return self.out(torch.tanh(self.embed(x)))
model = seeded(Net)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    x, = part(torch.randint(0, 11, (8,), generator=torch.Generator().manual_seed(step)))
    optimizer.zero_grad()
    F.cross_entropy(model(x), (x + 1) % 11).backward()
    optimizer.step()
"""),
    Row("an embedding with sparse gradients", """
model = seeded(lambda: nn.Sequential(nn.Embedding(50, 6, sparse=True), nn.Linear(6, 3)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    x, y = batch(step)
    x = (x[:, 0].abs() * 20).long() % 50
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
""", refused=refused(r"0\.weight .*sparse.*AllReduce", *SERVERS)),
    Row("activation checkpointing", """
from torch.utils.checkpoint import checkpoint
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(checkpoint(model, x, use_reentrant=False), y).backward()
    optimizer.step()
"""),
    Row("activation checkpointing, reentrant", """
from torch.utils.checkpoint import checkpoint
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    h = checkpoint(model[0], x.requires_grad_(), use_reentrant=True)
    F.cross_entropy(checkpoint(model[1:], h, use_reentrant=True), y).backward()
    optimizer.step()
"""),
    Row("`torch.compile` before `distribute`", """
model = torch.compile(net(), backend="eager")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
train(model, optimizer)
"""),
    Row("`torch.compile` after `distribute`", """
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
model = torch.compile(model, backend="aot_eager")
train(model, optimizer)
"""),
    Row("channels-last memory", """
model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 3)))
model = model.to(memory_format=torch.channels_last)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    x, y = batch(step, width=3 * 6 * 6)
    x = x.view(-1, 3, 6, 6).to(memory_format=torch.channels_last)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
"""),
    Row("parametrized weights (`weight_norm`)", """
from torch.nn.utils.parametrizations import weight_norm
model = seeded(lambda: nn.Sequential(weight_norm(nn.Linear(6, 16)), nn.Tanh(), nn.Linear(16, 3)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
train(model, optimizer)
"""),
    Row("a recurrent network", """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(2, 8, num_layers=2, batch_first=True), nn.Linear(8, 3)
    def forward(self, x):
        return self.out(self.lstm(x.view(-1, 3, 2))[0][:, -1])
model = seeded(Net)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
model, optimizer = paceline.distribute(model, optimizer)
train(model, optimizer)
"""),
    Row("a transformer's layer", """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True), nn.Linear(6, 3)
    def forward(self, x):
        return self.out(self.layer(x.unsqueeze(1)).squeeze(1))
model = seeded(Net)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
model, optimizer = paceline.distribute(model, optimizer)
train(model, optimizer)
"""),
    Row("BatchNorm: its buffers are the lowest worker's", """
model = seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
train(model, optimizer)
""", compared={"Synchronous": False, "AllReduce": False},
        note="each worker normalizes by its own part of the batch, as in DistributedDataParallel"),
    Row("SyncBatchNorm", """
model = nn.SyncBatchNorm.convert_sync_batchnorm(
    seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
train(model, optimizer)
""", refused=refused("SyncBatchNorm.*AllReduce", *SERVERS) | refused("SyncBatchNorm expected input tensor to be on", "AllReduce"),
        note="AllReduce: on GPUs only, as torch says itself on a CPU"),
    Row("a buffer assigned anew in `forward`", """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = net()
        self.register_buffer("calls", torch.zeros(()))
    def forward(self, x):
        self.calls = self.calls + 1
        return self.layers(x)
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
train(model, optimizer)
result = model.calls.item()
"""),
    Row("a frozen copy that the script moves (a target network)", """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.online, self.target = net(), net().requires_grad_(False)
    def forward(self, x):
        return self.online(x) + self.target(x)
model = Net()
optimizer = torch.optim.SGD(model.online.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
def after(step):
    with torch.no_grad():
        for target, online in zip(model.target.parameters(), model.online.parameters()):
            target.lerp_(online, 0.2)
train(model, optimizer, after=after)
""", saved=False, note="what the script moves after the last step is saved from worker 0"),
    Row("`torch.func.functional_call`", """
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(torch.func.functional_call(model, dict(model.named_parameters()), (x,)), y).backward()
    optimizer.step()
"""),
]  # fmt: skip
