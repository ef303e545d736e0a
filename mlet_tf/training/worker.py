"""One process of a distributed training: `python -m mlet_tf.training.worker FILE`, FILE as the chief wrote it."""

import hashlib
import sys

import tensorflow as tf

from mlet_tf import strict_json
from mlet_tf.distributed import Workers
from mlet_tf.errors import InputError
from mlet_tf.training.processes import LOST, REFUSED, TrainingArguments
from mlet_tf.training.trainer import fit_and_export

_LOSSES = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)


def main() -> None:
    """Takes part in one training."""
    arguments = TrainingArguments(**strict_json.read(sys.argv[1]))
    try:
        workers = Workers.join()
        digest = int.from_bytes(hashlib.sha256(arguments.inputs().encode()).digest()[:7], "big")
        if not workers.agree([digest]):
            raise InputError(
                f"{sys.argv[1]}: expected the arguments of the chief; a file of an earlier run may have been read"
            )
        fit_and_export(arguments, workers)
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    except _LOSSES as error:
        print(f"Another process was lost: {error.message.splitlines()[0]}", file=sys.stderr)
        sys.exit(LOST)


if __name__ == "__main__":
    main()
