"""Which certificates a training has, and whose they are."""

import base64
from typing import Any

import pytest
from cryptography import x509

import paceline_credentials
from paceline_core.launch import Role
from paceline_operator.objects import credentials, pods
from tests.operator.builders import a_spec, a_subject

MIB = 1 << 20


def with_workers(replicas: int, processes: int = 1) -> pods.Subject:
    raw: dict[str, Any] = a_spec()
    raw["workers"] |= {"replicas": replicas, "processesPerReplica": processes}
    return a_subject(raw)


def issued(subject: pods.Subject) -> dict[str, dict[str, bytes]]:
    spec = subject.spec
    return paceline_credentials.issue("digits", credentials.servers(spec), credentials.workers(spec))


def named(files: dict[str, bytes]) -> list[str]:
    extensions = x509.load_pem_x509_certificate(files["cert.pem"]).extensions
    return extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize(("replicas", "processes"), [(1, 1), (3, 1), (2, 4), (2500, 1), (1001, 8)])
def test_each_process_is_named_by_the_certificate_of_its_pod(replicas: int, processes: int) -> None:
    subject = with_workers(replicas, processes)
    made = issued(subject)
    for pod in {0, 1, replicas // 2, replicas - 1} - {replicas}:
        certificate = named(made[credentials.name_of(subject.spec, Role.WORKER, pod)])
        for rank in range(pod * processes, (pod + 1) * processes):
            assert paceline_credentials.names(certificate, "worker", rank)
        assert not paceline_credentials.names(certificate, "ps", pod)
        assert not paceline_credentials.names(certificate, "worker", replicas * processes)
        if replicas <= credentials.MOST_CERTIFICATES:
            own = range(pod * processes, (pod + 1) * processes)
            others = [r for r in range(replicas * processes) if r not in own]
            assert not any(paceline_credentials.names(certificate, "worker", other) for other in others)


def test_a_secret_holds_the_certificates_of_ten_thousand_pods() -> None:
    subject = with_workers(10_000, 8)
    data = pods.secret(subject, issued(subject))["data"]
    assert sum(len(base64.b64decode(text)) for text in data.values()) < MIB
    for pod in (0, 4321, 9999):
        assert {item["key"] for item in credentials.items(subject.spec, Role.WORKER, pod)} <= data.keys()


@pytest.mark.parametrize(
    "name",
    ["worker-3", "worker-x.paceline", "worker-2-4.paceline.example", "xworker-3.paceline", "worker-4-2.paceline"],
)
def test_other_names_name_nobody(name: str) -> None:
    assert not paceline_credentials.names([name], "worker", 3)


def test_a_name_names_a_process_or_a_range() -> None:
    assert paceline_credentials.names(["worker-2-4.paceline"], "worker", 3)
    assert paceline_credentials.names(["ps-1.paceline"], "ps", 1)
    assert not paceline_credentials.names(["ps-1.paceline"], "ps", 11)
