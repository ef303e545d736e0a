"""What `TF_CONFIG` says: which processes train together and which of them this is."""

import dataclasses
import json
import os
from collections.abc import Mapping

from mlet_tf.errors import InputError

VARIABLE = "TF_CONFIG"
_JOBS = ("chief", "worker")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of one training.

    Attributes:
        addresses: `host:port` of each, by rank; the first is the chief's.
        rank: This process's number.
    """

    addresses: tuple[str, ...] = ("",)
    rank: int = 0

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Cluster":
        """Reads `TF_CONFIG`; without it, or with one process in it, the cluster is this process alone.

        Raises:
            InputError: `TF_CONFIG` is not JSON, or does not say which of its chief and workers this process is.
        """
        text = environment.get(VARIABLE)
        if not text:
            return cls()
        try:
            config = json.loads(text)
            jobs, task = config["cluster"], config["task"]
            addresses = [(job, i, address) for job in _JOBS for i, address in enumerate(jobs.get(job, []))]
            me = (task["type"], int(task["index"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f'{VARIABLE} should be JSON like {{"cluster": {{"worker": ["host:port", ...]}}, '
                f'"task": {{"type": "worker", "index": 0}}}}. Received: {text} ({error!r})'
            ) from None
        _refuse_other_jobs(jobs, me)
        ranks = [rank for rank, (job, i, _) in enumerate(addresses) if (job, i) == me]
        if not ranks:
            raise InputError(
                f"{VARIABLE}: task {me[0]} {me[1]} should be one of its cluster's. "
                f"Received: {', '.join(f'{job} {i}' for job, i, _ in addresses)}"
            )
        return cls(tuple(address for _, _, address in addresses), ranks[0])


def _refuse_other_jobs(jobs: Mapping[str, object], me: tuple[str, int]) -> None:
    others = [job for job in (*jobs, me[0]) if job not in _JOBS]
    if others:
        raise InputError(
            f"{VARIABLE}: jobs should be chief and worker; tables are divided over the workers, not over "
            f"parameter servers. Received: {others[0]}"
        )
