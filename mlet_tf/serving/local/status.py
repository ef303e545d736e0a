"""The error of the stand-in server: a code and a message for the caller."""

import grpc

Code = grpc.StatusCode


class StatusError(Exception):
    """A request that cannot be answered.

    Args:
        code: the gRPC code; REST derives its HTTP status from it.
        message: what the caller is told.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        """Code and message, as error texts quote them."""
        return f"{self.code.name}: {self.message}"


def invalid(message: str) -> StatusError:
    """The error for a request that is at fault itself."""
    return StatusError(Code.INVALID_ARGUMENT, message)
