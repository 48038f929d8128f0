"""Writes the CustomResourceDefinition from the models, so that `kubectl apply` refuses what `paceline run` refuses."""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from paceline_core.checkpoint_policy import SAYS_NOT_WHEN
from paceline_core.spec import MEMBERS, SERVERS_FIELD, TrainingSpec
from paceline_core.strategies import DEFAULT, STRATEGIES
from paceline_operator.definition import status_schema
from paceline_operator.definition.status_schema import Schema
from paceline_operator.objects import labels

DROPPED = ("title", "default", "additionalProperties", "discriminator")
HEADER = "# Generated from the models by `make crd`; do not edit.\n"
NAME_RULES = [
    {
        "rule": "self.metadata.name.size() <= 48",
        "message": "metadata.name: at most 48 characters, because the names of pods are made from it",
    },
    {
        "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "message": "metadata.name: lower-case letters, digits and dashes, a letter first: a Service is named so",
    },
]
SPEC_RULES = [
    *(
        {
            "rule": f"!has(self.{member}) || self.topology == '{topology}'",
            "message": f"`{member}` is set but topology is {other}: remove it, or use `{MEMBERS[other]}`",
        }
        for topology, member in MEMBERS.items()
        for other in MEMBERS
        if other is not topology
    ),
]
FIXED = ("topology", *MEMBERS.values(), "workers", "gradients", "checkpoint", "observability", "security")
CHECKPOINT_RULES = [
    {"rule": "has(self.everySteps) || has(self.everySeconds)", "message": SAYS_NOT_WHEN},
    {
        "rule": "has(self.to)",
        "message": "`to` is required in a cluster: a folder on a volume, for example /checkpoints, that every server "
        "mounts (`parameterServer.template`), in a ring the coordinator and every worker, or the URL of an object "
        "store, for example s3://BUCKET/PREFIX",
    },
]
STRATEGY = f"(has(self.strategy) ? self.strategy : '{DEFAULT.name}')"
SERVER_RULES = [
    {
        "rule": f"!has(self.{it.field}) || {STRATEGY} == '{it.name}'",
        "message": f"`{it.field}` is set but strategy is another: remove it, or set strategy: {it.name}",
        "messageExpression": f"'`{it.field}` is set but strategy is ' + {STRATEGY} + "
        f"': remove it, or set strategy: {it.name}'",
    }
    for it in STRATEGIES.values()
    if it.settings is not None
]
TEMPLATE_RULES = [
    {
        "rule": "self.spec.containers.filter(c, c.name == 'trainer').size() == 1",
        "message": "needs exactly one container named `trainer`, which runs the training script",
    },
    {
        "rule": "self.spec.containers.all(c, c.name != 'trainer' || (has(c.command) && c.command.size() > 0))",
        "message": "container `trainer` needs a command, for example [python, train.py]",
    },
    {
        "rule": "self.spec.containers.all(c, c.name != 'trainer' || (has(c.image) && c.image != ''))",
        "message": "container `trainer` needs an image in a cluster",
    },
]
COLUMNS = [
    ("Strategy", "string", ".status.strategy", 0, "How gradients are applied."),
    ("Phase", "string", ".status.phase", 0, "Where in its life the training is."),
    ("Workers", "string", ".status.workers.summary", 0, "Workers that run or have ended well, of those wanted."),
    ("Step", "integer", ".status.step", 0, "Steps that every worker has made."),
    ("Progress", "string", ".status.progress", 0, "Share of the steps."),
    ("Slowest", "string", ".status.slowestWorker", 0, "The worker that makes the others wait."),
    ("Reason", "string", ".status.reason", 0, "What is the matter, in a word."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Since it was created."),
    ("Servers", "string", ".status.servers.summary", 1, "Servers that run or have ended well, of those wanted."),
    ("Loss", "number", ".status.loss", 1, "The newest loss, the mean of all workers."),
    ("Goodput", "string", ".status.goodput.summary", 1, "Share of the time in which the training went on."),
    ("Checkpoint", "integer", ".status.checkpoint.step", 1, "Updates made until the newest checkpoint."),
    ("Restarts", "integer", ".status.restarts", 1, "Failures that count against runPolicy.backoffLimit."),
    ("Message", "string", ".status.message", 1, "What is the matter, in a sentence."),
]


def crd() -> dict[str, Any]:
    """The definition as plain data."""
    version = {
        "name": labels.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema()},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "priority": priority, "description": text}
            for name, kind, path, priority, text in COLUMNS
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{labels.PLURAL}.{labels.GROUP}"},
        "spec": {
            "group": labels.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": labels.KIND,
                "listKind": f"{labels.KIND}List",
                "plural": labels.PLURAL,
                "singular": labels.KIND.lower(),
                "shortNames": ["dt"],
                "categories": ["all"],
            },
            "versions": [version],
        },
    }


