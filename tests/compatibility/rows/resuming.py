"""Saving and resuming, copies, and what a script does to weights and state between two steps."""

from tests.compatibility.table import Row

BEGUN = """
import io, copy
def make():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
saved_model, saved_optimizer, saved_schedule = make()
torch.manual_seed(0)
for p in saved_model.parameters():
    p.data = torch.randn(p.shape)
for step in range(3):
    x, y = draw(50 + step)
    saved_optimizer.zero_grad()
    F.cross_entropy(saved_model(x), y).backward()
    saved_optimizer.step(); saved_schedule.step()
file = io.BytesIO()
torch.save({"model": saved_model.state_dict(), "optimizer": saved_optimizer.state_dict(), "schedule": saved_schedule.state_dict()}, file)
file.seek(0)
checkpoint = torch.load(file)
model, optimizer, schedule = make()
"""
LOAD = """
model.load_state_dict(checkpoint["model"])
optimizer.load_state_dict(checkpoint["optimizer"])
schedule.load_state_dict(checkpoint["schedule"])
"""
DISTRIBUTE = "model, optimizer = paceline.distribute(model, optimizer)\n"
GO_ON = "train(model, optimizer, after=lambda step: schedule.step())\n"
START = (
    """
import copy, io
model = net()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
"""
    + DISTRIBUTE
)

RESUMING = [
    Row("resuming: state loaded before `distribute`", BEGUN + LOAD + DISTRIBUTE + GO_ON),
    Row("resuming: state loaded after `distribute`", BEGUN + DISTRIBUTE + LOAD + GO_ON),
    Row("`optimizer.state_dict()` has the state of the training", START + """
train(model, optimizer)
state = optimizer.state_dict()["state"]
result = [state[0]["step"].item(), state[0]["exp_avg"].sum().item(), state[3]["exp_avg_sq"].sum().item()]
"""),
    Row("`torch.save(model)` and `torch.save(optimizer)` hold nothing of Paceline", START + """
train(model, optimizer)
for it in (model, optimizer):
    file = io.BytesIO()
    torch.save(it, file)
    assert b"paceline" not in file.getvalue()
    file.seek(0)
    assert type(torch.load(file, weights_only=False)) in (nn.Sequential, torch.optim.Adam)
"""),
    Row("`copy.deepcopy(model)`", START + """
def after(step):
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(draw(7)[0]), draw(7)[1]).backward()  # its gradients are nobody's business
train(model, optimizer, after=after)
"""),
    Row("`model.load_state_dict` between two steps", START + """
def after(step):
    if step == 2:
        model.load_state_dict({k: v + 0.5 for k, v in model.state_dict().items()})
train(model, optimizer, after=after)
"""),
    Row("`optimizer.load_state_dict` between two steps", START + """
kept = []
def after(step):
    if step == 1:
        kept.append(copy.deepcopy(optimizer.state_dict()))
    if step == 3:
        optimizer.load_state_dict(kept[0])
train(model, optimizer, after=after)
"""),
    Row("weights clipped through `.data` (WGAN)", START + """
def after(step):
    for parameter in model.parameters():
        parameter.data.clamp_(-0.2, 0.2)
train(model, optimizer, after=after)
"""),
    Row("a row of an embedding set to zero after each step", """
model = seeded(lambda: nn.Sequential(nn.Embedding(400, 6), nn.Linear(6, 3)))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(model((x[:, 0].abs() * 100).long() % 400), y).backward()
    optimizer.step()
    with torch.no_grad():
        model[0].weight[7].zero_()
"""),
    Row("a layer made anew between two steps, with a common seed", START + """
def after(step):
    if step == 2:
        torch.manual_seed(77)
        model[2].reset_parameters()
train(model, optimizer, after=after)
"""),
    Row("a layer made anew between two steps, at random: worker 0's counts", START + """
def after(step):
    if step == 2:
        torch.manual_seed(77 + R)
        model[2].reset_parameters()
train(model, optimizer, after=after)
""", refused={"AllReduce": r"weights of worker-1 differ from the others' after step 6: 2\.bias, 2\.weight"},
        compared={"Synchronous": False},
        note="the one gradient in between is each worker's at its own layer; AllReduce: the next comparison of weights "
        "finds it; use a common seed"),
    Row("the best weights loaded again at the end", START + """
best = {}
def after(step):
    if step == 3:
        best.update({k: v.clone() for k, v in model.state_dict().items()})
train(model, optimizer, after=after)
model.load_state_dict(best)
"""),
    Row("weights changed on one worker alone", START + """
train(model, optimizer)
if R == W - 1:
    with torch.no_grad():
        model[0].weight.add_(1.0)
train(model, optimizer)
""", refused={
        "Synchronous": "worker-1 changed .* between two steps, and the lowest worker did not",
        "AllReduce": "worker-1 .*differ|weights of worker",
    }, compared={"Asynchronous": False}),
]  # fmt: skip
