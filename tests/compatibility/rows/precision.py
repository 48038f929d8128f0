"""Mixed precision, and clipping of gradients."""

from tests.compatibility.table import Row

START = """
model = net()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
model, optimizer = paceline.distribute(model, optimizer)
"""
SCALED = (
    START
    + """
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.DTYPE):
        loss = F.cross_entropy(model(x), y)
    scaler.scale(loss * (float("inf") if BAD else 1.0)).backward()
    BETWEEN
    scaler.step(optimizer)
    scaler.update()
result = scaler.get_scale()
"""
)
CLIPPED = "gradients of each worker are clipped by itself; `gradients.maxNorm` clips the mean in every mode"
LOCALLY = {"Synchronous": False}
HALF = 4e-3  # a half precision forward pass on other parts of a batch


def scaled(dtype: str, between: str = "", bad: str = "False") -> str:
    return SCALED.replace("DTYPE", dtype).replace("BETWEEN", between or "pass").replace("BAD", bad)


DESCENT = ("torch.optim.AdamW(model.parameters(), lr=0.01)", "torch.optim.SGD(model.parameters(), lr=0.1)")

PRECISION = [
    Row("autocast to bfloat16", START.replace(*DESCENT) + """
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
""", dtype="float32", tolerance=HALF, note="to the precision of bfloat16"),
    Row("GradScaler and autocast to float16", scaled("float16").replace(*DESCENT), dtype="float32", tolerance=HALF, note="to the precision of float16"),
    Row("GradScaler alone, in full precision", scaled("float16").replace('torch.autocast("cpu", torch.float16)', 'torch.enable_grad()')),
    Row("GradScaler with `fused=True`", scaled("float16").replace("lr=0.01)", "lr=0.01, fused=True)").replace(
        'torch.autocast("cpu", torch.float16)', 'torch.enable_grad()')),
    Row("GradScaler: an overflow on one worker is skipped by all",
        scaled("float16", bad="step == 2 and (R == 1 or not SHARED)").replace(
            'torch.autocast("cpu", torch.float16)', 'torch.enable_grad()')),
    Row("`scaler.unscale_`, then `clip_grad_norm_`",
        scaled("float16", "scaler.unscale_(optimizer); nn.utils.clip_grad_norm_(model.parameters(), 0.1)").replace(
            'torch.autocast("cpu", torch.float16)', 'torch.enable_grad()'), compared=LOCALLY, note=CLIPPED),
    Row("`clip_grad_norm_`", START + """
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
""", compared=LOCALLY, note=CLIPPED),
    Row("`clip_grad_value_`", START + """
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.01)
    optimizer.step()
""", compared=LOCALLY, note=CLIPPED.split(";")[0]),
    Row("`gradients.maxNorm`", START + """
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    if ALONE:
        assert nn.utils.clip_grad_norm_(model.parameters(), 0.1) > 0.1
    optimizer.step()
""", spec={"gradients": {"maxNorm": 0.1}}),
    Row("`gradients.maxNorm` with GradScaler",
        scaled("float16", "if ALONE: scaler.unscale_(optimizer); nn.utils.clip_grad_norm_(model.parameters(), 0.1)").replace(
            'torch.autocast("cpu", torch.float16)', 'torch.enable_grad()'), spec={"gradients": {"maxNorm": 0.1}}),
    Row("a model in bfloat16", """
model = net().to(torch.bfloat16)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(model(x.to(torch.bfloat16)).float(), y).backward()
    optimizer.step()
""", dtype="float32", tolerance=2e-2, note="to the precision of bfloat16"),
    Row("a model of several dtypes", """
model = net()
model[2].to(torch.float64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(model[2](torch.tanh(model[0](x)).double()), y).backward()
    optimizer.step()
""", dtype="float32"),
    Row("`gradients: {overlap: false}`", START + "train(model, optimizer)\n", spec={"gradients": {"overlap": False}}),
]  # fmt: skip
