"""Optimizers, parameter groups and schedulers."""

from tests.compatibility.table import SERVERS, Row, refused

TORCHS = {
    "SGD": "lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01",
    "Adam": "lr=0.01, amsgrad=True",
    "AdamW": "lr=0.01, weight_decay=0.1",
    "Adagrad": "lr=0.05, initial_accumulator_value=0.1",
    "RMSprop": "lr=0.01, centered=True, momentum=0.5",
    "Adadelta": "lr=1.0",
    "Adamax": "lr=0.01",
    "NAdam": "lr=0.01",
    "RAdam": "lr=0.05",
    "ASGD": "lr=0.1, t0=2",
    "Rprop": "lr=0.01",
}
TRAINED = """
model, optimizer = paceline.distribute(model, optimizer)
train(model, optimizer)
"""
STEPPED = """
model, optimizer = paceline.distribute(model, optimizer)
train(model, optimizer, after=lambda step: schedule.step())
result = optimizer.param_groups[0]["lr"]
"""


def scheduled(name: str, optimizer: str, schedule: str, before: bool = True) -> Row:
    made = f"schedule = torch.optim.lr_scheduler.{schedule}\n"
    start = f"model = net()\noptimizer = torch.optim.{optimizer}\n"
    halves = STEPPED.split("\n", 2)
    script = start + made + STEPPED if before else start + halves[1] + "\n" + made + halves[2]
    return Row(name, script)


OPTIMIZERS = [
    *(Row(f"`torch.optim.{name}({options})`", f"""
model = net()
optimizer = torch.optim.{name}(model.parameters(), {options})
{TRAINED}""") for name, options in TORCHS.items()),
    Row("`fused=True`", f"""
model = net()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
{TRAINED}"""),
    Row("`torch.optim.LBFGS`", """
model = net()
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
model, optimizer = paceline.distribute(model, optimizer)
for step in range(3):
    x, y = batch(step)
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss
    optimizer.step(closure)
""", refused=refused("LBFGS cannot run on a parameter server.*AllReduce", *SERVERS)),
    Row("`torch.optim.Adafactor`", f"""
model = net()
optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
{TRAINED}""", refused=refused("Adafactor cannot run on a parameter server.*AllReduce", *SERVERS)),
    Row("`torch.optim.Muon`", f"""
model = seeded(lambda: nn.Linear(6, 3, bias=False))
optimizer = torch.optim.Muon(model.parameters(), lr=0.01)
{TRAINED}""", refused=refused("Muon cannot run on a parameter server.*AllReduce", *SERVERS), tolerance=1e-2,
        note="its iteration is in bfloat16, so that the order of a sum shows"),
    Row("an optimizer of one's own class, allowed by name", f"""
from tests.trainer.own_optimizer import Lion
model = net()
optimizer = Lion(model.parameters(), lr=0.01)
{TRAINED}""", spec={"parameterServer": {"optimizers": ["tests.trainer.own_optimizer:Lion"]}}),
    Row("an optimizer of one's own class, not allowed", f"""
from tests.trainer.own_optimizer import Lion
model = net()
optimizer = Lion(model.parameters(), lr=0.01)
{TRAINED}""", refused=refused(r"may be allowed with `parameterServer: \{optimizers: \[\S+:Lion\]\}`", *SERVERS)),
    Row("parameter groups with settings of their own", f"""
model = net()
optimizer = torch.optim.AdamW([
    {{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1}},
    {{"params": [p for p in model.parameters() if p.dim() < 2], "lr": 0.001, "weight_decay": 0.0}},
], lr=0.01)
{TRAINED}"""),
    Row("settings changed between steps (`group['lr'] = ...`)", """
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
model, optimizer = paceline.distribute(model, optimizer)
def after(step):
    optimizer.param_groups[0]["lr"] *= 0.7
    optimizer.param_groups[0]["momentum"] = 0.9
train(model, optimizer, after=after)
"""),
    Row("`add_param_group` after `distribute`", """
model = net()
optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
optimizer.add_param_group({"params": model[0].parameters()})
train(model, optimizer)
""", refused=refused("give the optimizer all parameters before", *SERVERS)),
    scheduled("StepLR", "SGD(model.parameters(), lr=0.1)", "StepLR(optimizer, 2, 0.5)"),
    scheduled("StepLR, made after `distribute`", "SGD(model.parameters(), lr=0.1)", "StepLR(optimizer, 2, 0.5)", False),
    scheduled("OneCycleLR, which moves the momentum too", "SGD(model.parameters(), lr=0.1, momentum=0.9)",
              "OneCycleLR(optimizer, 0.2, total_steps=STEPS + 1)"),
    scheduled("CosineAnnealingWarmRestarts", "AdamW(model.parameters(), lr=0.01)", "CosineAnnealingWarmRestarts(optimizer, 3)"),
    scheduled("LambdaLR, as for a warm-up", "Adam(model.parameters(), lr=0.01)", "LambdaLR(optimizer, lambda s: min(1.0, s / 4))"),
    scheduled("SequentialLR", "SGD(model.parameters(), lr=0.1)",
              "SequentialLR(optimizer, [torch.optim.lr_scheduler.LinearLR(optimizer), "
              "torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)], [3])"),
    Row("a learning rate that is a tensor", f"""
model = net()
optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01))
{TRAINED}"""),
    Row("two optimizers on one model", """
model = net()
slow, fast = torch.optim.SGD(model[0].parameters(), lr=0.01), torch.optim.Adam(model[2].parameters(), lr=0.05)
paceline.distribute(model, slow)
paceline.distribute(model, fast)
for step in range(STEPS):
    x, y = batch(step)
    slow.zero_grad(); fast.zero_grad()
    F.cross_entropy(model(x), y).backward()
    slow.step(); fast.step()
""", pairs=2),
    Row("two models, an optimizer each (a GAN)", """
models = [seeded(lambda: nn.Linear(4, 6)), seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)))]
makes, judges = torch.optim.Adam(models[0].parameters(), lr=0.01), torch.optim.SGD(models[1].parameters(), lr=0.05)
for pair in zip(models, (makes, judges)):
    paceline.distribute(*pair)
for step in range(STEPS):
    (real, _), (noise, _) = batch(step), batch(step + 100, width=4)
    judges.zero_grad()
    (models[1](models[0](noise).detach()).mean() - models[1](real).mean()).backward()
    judges.step()
    makes.zero_grad()
    (-models[1](models[0](noise)).mean()).backward()
    makes.step()
""", pairs=2),
]  # fmt: skip
