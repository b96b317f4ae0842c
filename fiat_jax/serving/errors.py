"""What a client is told when its request is not answered, in the form that OpenAI's clients read."""

from fiat_jax.errors import UserError


class ApiError(Exception):
    """An answer that is an error: its HTTP status, a message for people, and the field that is to blame."""

    def __init__(self, status: int, message: str, *, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def body(self) -> dict[str, object]:
        """The JSON object of the answer."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.status}}


def refused(error: UserError, param: str | None = None) -> ApiError:
    """Return what a client is told of its own mistake."""
    return ApiError(400, str(error), param=param)
