"""The sidecar's own responses."""

import pytest

from meshrun.proxy.http.answers import answer, grpc_status
from meshrun.proxy.http.heads import COUNTED, NO_BODY


def test_answer_of_http() -> None:
    head, body = answer(403, "this call is not allowed here")
    assert body == b"this call is not allowed here\n"
    assert (head.status, head.framing) == (403, COUNTED)
    assert head.length == len(body)
    assert head.fields == [("content-type", "text/plain; charset=utf-8")]
    assert head.keeps_alive


def test_answer_of_grpc_is_a_head_only() -> None:
    head, body = answer(403, "not allowed", grpc=True)
    assert body == b""
    assert (head.status, head.framing, head.length) == (200, NO_BODY, None)
    assert dict(head.fields) == {
        "content-type": "application/grpc",
        "grpc-status": "7",
        "grpc-message": "not allowed",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("100% \u00e9", "100%25 %C3%A9"),
        ("a\r\nb\0\x7f", "a%0D%0Ab%00%7F"),
        (" ~!\"#$&'()*+,/:;<=>?@[\\]^`{|}", " ~!\"#$&'()*+,/:;<=>?@[\\]^`{|}"),
    ],
)
def test_message_of_grpc_is_percent_encoded(text: str, message: str) -> None:
    assert dict(answer(503, text, grpc=True)[0].fields)["grpc-message"] == message


@pytest.mark.parametrize(
    ("status", "grpc"),
    [(400, 13), (401, 16), (403, 7), (404, 12), (408, 4), (429, 8), (431, 8), (503, 14), (504, 4)],
)
def test_status_of_grpc(status: int, grpc: int) -> None:
    assert grpc_status(status) == grpc


def test_status_of_grpc_for_any_other_is_unknown() -> None:
    assert grpc_status(418) == 2
