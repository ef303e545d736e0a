"""The Dockerfile and what goes into the image; `.ci/replay_dockerfile.py` runs its steps."""

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def _pins(name: str) -> dict[str, str]:
    """Versions by package, each of which has a hash."""
    text = (REPOSITORY / name).read_text()
    pins = dict(re.findall(r"^([\w.\-]+)==(\S+) \\\n    --hash=sha256:", text, re.MULTILINE))
    assert len(pins) == text.count("==")
    return pins


def test_hadolint_finds_nothing():
    program = Path(sys.executable).parent / "hadolint"
    found = subprocess.run([program, REPOSITORY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_containers_are_not_root_and_run_one_keras():
    runtime = DOCKERFILE[DOCKERFILE.index(" AS runtime") :]
    assert re.search(r"^USER 10001:0$", runtime, re.MULTILINE)
    assert "USER" not in runtime[runtime.index(" AS gpu") :]
    assert "TF_USE_LEGACY_KERAS=0" in runtime
    assert "ADD " not in DOCKERFILE and DOCKERFILE.rstrip().endswith("COPY --from=build /opt/venv /opt/venv")


def test_both_locks_agree():
    locked, gpu = _pins("requirements.lock"), _pins("requirements-gpu.lock")
    own = {name: version for name, version in gpu.items() if locked.get(name) != version}
    assert own and all(name.startswith("nvidia-") for name in own)
    assert {f"nvidia-{name}" for name in ("cudnn-cu12", "cublas-cu12", "nccl-cu12")} <= set(own)


def test_libraries_of_cuda_are_where_the_image_looks():
    """A folder of the search path is a package of the lock."""
    folders = re.findall(r"\$NVIDIA/(\w+)/lib", DOCKERFILE)
    packages = {name.removeprefix("nvidia-").removesuffix("-cu12") for name in _pins("requirements-gpu.lock")}
    assert {folder.replace("_", "-") for folder in folders} <= packages
