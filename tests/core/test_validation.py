"""Wrong manifests, and what is said about them."""

from typing import Any

import pytest

from paceline_core.validation import problems

CONTAINER = {"name": "trainer", "command": ["python", "train.py"]}


def manifest(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "topology": "ParameterServer",
        "workers": {"replicas": 2, "template": {"spec": {"containers": [CONTAINER]}}},
    }
    whole = {"apiVersion": "paceline.dev/v1alpha1", "kind": "DistributedTraining", "metadata": {"name": "t"}}
    return whole | {"spec": spec | changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"topology": "Ring"},
            "spec.topology: 'Ring' is not allowed: write ParameterServer or AllReduce",
        ),
        ({"paramterServer": {}}, "spec.paramterServer: unknown field; did you mean `parameterServer`?"),
        ({"parameterServer": {"replcas": 1}}, "spec.parameterServer.replcas: unknown field; did you mean `replicas`?"),
        ({"run_policy": {}}, "spec.run_policy: unknown field; did you mean `runPolicy`?"),
        ({"parameterServer": {"strategy": "Async"}}, "spec.parameterServer.strategy: 'Async' is not allowed"),
        ({"parameterServer": {"asynchronous": {}}}, "`asynchronous` is set but strategy is Synchronous"),
        ({"allReduce": {}}, "`allReduce` is set but topology is ParameterServer"),
        ({"workers": {"replicas": 0, "template": {"spec": {"containers": [CONTAINER]}}}}, "spec.workers.replicas: 0"),
        ({"workers": {"template": {"spec": {"containers": [{"name": "x"}]}}}}, "exactly one container named `trainer`"),
        ({"workers": {"template": {"spec": {"containers": [{"name": "trainer"}]}}}}, "needs a command"),
        ({"workers": None}, "spec.workers: None is not allowed"),
        *(
            (
                {"checkpoint": {"everySteps": 1, "to": to}},
                f"spec.checkpoint.to: {to!r} is not allowed: write a folder's path from the root, or s3://BUCKET/PREFIX",
            )
            for to in (
                "here",
                "s3://",
                "s3:///x",
                "ftp://bucket/x",
                "s3://KEY:SECRET@bucket/x",
                "s3://bucket/x?endpoint=1",
                "s3://bucket#x",
            )
        ),
        ({"checkpoint": {"to": "/c"}}, "spec.checkpoint: says not when: set everySteps or everySeconds, or both"),
        ({"checkpoint": {"everySteps": 1, "resume": "Yes"}}, "spec.checkpoint.resume: 'Yes' is not allowed"),
        ({"gradients": {"timeoutSeconds": -1}}, "spec.gradients.timeoutSeconds: -1 is not allowed"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], message: str) -> None:
    found = [str(p) for p in problems(manifest(**changes))]
    assert any(message in text for text in found), found


def workers(**container: Any) -> dict[str, Any]:
    return {"workers": {"replicas": 2, "template": {"spec": {"containers": [CONTAINER | container]}}}}


