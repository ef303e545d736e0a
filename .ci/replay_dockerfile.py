"""Runs the steps of a Dockerfile in a folder, where there is no docker: `replay_dockerfile.py FOLDER [TARGET]`.

It proves that the steps install a package that works, from the files that `.dockerignore` lets in, and
nothing else. All stages share one folder in the place of `/`: absolute paths in the instructions are
moved below it, `COPY --from` checks that the other stage made what is copied. Programs that want root
(`useradd`, `chown`) are named and left out. The base image is this machine.
"""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
_MOVED = re.compile(r"(?<![\w.\-/])/(opt|src|home|gcs|s3|minio)(?=[/\s:\"']|$)")
_ROOT_ONLY = ("useradd", "chown")


def instructions(text: str) -> list[tuple[str, str]]:
    """`(name, arguments)` of each instruction, comments and line ends taken away."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def stages(text: str) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Base and instructions of each stage by name."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    current: list[tuple[str, str]] = []
    for name, arguments in instructions(text):
        if name == "FROM":
            base, _, stage = arguments.split()
            current = []
            found[stage] = (base, current)
        else:
            current.append((name, arguments))
    return found


def needed(all_stages: dict[str, tuple[str, list[tuple[str, str]]]], target: str) -> list[str]:
    """Stages that a target is made of, in the order of the file."""
    wanted = [target]
    for stage in wanted:
        base, steps = all_stages[stage]
        sources = [match[1] for _, arguments in steps if (match := re.match(r"--from=(\S+)", arguments))]
        wanted += [name for name in (base, *sources) if name in all_stages and name not in wanted]
    return [stage for stage in all_stages if stage in wanted]


def ignored(path: str, rules: list[str]) -> bool:
    """Whether `.dockerignore` keeps a path out: the last rule that fits it or a folder above it decides."""
    parts = path.split("/")
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    result = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        names = parts if pattern.startswith("**/") else above
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            result = not rule.startswith("!")
    return result


class Replay:
    """The state of a build.

    Args:
        folder: Stands for `/`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        # Settings of this machine's package index and certificates, which a build has from its host.
        own = ("PIP_", "UV_", "SSL_", "REQUESTS_", "HTTP", "http", "NO_PROXY", "no_proxy")
        self.environment |= {k: v for k, v in os.environ.items() if k.startswith(own)}
        self.work = folder
        text = (REPOSITORY / ".dockerignore").read_text().splitlines()
        self._rules = [line.strip() for line in text if line.strip() and not line.startswith("#")]
        tools = folder / "replay-tools"
        tools.mkdir(parents=True)
        for name in _ROOT_ONLY:
            (tools / name).write_text(f'#!/bin/sh\necho "left out: {name} $*"\n')
            (tools / name).chmod(0o755)
        self.environment["PATH"] = f"{tools}:{self.environment['PATH']}"

    def step(self, name: str, arguments: str) -> None:
        """Does one instruction."""
        print(f"{name} {arguments}", flush=True)
        method = getattr(self, f"_{name.lower()}", None)
        if method is not None:
            method(self._moved(arguments))
        elif name not in ("ARG", "LABEL", "USER", "ENTRYPOINT", "CMD"):
            raise SystemExit(f"{name}: the replay does not know this instruction")

    def run(self, command: str) -> None:
        """Runs a shell line as the build does."""
        subprocess.run(["sh", "-euc", command], cwd=self.work, env=self.environment, check=True)

    def _moved(self, text: str) -> str:
        return _MOVED.sub(lambda match: f"{self.folder}/{match[1]}", text)

    def _run(self, command: str) -> None:
        # The build's own cache is the host's here, and links into it spare the copying of gigabytes.
        self.run(command.replace("--no-cache ", ""))

    def _env(self, arguments: str) -> None:
        for key, value in re.findall(r"(\w+)=(\S+)", arguments):
            if key != "UV_LINK_MODE":
                self.environment[key] = re.sub(
                    r"\$(\w+)", lambda match: self.environment.get(match[1], ""), value
                )

    def _workdir(self, path: str) -> None:
        self.work = Path(path)
        self.work.mkdir(parents=True, exist_ok=True)

    def _copy(self, arguments: str) -> None:
        *sources, target = arguments.split()
        if sources[0].startswith("--from="):
            missing = [source for source in sources[1:] if not Path(source).exists()]
            if missing:
                raise SystemExit(f"COPY: the other stage did not make {', '.join(missing)}")
            return
        for source in sources:
            self._copy_one(source, self.work / target, is_folder=target.endswith("/"))

    def _copy_one(self, source: str, target: Path, is_folder: bool) -> None:
        origin = REPOSITORY / source
        files = [path for path in origin.rglob("*") if path.is_file()] if origin.is_dir() else [origin]
        kept = [path for path in files if not ignored(str(path.relative_to(REPOSITORY)), self._rules)]
        if not kept:
            raise SystemExit(f"COPY {source}: not in the build context")
        for path in kept:
            place = target / path.relative_to(origin) if origin.is_dir() else target
            if is_folder and not origin.is_dir():
                place = target / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)


def main() -> None:
    """Replays a target and tries what it made."""
    folder = Path(sys.argv[1]).resolve()
    target = sys.argv[2] if len(sys.argv) > 2 else "cpu"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    all_stages = stages((REPOSITORY / "Dockerfile").read_text())
    replay, started = Replay(folder), time.monotonic()
    for stage in needed(all_stages, target):
        print(f"-- stage {stage}, from {all_stages[stage][0]}", flush=True)
        for name, arguments in all_stages[stage][1]:
            replay.step(name, arguments)
    installed = time.monotonic() - started
    replay.work = folder / "home/mlet"
    runtime = dict(all_stages["runtime"][1])
    (program,) = json.loads(runtime["ENTRYPOINT"])
    for command in (
        f"{program} --version",
        f"{program} compile --help",
        "python -c 'import mlet_tf.pipeline.kubeflow_runner as r, os, mlet_tf; print(r.__file__); "
        'assert r.__file__.startswith(os.environ["HOME"].replace("home/mlet", "opt/venv"))\'',
        # The entry point and one executor, loaded as a container does it.
        "python -c 'import mlet_tf.pipeline.container_entrypoint, mlet_tf.components.pusher.executor, mlet_tf.report; "
        'from importlib import resources; assert (resources.files("mlet_tf") / "templates/report.html").is_file()\'',
    ):
        print(command, flush=True)
        replay.run(command)
    print(
        f"Target {target}: installed in {installed:.0f} s, tried in {time.monotonic() - started - installed:.0f} s"
    )


if __name__ == "__main__":
    main()