def schema() -> Schema:
    """The structural schema of the resource."""
    raw = TrainingSpec.model_json_schema(by_alias=True, mode="validation")
    spec = _structural(raw, raw["$defs"])
    spec["description"] = "What to train, and how."
    spec["x-kubernetes-validations"] = [*SPEC_RULES, *(_unchanged(name) for name in FIXED)]
    properties = spec["properties"]
    properties[SERVERS_FIELD]["x-kubernetes-validations"] = SERVER_RULES
    properties["checkpoint"]["x-kubernetes-validations"] = CHECKPOINT_RULES
    properties["workers"]["properties"]["template"]["x-kubernetes-validations"] = TEMPLATE_RULES
    return {
        "type": "object",
        "description": "Trains one PyTorch model on many machines.",
        "required": ["spec"],
        "x-kubernetes-validations": NAME_RULES,
        "properties": {
            "apiVersion": {"type": "string", "description": "Always paceline.dev/v1alpha1."},
            "kind": {"type": "string", "description": "Always DistributedTraining."},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status_schema.status(),
        },
    }


def _unchanged(name: str) -> Schema:
    return {
        "rule": f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})",
        "message": f"`{name}` cannot be changed: delete the training and create it anew",
    }


def _structural(node: Schema, definitions: Schema) -> Schema:
    """A JSON schema of pydantic as Kubernetes takes it: references inlined, no null, enums for constants."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        inlined = _structural(definitions[name], definitions)
        if name in ("PodTemplate", "PodSpec", "Container", "EnvVar"):
            inlined["x-kubernetes-preserve-unknown-fields"] = True
        return inlined | _described(node)
    if "anyOf" in node:
        return _union([n for n in node["anyOf"] if n.get("type") != "null"], node, definitions)
    out: Schema = {k: v for k, v in node.items() if k not in (*DROPPED, "$defs", "properties", "items")}
    if "const" in out:
        out["enum"] = [out.pop("const")]
    for old, new in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if old in out:
            out[new], out[old] = out[old], True
    if "properties" in node:
        out["properties"] = {k: _structural(v, definitions) for k, v in node["properties"].items()}
    elif node.get("type") == "object":
        out["x-kubernetes-preserve-unknown-fields"] = True
    if "items" in node:
        out["items"] = _structural(node["items"], definitions)
    return out


def _union(kinds: list[Schema], node: Schema, definitions: Schema) -> Schema:
    if len(kinds) == 1:
        return _structural(kinds[0], definitions) | _described(node)
    # the one union there is: a number, or Auto
    number = next(k for k in kinds if k["type"] == "integer")
    words = [str(k.get("const")) for k in kinds if "const" in k]
    low, high, named = number["minimum"], number["maximum"], ", ".join(words)
    fits = f"int(self) >= {low} && int(self) <= {high}"
    is_word = " || ".join(f"string(self) == '{w}'" for w in words)
    return {
        "x-kubernetes-int-or-string": True,
        "x-kubernetes-validations": [
            {
                "rule": f"type(self) == int ? ({fits}) : ({is_word})",
                "message": f"must be {named} or a whole number from {low} to {high}",
            }
        ],
        **_described(node),
    }


def _described(node: Schema) -> Schema:
    return {"description": node["description"]} if "description" in node else {}


def text() -> str:
    """The definition as YAML."""
    return HEADER + yaml.safe_dump(crd(), sort_keys=False, width=120)


def chart_text() -> str:
    """The chart's copy: a template, so that it is upgraded and can be kept."""
    body = text().replace(
        f"  name: {labels.PLURAL}.{labels.GROUP}\n",
        f"  name: {labels.PLURAL}.{labels.GROUP}\n"
        "  {{- if .Values.crds.keep }}\n  annotations:\n    helm.sh/resource-policy: keep\n  {{- end }}\n",
        1,
    )
    return "{{- if .Values.crds.enabled }}\n" + body + "{{- end }}\n"


def main() -> int:
    """Write both files, or with --check say which is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a file is out of date")
    check = parser.parse_args().check
    files = {Path("manifests/crd.yaml"): text(), Path("charts/paceline/templates/crd.yaml"): chart_text()}
    stale = [p for p, wanted in files.items() if not p.is_file() or p.read_text() != wanted]
    for path in stale:
        if check:
            print(f"{path} is out of date: run `make crd`", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path])
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