NAMED = "lower-case letters, digits and dashes, a letter first"
PLACE = "spec.workers.template.spec.containers[0]"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            workers(command="python train.py"),
            f"{PLACE}.command: 'python train.py' is not allowed: write a list: [python, train.py]",
        ),
        (
            workers(command="sh -c 'a b'"),
            f"{PLACE}.command: \"sh -c 'a b'\" is not allowed: write a list of texts, as in [python, train.py]",
        ),
        (workers(args=["--epochs", 5]), f'{PLACE}.args[1]: 5 is not allowed: write a text, in quotes: "5"'),
        (
            workers(env=[{"name": "PIN", "value": 1234}]),
            f"{PLACE}.env[0].value: its value is not allowed: write a text",
        ),
        (
            workers(env=["PIN=1234"]),
            f"{PLACE}.env[0]: its value is not allowed: write a mapping, with the fields name, value",
        ),
        (workers(env={"PIN": "1234"}), f"{PLACE}.env: its value is not allowed: write a list"),
        (
            workers(env=[{"name": "A=B"}]),
            f"{PLACE}.env[0].name: 'A=B' is not allowed: write printable ASCII characters without =",
        ),
        (workers(workingDir=5), f'{PLACE}.workingDir: 5 is not allowed: write a text, in quotes: "5"'),
        (
            {"workers": workers()["workers"] | {"replicas": "two"}},
            "spec.workers.replicas: 'two' is not allowed: write a whole number",
        ),
        (
            {"workers": workers()["workers"] | {"replicas": 2.5}},
            "spec.workers.replicas: 2.5 is not allowed: write a whole number",
        ),
        (
            {"workers": workers()["workers"] | {"replicas": 20_000}},
            "spec.workers.replicas: 20000 is not allowed: write a number of at most 10000",
        ),
        (
            {"workers": workers()["workers"] | {"processesPerReplica": "auto"}},
            "spec.workers.processesPerReplica: 'auto' is not allowed: write Auto or a whole number",
        ),
        (
            {"gradients": {"timeoutSeconds": 0}},
            "spec.gradients.timeoutSeconds: 0 is not allowed: write a number greater than 0",
        ),
        (
            {"gradients": {"timeoutSeconds": "long"}},
            "spec.gradients.timeoutSeconds: 'long' is not allowed: write a number",
        ),
        ({"gradients": {"maxNorm": float("nan")}}, "spec.gradients.maxNorm: nan is not allowed: write a finite number"),
        ({"gradients": {"overlap": "maybe"}}, "spec.gradients.overlap: 'maybe' is not allowed: write true or false"),
        ({"security": ["TLS"]}, "spec.security: a list is not allowed: write a mapping, with the fields transport"),
        (
            {"parameterServer": {"optimizers": ["Mine"]}},
            "spec.parameterServer.optimizers[0]: 'Mine' is not allowed: write the module and the class, as in mine:MyOptimizer",
        ),
        (
            {"parameterServer": {"optimizers": ["a:B"] * 40}},
            "spec.parameterServer.optimizers: a list is not allowed: write a list of at most 32",
        ),
        (
            {"workers": {"template": {"spec": {"containers": []}}}},
            "spec.workers.template.spec.containers: a list is not allowed: write a list of at least 1",
        ),
        (
            {"metadata": {"name": "My Training"}},
            f"metadata.name: 'My Training' is not allowed: write {NAMED}, for example my-training",
        ),
        ({"metadata": {"name": "7"}}, f"metadata.name: '7' is not allowed: write {NAMED}"),
        (
            {"metadata": {"name": "a" * 49}},
            "metadata.name: 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' is not allowed: write at most 48 characters",
        ),
        ({"kind": "Training"}, "kind: 'Training' is not allowed: write DistributedTraining"),
    ],
)
def test_what_to_write_instead_is_said(wrong: dict[str, Any], said: str) -> None:
    top = {k: wrong[k] for k in wrong if k in ("metadata", "kind")}
    found = problems(manifest(**{k: v for k, v in wrong.items() if k not in top}) | top)
    assert [str(p) for p in found] == [said]


def test_every_mistake_of_a_file_is_told() -> None:
    wrong = manifest(
        **workers(command="python train.py", args=[1], resources={"limits": {"nvidia.com/gpu": "2.5"}}),
        allReduce={},
        gradients={"overlp": False, "timeoutSeconds": 0},
        parameterServer={"strategy": "Synchronous", "asynchronous": {"maxStaleness": -1}},
    ) | {"metadata": {"name": "Mine"}}
    found = sorted(str(p).partition(" is not allowed")[0] for p in problems(wrong))
    assert found == [
        "metadata.name: 'Mine'",
        "spec.gradients.overlp: unknown field; did you mean `overlap`?",
        "spec.gradients.timeoutSeconds: 0",
        "spec.parameterServer.asynchronous.maxStaleness: -1",
        "spec.parameterServer: `asynchronous` is set but strategy is Synchronous: remove it, or set Asynchronous",
        f"{PLACE}.args[0]: 1",
        f"{PLACE}.command: 'python train.py'",
        "spec.workers.template: container `trainer`: limit nvidia.com/gpu is '2.5', and must be a whole number",
        "spec: `allReduce` is set but topology is ParameterServer: remove it, or use `parameterServer`",
    ]


def test_what_follows_from_a_mistake_is_not_told() -> None:
    one_thing = {"parameterServer": {"strategy": "Async", "asynchronous": {}}}
    assert len(problems(manifest(**one_thing))) == 1


def test_a_manifest_is_not_changed_by_looking_at_it() -> None:
    given = manifest(**workers(command="x"), allReduce={})
    before = repr(given)
    problems(given)
    assert repr(given) == before


def test_a_right_manifest_has_no_problems() -> None:
    assert problems(manifest()) == []
