"""The templates of `deploy/`: what can be tried of them without Docker, SLURM and Kubernetes."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, re.MULTILINE)


def test_the_image_is_built_from_the_files_that_it_copies(tmp_path):
    for line in instructions("COPY"):
        if not line.startswith("--from"):
            *sources, target = line.split()
            for source in sources:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, tmp_path / (target if target != "./" else source))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        ".",
        "-w",
        "wheels",
    ]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("labelwise-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "labelwise/cli/main.py" in names
    assert "labelwise/recipes/acdc/long_128.toml" in names


def test_the_image_has_extras_that_exist_and_an_ordinary_user():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r'pip install .*"\.\[(.+)\]"', DOCKERFILE)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert instructions("USER") == ["1000"]  # a number, so that Kubernetes sees that it is not root
    assert instructions("ENTRYPOINT") == ['["labelwise"]']


def test_the_image_has_one_version_of_every_package():
    lock = runpy.run_path(str(DEPLOY / "lock.py"))
    pinned = [Requirement(line) for line in (DEPLOY / "constraints.txt").read_text().splitlines()]
    versions = {one.name: str(one.specifier).removeprefix("==") for one in pinned}
    assert len(versions) == len(pinned) > 50
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"]]
    for extra in lock["extras"]():
        wanted += project["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name == "torch" or requirement.specifier.contains(versions[name]), requirement
    # What is installed here may be newer; that nothing is missing can be seen all the same.
    assert lock["needed"]("labelwise", lock["extras"](), {}).keys() <= versions.keys()


def test_the_job_of_kubernetes_is_what_its_api_takes():
    kubernetes = pytest.importorskip("kubernetes_validate")
    job = yaml.safe_load((DEPLOY / "train.yaml").read_text(encoding="utf-8"))
    kubernetes.validate(job, kubernetes.latest_version(), strict=True)
    job["spec"]["backofLimit"] = job["spec"].pop("backoffLimit")
    with pytest.raises(kubernetes.ValidationError, match="backofLimit"):
        kubernetes.validate(job, kubernetes.latest_version(), strict=True)


def test_the_job_of_kubernetes_calls_the_command_as_it_is(command):
    job = yaml.safe_load((DEPLOY / "train.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert pod["restartPolicy"] == "OnFailure"  # an interrupted training ends with 130
    verb, *words = container["args"]
    told = command(verb, "--help").out
    assert all(word in told for word in words if word.startswith("--"))


@pytest.mark.skipif(os.name == "nt", reason="a script of bash")
@pytest.mark.parametrize(
    ("code", "left", "requeued"),
    [(0, 30, False), (1, 30, True), (1, 9000, False)],
    ids=["done", "over", "failed"],
)
def test_a_job_of_slurm_whose_time_is_over_goes_on_later(tmp_path, code, left, requeued):
    for name, does in {"srun": f'echo "$@"; exit {code}', "scontrol": 'echo "again: $@"'}.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\n{does}\n")
        program.chmod(0o755)
    done = subprocess.run(
        ["bash", str(DEPLOY / "train.sbatch"), "my data", "runs/first", "recipe.toml"],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_GPUS_ON_NODE": "4",
            "SLURM_JOB_END_TIME": str(int(time.time()) + left),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == code, done.stderr
    wanted = "torchrun --nproc-per-node 4 --no-python labelwise train recipe.toml --data my data -o runs/first --json"
    assert done.stdout.splitlines()[0] == wanted
    assert ("again: requeue 7" in done.stdout) is requeued
