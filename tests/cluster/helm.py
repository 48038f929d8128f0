"""Helm for the tests, without a helm binary: install, upgrade, test or uninstall the chart in the current cluster."""

import argparse
import os
import sys
from pathlib import Path

import yaml
from helm_python import Config

CHART = Path(__file__).parents[2] / "charts/paceline"
RELEASE, NAMESPACE = "paceline", "paceline-system"


def config(namespace: str) -> Config:
    """Helm in the cluster of KUBECONFIG."""
    return Config(kubeconfig_path=os.environ["KUBECONFIG"], namespace=namespace)


def main() -> int:
    """One command; values as YAML on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["install", "upgrade", "test", "uninstall"])
    parser.add_argument("values", nargs="?", default="{}", help="as YAML")
    parser.add_argument("namespace", nargs="?", default=NAMESPACE)
    options = parser.parse_args()
    values, namespace = yaml.safe_load(options.values), options.namespace
    helm = config(namespace)
    match options.command:
        case "install":
            helm.install(
                str(CHART), RELEASE, values, namespace=namespace, create_namespace=True, wait="watcher", timeout=180
            )
        case "upgrade":
            helm.upgrade(str(CHART), RELEASE, values, namespace=namespace, wait="watcher", timeout=180)
        case "test":
            print(helm.test(RELEASE, timeout=600, logs=True))
        case "uninstall":
            helm.uninstall(RELEASE, timeout=180, wait="watcher")
    return 0


if __name__ == "__main__":
    sys.exit(main())
