"""What all checks use: where things lie, and the built programs if there are any."""
import os
import pathlib
import subprocess

import yaml

DEPLOY = pathlib.Path(__file__).resolve().parent.parent
ROOT = DEPLOY.parent
TEST = DEPLOY / "test"


class NotRun(Exception):
    """This check needs something that is not here."""


def load(path: pathlib.Path):
    with open(path, encoding="utf-8") as file:
        return yaml.safe_load(file)


def program(name: str) -> pathlib.Path:
    told = os.environ.get("TAPEDECK_BIN")
    path = pathlib.Path(told or ROOT / "target" / "debug") / name
    if path.exists():
        return path
    if told:
        raise AssertionError(f"{path} is not there")
    raise NotRun(f"{name} is not built")


def run(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, **options)
