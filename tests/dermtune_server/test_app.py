"""The HTTP side, through a real socket: every answer, every refusal."""

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from dermtune_bundle import Bundle
from dermtune_server.guard import Limits

TOKEN = "secret"  # noqa: S105 (of a server on loopback)
Start = Callable[..., httpx.Client]


def png(color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (56, 40), color).save(file, "PNG")
    return file.getvalue()


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (f"{index}.png", content)) for index, content in enumerate(contents)]


def test_images_are_answered_in_their_order_and_a_bad_one_by_itself(start: Start, tiny_bundle: Path) -> None:
    response = start().post("/v1/predict", files=files(png("red"), b"no image", png("blue")))
    assert response.status_code == 200
    first, second, third = response.json()["results"]
    assert (first["path"], first["predicted"]) == ("0.png", "mel")
    assert second["error"].startswith("this file: not a JPEG")
    assert "predicted" not in second
    assert third["predicted"] == "bcc"
    for one in (first, second, third):
        assert one["bundle"]["version"] == Bundle.open(tiny_bundle).version
        assert "Research use only" in one["notice"]
    assert "picture" not in first


def test_pictures_come_where_asked_for(start: Start) -> None:
    (found,) = start().post("/v1/predict?pictures=true", files=files(png())).json()["results"]
    assert found["picture"].startswith("/9j/")
    assert found["overlay"].startswith("/9j/")


def test_the_model_says_what_it_is(start: Start, tiny_bundle: Path) -> None:
    said = start().get("/v1/model").json()
    assert said["version"] == Bundle.open(tiny_bundle).version
    assert next(known["title"] for known in said["classes"]) == "Melanoma"
    assert said["metrics"]["balanced_accuracy"]["value"] == 0.7


def test_without_the_token_nothing_is_told(start: Start) -> None:
    client = start(token=TOKEN)
    for ask in (
        client.get("/v1/model"),
        client.get("/metrics"),
        client.post("/v1/predict", files=files(png())),
    ):
        assert ask.status_code == 401
        assert ask.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/model", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v1/model", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/healthz").status_code == client.get("/").status_code == 200


def test_too_much_is_refused_whether_its_length_is_told_or_not(start: Start) -> None:
    client = start(limits=Limits(max_bytes=10_000, max_files=2))
    assert client.post("/v1/predict", files=files(bytes(20_000))).status_code == 413

    def streamed() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield bytes(1000)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post("/v1/predict", content=streamed(), headers=headers).status_code == 413
    refused = client.post("/v1/predict", files=files(png(), png(), png()))
    assert refused.status_code == 422
    assert "at most 2 items" in refused.json()["detail"][0]["msg"]
    assert client.post("/v1/predict", files=files(png())).status_code == 200


def test_who_asks_too_often_waits(start: Start) -> None:
    client = start(limits=Limits(per_minute=3))
    assert [client.get("/v1/model").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert 1 <= int(client.get("/v1/model").headers["retry-after"]) <= 21
    assert client.get("/healthz").status_code == 200


def test_each_answer_has_its_id_and_lets_nothing_in_from_elsewhere(start: Start) -> None:
    client = start()
    one, other = client.get("/"), client.get("/v1/model")
    assert len({one.headers["x-request-id"], other.headers["x-request-id"]}) == 2
    assert one.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in one.headers["content-security-policy"]
    assert one.headers["cache-control"] == "no-store"


def test_counts_tell_requests_and_images_and_no_names(start: Start) -> None:
    client = start()
    client.post("/v1/predict", files=files(png(), b"no image"))
    client.get("/patient/Jane-Doe")
    said = client.get("/metrics").text
    assert 'dermtune_images_total{outcome="refused"} 1.0' in said
    assert 'dermtune_requests_total{path="/v1/predict",status="200"} 1.0' in said
    assert 'dermtune_requests_total{path="other",status="404"} 1.0' in said
    assert "Jane" not in said


def test_the_log_has_no_file_name(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "dermtune.serve"):
        start().post("/v1/predict", files=[("file", ("Jane-Doe.png", png()))])
        for _ in range(100):  # it is written once the answer is out
            if " POST /v1/predict 200 " in caplog.text:
                break
            time.sleep(0.02)
    assert " POST /v1/predict 200 " in caplog.text
    assert "Jane" not in caplog.text


def test_a_request_without_files_is_refused(start: Start) -> None:
    assert start().post("/v1/predict").status_code == 422
    assert (
        start().post("/v1/predict", content=b"x", headers={"content-type": "multipart/form-data"}).status_code
        == 400
    )
