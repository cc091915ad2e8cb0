"""What a failure of the Hub means."""

from __future__ import annotations

from dataclasses import dataclass, field
from email.utils import formatdate

import pytest

from matforge.vulcan.errors import Failure, judge, retry_after
from tests.vulcan.staging import NOW


@dataclass
class Response:
    """As much of an answer as is looked at."""

    status_code: int
    headers: dict[str, str] = field(default_factory=dict)


class AnsweredError(Exception):
    """An error with an answer, as the client raises it."""

    def __init__(self, status: int, message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.response = Response(status, {k.replace("_", "-"): v for k, v in headers.items()})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, Failure.RATE_LIMITED),
        *((status, Failure.TRANSIENT) for status in (408, 409, 412, 500, 502, 503, 504, 520)),
        *((status, Failure.CONFIGURATION) for status in (401, 403, 404, 410)),
        *((status, Failure.REJECTED) for status in (400, 413, 422)),
    ],
)
def test_the_status_decides(status: int, kind: Failure) -> None:
    assert judge(AnsweredError(status, "why"), NOW).kind is kind
    assert judge(AnsweredError(status, "why"), NOW).message == f"{status}: why"


def test_the_errors_of_every_http_library_are_known() -> None:
    """D20: the reference tests for the classes of one library, and the client uses another."""
    import httpx2

    for error in (httpx2.ConnectError("no"), httpx2.RemoteProtocolError("no"), httpx2.ReadTimeout("no")):
        assert judge(error, NOW).kind is Failure.TRANSIENT
    for builtin in (ConnectionResetError("no"), TimeoutError("no"), OSError("no")):
        assert judge(builtin, NOW).kind is Failure.TRANSIENT
    other = type("ConnectionError", (Exception,), {})  # as another library names it
    assert judge(other("no"), NOW).kind is Failure.TRANSIENT
    assert judge(ValueError("bad metadata"), NOW).kind is Failure.REJECTED


def test_causes_are_looked_through() -> None:
    outer = RuntimeError("Error while uploading")
    outer.__cause__ = AnsweredError(503, "busy")
    assert judge(outer, NOW).kind is Failure.TRANSIENT


def test_working_offline_is_a_matter_of_configuration() -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    assert judge(OfflineModeIsEnabled("offline"), NOW).kind is Failure.CONFIGURATION
    assert judge(LocalEntryNotFoundError("no connection"), NOW).kind is Failure.TRANSIENT


@pytest.mark.parametrize(
    ("headers", "text", "wait"),
    [
        ({}, "", None),
        ({"Retry-After": "120"}, "", 120.0),
        ({"retry-after": "1.5"}, "", 1.5),
        ({"Retry-After": formatdate(NOW + 90, usegmt=True)}, "", 90.0),
        ({"Retry-After": formatdate(NOW - 90, usegmt=True)}, "", 0.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:15:00 -0000"}, "", 100.0),
        ({"Retry-After": "soon"}, "", None),
        ({"RateLimit": '"api";r=0;t=55'}, "", 55.0),
        ({"RateLimit": '"api";r=10;t=55'}, "", None),
        ({}, "You can retry this action in 43 minutes.", 2580.0),
        ({}, "please try again in about 1 hour", 3600.0),
        ({}, "retry in an hour", 3600.0),
        ({}, "Retry after 271 seconds", 271.0),
        ({}, "wait a moment", None),
        ({"Retry-After": "5"}, "retry in 2 minutes", 120.0),
        (
            {"RateLimit": '"api";r=949;t=271'},
            "Rate limited. Retry after 271 seconds (949/1000 requests remaining in current 300s window). "
            "You have exceeded your quota of commits: retry in about 1 hour.",
            3600.0,
        ),
        ({}, "Retry after 271 seconds (949/1000 requests remaining in current 300s window).", None),
    ],
)
def test_the_wait_is_found_in_whatever_form_it_is_told(
    headers: dict[str, str], text: str, wait: float | None
) -> None:
    """D22: dates and words are ignored by the reference; the quota of commits is told in words only."""
    assert retry_after(headers, text, NOW) == wait
