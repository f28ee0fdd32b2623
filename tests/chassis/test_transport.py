"""What holds for every call of every node: typed refusals both ways, deadlines, correlation, retries, draining, metrics."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import BaseModel, TypeAdapter, ValidationError

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.stamping.v1.stamping_pb2 import HashRequest, HashResponse
from services.chassis import errors
from services.chassis.call_context import CORRELATION_METADATA, correlation_id
from services.chassis.client import ClientSettings, InvalidTarget, resolve
from services.chassis.port import free_ports
from services.chassis.server import PortInUse, Server, ServerSettings
from services.chassis.status import from_rpc_error
from services.chassis.telemetry import JsonFormatter
from tests.chassis.echo import PATH, SERVICE, Answers, Behavior, Caller, Echo, answer, calling, serving

ONCE = ClientSettings(attempts=1)
"""No retries: the test counts calls or wants the first refusal."""


class _Typed(BaseModel):
    name: str
    size: int


def refusing(error: BaseException) -> Behavior:
    async def behave(_request: HashRequest) -> HashResponse:
        raise error

    return behave


async def collect(answers: AsyncIterator[HashResponse]) -> list[HashResponse]:
    return [answer async for answer in answers]


SHAPES: dict[str, Callable[[Caller], Awaitable[Any]]] = {
    "unary": lambda caller: caller.unary(b"x"),
    "upload": lambda caller: caller.upload(b"x", b"y"),
    "download": lambda caller: collect(caller.download(b"x")),
    "both": lambda caller: collect(caller.both(b"x", b"y")),
}
by_shape = pytest.mark.parametrize("call", SHAPES.values(), ids=SHAPES.keys())

REFUSALS = [
    (kind("said", metadata={"a": "1"}, reason=errors_pb2.ERROR_REASON_QUEUE_FULL, retry_delay=2.5), kind)
    for kind in errors.KINDS.values()
]


@by_shape
@pytest.mark.parametrize(("raised", "kind"), REFUSALS, ids=[kind.__name__ for _, kind in REFUSALS])
async def test_a_refusal_is_raised_again_on_the_other_side_with_its_kind_reason_and_metadata(
    call: Callable[[Caller], Awaitable[Any]], raised: errors.BridgeError, kind: type[errors.BridgeError]
) -> None:
    async with serving(Echo(refusing(raised))) as (_, target), calling(target, ONCE) as caller:
        with pytest.raises(kind, match="said") as caught:
            await call(caller)
    assert caught.value.reason == errors_pb2.ERROR_REASON_QUEUE_FULL
    assert caught.value.metadata == {"a": "1"}
    assert caught.value.retry_delay == 2.5


async def test_a_stream_delivers_what_came_before_the_refusal() -> None:
    async with serving(Echo(refusing(errors.NotFound()))) as (_, target), calling(target, ONCE) as caller:
        answers = caller.download(b"x")
        assert (await anext(answers)).digest == "first"
        with pytest.raises(errors.NotFound):
            await anext(answers)


async def test_a_refusal_in_the_middle_of_an_upload_is_not_lost_to_the_writes_that_follow() -> None:
    chunks = [bytes(64 * 1024)] * 200
    async with serving(Echo(refusing(errors.NotFound("said")))) as (_, target), calling(target, ONCE) as caller:
        for _ in range(20):
            with pytest.raises(errors.NotFound, match="said"):
                await caller.upload(*chunks)
            with pytest.raises(errors.NotFound, match="said"):
                await collect(caller.both(*chunks))


async def test_a_validation_error_names_each_field_at_fault() -> None:
    with pytest.raises(ValidationError) as invalid:
        _Typed.model_validate({"size": "many"})
    async with serving(Echo(refusing(invalid.value))) as (_, target), calling(target) as caller:
        with pytest.raises(errors.InvalidArgument) as caught:
            await caller.unary()
    assert [violation.field for violation in caught.value.violations] == ["name", "size"]
    assert caught.value.reason_name == "INVALID_FIELD"


def refusal_of_much(text: str) -> errors.InvalidArgument:
    with pytest.raises(ValidationError) as invalid:
        TypeAdapter(dict[str, int]).validate_python({f"{text} {i}": "many" for i in range(500)})
    return errors.from_validation(invalid.value)


@by_shape
@pytest.mark.parametrize(
    "raised",
    [
        refusal_of_much("x"),
        refusal_of_much("\0\U0010ffff" * 500),
        errors.NotFound("\0\U0010ffff" * 5000, metadata={"a": "\0" * 5000, "b": "\ud800"}),
        errors.invalid_field("\U0010ffff" * 5000, "\ud800" * 5000),
    ],
    ids=["many violations", "many long ones", "a long message", "a long field"],
)
async def test_a_refusal_with_more_to_say_than_trailers_hold_keeps_its_kind_and_reason(
    call: Callable[[Caller], Awaitable[Any]], raised: errors.BridgeError
) -> None:
    async with serving(Echo(refusing(raised))) as (_, target), calling(target, ONCE) as caller:
        with pytest.raises(type(raised)) as caught:
            await call(caller)
    assert caught.value.reason == raised.reason
    assert caught.value.message == raised.message
    assert caught.value.violations == raised.violations


def test_of_many_violations_the_first_are_said_and_the_message_counts_them_all() -> None:
    refusal = refusal_of_much("x")
    assert refusal.violations[0].field == "x 0"
    assert 10 < len(refusal.violations) < 500
    assert refusal.message.startswith("500 fields are at fault, the first: x 0: ")
    assert refusal.message.endswith("…")


async def test_a_client_without_our_code_reads_the_refusal_as_google_rpc_status() -> None:
    refusing_server = serving(Echo(refusing(errors.invalid_field("name", "must be short"))))
    async with refusing_server as (_, target), grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_unary(PATH + "Unary", HashRequest.SerializeToString, HashResponse.FromString)(
            HashRequest()
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        status = await rpc_status.aio.from_call(call)
    assert status is not None
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad_request)
    assert (info.reason, info.domain, dict(info.metadata)) == ("INVALID_FIELD", "bridge.omninode", {"field": "name"})
    assert [(item.field, item.description) for item in bad_request.field_violations] == [("name", "must be short")]


@by_shape
async def test_a_bug_answers_internal_error_and_leaks_nothing(
    call: Callable[[Caller], Awaitable[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Echo(refusing(RuntimeError("the password is 1234")))) as (_, target), calling(target) as caller:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(caller)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "internal error"
    assert "1234" not in str(caught.value.trailing_metadata())
    assert "1234" in caplog.text


async def raw_call(target: str, method: str, payload: bytes) -> grpc.aio.AioRpcError:
    async with grpc.aio.insecure_channel(target) as channel:
        call: Any = channel.stream_unary(method, None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(iter([payload]))
    return caught.value


METHODS = [
    PATH + "Unary",
    PATH + "Upload",
    PATH + "Download",
    PATH + "Both",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]
PAYLOADS = {"noise": b"\xff\xff\xff", "cut": b"\x0a\x05ab", "a string that is not UTF-8": b"\x0a\x02\xff\xfe"}


@pytest.mark.parametrize(
    ("method", "payload"),
    [
        pytest.param(method, payload, id=f"{method.rsplit('/', 1)[1]}: {name}")
        for method in METHODS
        for name, payload in PAYLOADS.items()
        # The echo's own first field is bytes, which any bytes are.
        if not (method.startswith(PATH) and "UTF-8" in name)
    ],
)
async def test_bytes_that_are_no_message_are_a_typed_refusal(method: str, payload: bytes) -> None:
    async with serving(Echo()) as (_, target):
        error = await raw_call(target, method, payload)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    refusal = from_rpc_error(error)
    assert refusal is not None
    assert (refusal.reason_name, refusal.metadata["method"]) == ("MALFORMED_MESSAGE", method)


@by_shape
async def test_a_node_that_nobody_serves_is_a_refusal_with_its_service(
    call: Callable[[Caller], Awaitable[Any]],
) -> None:
    async with calling(f"127.0.0.1:{free_ports(1)[0]}", ONCE) as caller:
        with pytest.raises(errors.Unavailable, match=r"^[A-Za-z.0-9]+: no node answers$") as caught:
            await call(caller)
    assert caught.value.reason_name == "NODE_UNAVAILABLE"
    assert caught.value.metadata == {"service": "test.Echo"}
    assert caught.value.retry_delay


@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
async def test_a_call_that_grpc_itself_cuts_off_is_a_node_that_is_away(code: grpc.StatusCode) -> None:
    async def cut(_request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await context.abort(code, "RST_STREAM")

    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(cut)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(PATH.strip("/"), {"Unary": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with calling(f"127.0.0.1:{port}", ONCE) as caller:
            with pytest.raises(errors.Unavailable) as caught:
                await caller.unary(b"x")
    finally:
        await server.stop(None)
    assert (caught.value.reason_name, caught.value.metadata) == ("NODE_UNAVAILABLE", {"service": "test.Echo"})


def _health(caller: Caller) -> Any:
    """The stub, untyped as its package ships it."""
    stub: Any = health_pb2_grpc.HealthStub
    return stub(caller.channel)


def _reflection(caller: Caller) -> Any:
    """The stub, untyped as its package ships it."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub
    return stub(caller.channel)


async def test_the_health_of_an_unknown_service_is_a_typed_refusal() -> None:
    async with serving(Echo()) as (_, target), calling(target) as caller:
        stub = _health(caller)
        with pytest.raises(errors.NotFound) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="acme.v1.Acme"))
        serving_now = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE.full_name))
    assert caught.value.reason_name == "SERVICE_UNKNOWN"
    assert serving_now.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_lists_every_service() -> None:
    async with serving(Echo()) as (_, target), calling(target) as caller:
        messages: Any = health_pb2  # whose stubs leave this message out
        listed = await _health(caller).List(messages.HealthListRequest())
    serving_now = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
    assert dict(listed.statuses) == {"": serving_now, SERVICE.full_name: serving_now}


async def test_reflection_lists_the_contract_health_and_itself() -> None:
    async with serving(Echo()) as (_, target), calling(target) as caller:
        stub = _reflection(caller)

        async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        answers = [answer async for answer in stub.ServerReflectionInfo(ask())]
    names = {service.name for service in answers[0].list_services_response.service}
    assert names == {SERVICE.full_name, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_work_that_cannot_finish_in_the_callers_time_is_refused_before_it_begins() -> None:
    async def never(_request: HashRequest) -> HashResponse:
        raise AssertionError("began")

    async with serving(Echo(never), minimum_work_seconds=60) as (_, target), calling(target) as caller:
        with pytest.raises(errors.DeadlineExceeded) as caught:
            await caller.unary(timeout=5)
    assert caught.value.reason_name == "DEADLINE_TOO_SHORT"
    assert int(caught.value.metadata["remaining_ms"]) < 6000  # gRPC rounds a timeout up on its way


@by_shape
async def test_work_that_outlasts_the_callers_deadline_is_ended_with_a_typed_refusal(
    call: Callable[[Caller], Awaitable[Any]],
) -> None:
    ended = asyncio.Event()

    async def stuck(_request: HashRequest) -> HashResponse:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError("never")

    # A margin of most of the deadline: the refusal comes long before gRPC's own, so the reason tells who ended the work.
    async with serving(Echo(stuck), deadline_margin_seconds=9.9) as (_, target), calling(target) as caller:
        bound = _Bounded(caller.channel, 10.0)
        with pytest.raises(errors.DeadlineExceeded) as caught:
            await call(bound)
        await asyncio.wait_for(ended.wait(), 5)
    assert caught.value.reason_name == "DEADLINE_TOO_SHORT"


class _Bounded(Caller):
    """A caller whose every call has a deadline."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        super().__init__(channel)
        self._timeout = timeout

    async def unary(self, content: bytes = b"", **_options: Any) -> HashResponse:
        return await super().unary(content, timeout=self._timeout)

    async def upload(self, *contents: bytes, **_options: Any) -> HashResponse:
        return await super().upload(*contents, timeout=self._timeout)

    async def download(self, content: bytes = b"", *, method: str = "Download", **_options: Any) -> Answers:
        async for response in super().download(content, method=method, timeout=self._timeout):
            yield response

    async def both(self, *contents: bytes, **_options: Any) -> Answers:
        async for response in super().both(*contents, timeout=self._timeout):
            yield response


async def test_the_deadline_and_the_correlation_id_travel_through_a_hop() -> None:
    far = Echo()
    async with serving(far) as (_, far_target), calling(far_target) as onward:

        async def forward(request: HashRequest) -> HashResponse:
            return await onward.unary(request.content)

        near = Echo(forward)
        async with serving(near, deadline_margin_seconds=2.0) as (_, near_target), calling(near_target) as caller:
            await caller.unary(b"x", timeout=10, metadata=((CORRELATION_METADATA, "build-17"),))
    assert far.metadata[0][CORRELATION_METADATA] == "build-17"
    assert far.remaining[0] is not None
    # gRPC rounds a deadline up on its way, by some hundredths.
    assert 0 < far.remaining[0] < 9


@pytest.mark.parametrize("given", ["", "x" * 129], ids=["empty", "too long"])
async def test_a_correlation_id_that_would_spoil_the_log_is_replaced(given: str) -> None:
    seen: list[str] = []

    async def note(_request: HashRequest) -> HashResponse:
        seen.append(correlation_id.get())
        return HashResponse()

    async with serving(Echo(note)) as (_, target), calling(target) as caller:
        await caller.unary(metadata=((CORRELATION_METADATA, given),))
    assert len(seen[0]) == 32
    assert seen[0] != given


def failing_first(times: int, error: errors.BridgeError) -> tuple[Behavior, list[int]]:
    tries: list[int] = []

    async def behave(_request: HashRequest) -> HashResponse:
        tries.append(len(tries))
        if len(tries) <= times:
            raise error
        return HashResponse(digest="at last")

    return behave, tries


async def test_unavailable_is_tried_again_by_the_channel_itself() -> None:
    behave, tries = failing_first(2, errors.Unavailable())
    settings = ClientSettings(initial_backoff_seconds=0.01, max_backoff_seconds=0.01)
    async with serving(Echo(behave)) as (_, target), calling(target, settings) as caller:
        assert (await caller.unary()).digest == "at last"
    assert len(tries) == 3


async def test_a_refusal_with_pushback_is_not_tried_again() -> None:
    open_breaker = errors.Unavailable(reason=errors_pb2.ERROR_REASON_DATABASE_UNAVAILABLE)
    open_breaker.client_may_retry = False
    behave, tries = failing_first(2, open_breaker)
    async with serving(Echo(behave)) as (_, target), calling(target) as caller:
        with pytest.raises(errors.Unavailable) as caught:
            await caller.unary()
    assert len(tries) == 1
    assert not caught.value.client_may_retry


async def test_other_refusals_are_not_tried_again() -> None:
    behave, tries = failing_first(1, errors.Aborted())
    async with serving(Echo(behave)) as (_, target), calling(target) as caller:
        with pytest.raises(errors.Aborted):
            await caller.unary()
    assert len(tries) == 1


async def test_calls_go_round_robin_over_several_addresses() -> None:
    first, second = Echo(), Echo()
    async with serving(first) as (_, one), serving(second) as (_, two), calling(f"{one},{two}") as caller:
        # Both connections must stand before turns are taken, so calls go on until each side has seen one.
        async with asyncio.timeout(10):
            while not (first.metadata and second.metadata):
                await caller.unary()
        before = len(first.metadata), len(second.metadata)
        for _ in range(10):
            await caller.unary()
    assert (len(first.metadata) - before[0], len(second.metadata) - before[1]) == (5, 5)


@pytest.mark.parametrize(
    ("target", "resolved"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("[::1]:50051", "[::1]:50051"),
        ("stamping:50051", "dns:///stamping:50051"),
        ("dns:///stamping:50051", "dns:///stamping:50051"),
        ("127.0.0.1:1,127.0.0.2:2", "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ("[::1]:1, [::1]:2", "ipv6:[::1]:1,[::1]:2"),
    ],
)
def test_a_target_is_one_name_or_several_addresses(target: str, resolved: str) -> None:
    assert resolve(target) == resolved


@pytest.mark.parametrize(
    "target", ["", "stamping", "stamping:0", "stamping:http", "a:1,b:2", "127.0.0.1:1,[::1]:2", "127.0.0.1:1,"]
)
def test_a_target_that_is_neither_is_refused_by_name(target: str) -> None:
    with pytest.raises(InvalidTarget) as caught:
        resolve(target)
    assert "target" in caught.value.metadata


async def test_a_stop_ends_watches_at_once_and_lets_running_calls_finish() -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: HashRequest) -> HashResponse:
        if request.content == b"slow":
            began.set()
            await go_on.wait()
            return HashResponse(digest="finished")
        await asyncio.Event().wait()
        raise AssertionError("never")

    async with serving(Echo(slow), drain_seconds=30) as (server, target), calling(target, ONCE) as caller:
        health = _health(caller).Watch(health_pb2.HealthCheckRequest(service=""))
        statuses = aiter(health)
        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.SERVING
        watch = caller.download(b"watch", method="WatchDownload")
        assert (await anext(watch)).digest == "first"
        running = asyncio.create_task(caller.unary(b"slow"))
        await began.wait()
        stopping = asyncio.create_task(server.stop())
        with pytest.raises(errors.Unavailable) as caught:
            await asyncio.wait_for(anext(watch), 10)
        assert caught.value.reason_name == "SHUTTING_DOWN"
        assert not stopping.done()
        go_on.set()
        assert (await running).digest == "finished"
        await asyncio.wait_for(stopping, 10)


async def test_health_watchers_see_not_serving_before_the_end() -> None:
    async with serving(Echo(), drain_notice_seconds=0.05) as (server, target), calling(target, ONCE) as caller:
        statuses = aiter(_health(caller).Watch(health_pb2.HealthCheckRequest(service="")))
        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(server.stop())
        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(errors.Unavailable):
            await anext(statuses)
        await stopping


async def test_an_idle_reflection_stream_does_not_hold_up_a_stop() -> None:
    async with serving(Echo(), drain_seconds=30) as (server, target), calling(target, ONCE) as caller:
        requests: asyncio.Queue[reflection_pb2.ServerReflectionRequest] = asyncio.Queue()

        async def stay() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            while True:
                yield await requests.get()

        requests.put_nowait(reflection_pb2.ServerReflectionRequest(list_services=""))
        answers = aiter(_reflection(caller).ServerReflectionInfo(stay()))
        await anext(answers)
        await asyncio.wait_for(server.stop(), 10)
        with pytest.raises(errors.Unavailable):
            await anext(answers)


async def test_a_caller_that_leaves_a_watch_is_counted_as_cancelled_and_forgotten() -> None:
    registry = CollectorRegistry()
    left = asyncio.Event()

    async def stay(_request: HashRequest) -> HashResponse:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        raise AssertionError("never")

    async with serving(Echo(stay), registry=registry) as (server, target):
        async with calling(target) as caller:
            watch = caller.download(method="WatchDownload")
            await anext(watch)
            await watch.aclose()
            await asyncio.wait_for(left.wait(), 10)
        await server.stop()
    assert _count(registry, "WatchDownload", "CANCELLED") == 1


async def test_an_upload_that_is_cut_is_never_taken_for_a_whole_one() -> None:
    registry = CollectorRegistry()
    uploads = 100
    arrived = asyncio.Semaphore(0)

    async def arrive(request: HashRequest) -> HashResponse:
        arrived.release()
        return await answer(request)

    async def first_chunk() -> AsyncIterator[HashRequest]:
        yield HashRequest(content=b"first")
        await asyncio.Event().wait()

    echo = Echo(arrive)
    async with serving(echo, registry=registry) as (server, target):
        async with grpc.aio.insecure_channel(target) as channel:
            upload = channel.stream_unary(PATH + "Upload", HashRequest.SerializeToString, HashResponse.FromString)
            calls = [upload(first_chunk()) for _ in range(uploads)]
            async with asyncio.timeout(10):
                for _ in calls:
                    await arrived.acquire()
            for call in calls:
                call.cancel()
        await server.stop()
    assert _count(registry, "Upload", "CANCELLED") == uploads
    assert echo.whole_uploads == 0


def _count(registry: CollectorRegistry, method: str, code: str) -> float | None:
    labels = {"grpc_service": "test.Echo", "grpc_method": method, "grpc_code": code}
    samples = (sample for family in registry.collect() for sample in family.samples)
    return next(
        (
            sample.value
            for sample in samples
            if sample.name == "grpc_server_handled_total" and labels.items() <= sample.labels.items()
        ),
        None,
    )


async def test_metrics_count_calls_by_method_and_code_and_time_them() -> None:
    registry = CollectorRegistry()
    behave, _ = failing_first(1, errors.NotFound())
    async with serving(Echo(behave), registry=registry) as (_, target), calling(target) as caller:
        with pytest.raises(errors.NotFound):
            await caller.unary()
        await caller.unary()
        await caller.unary()
    assert (_count(registry, "Unary", "OK"), _count(registry, "Unary", "NOT_FOUND")) == (2, 1)
    text = generate_latest(registry).decode()
    assert (
        'grpc_server_handling_seconds_count{grpc_method="Unary",grpc_service="test.Echo",grpc_type="unary_unary"} 3.0'
        in text
    )


async def test_the_access_log_says_what_was_called_and_how_it_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="access")
    async with serving(Echo(refusing(errors.NotFound())), access_log=True) as (_, target), calling(target) as caller:
        with pytest.raises(errors.NotFound):
            await caller.unary(metadata=((CORRELATION_METADATA, "c-1"),))
    record = next(record for record in caplog.records if record.name == "access")
    assert (record.__dict__["method"], record.__dict__["code"]) == (PATH + "Unary", "NOT_FOUND")


def test_a_log_line_is_one_json_object_with_node_correlation_and_trace() -> None:
    token = correlation_id.set("c-7")
    try:
        try:
            raise ValueError("two\nlines")
        except ValueError as error:
            record = logging.LogRecord(
                "room", logging.ERROR, "f.py", 1, "said %s", ("so",), (type(error), error, error.__traceback__)
            )
            record.size = 3
            line = JsonFormatter("stamping").format(record)
    finally:
        correlation_id.reset(token)
    assert "\n" not in line
    values = json.loads(line)
    assert (values["node"], values["correlation_id"], values["message"], values["size"]) == (
        "stamping",
        "c-7",
        "said so",
        3,
    )
    assert "ValueError" in values["trace"]


async def test_a_port_in_use_is_refused_by_its_address() -> None:
    async with serving(Echo()) as (server, _):
        second = Server(ServerSettings(port=server.port), CollectorRegistry())
        with pytest.raises(PortInUse, match=f"127.0.0.1:{server.port}"):
            await second.start()


async def test_a_burst_of_calls_on_one_connection_is_answered_and_not_cut() -> None:
    async with serving(Echo()) as (_, target), calling(target, ONCE) as caller:
        answers = await asyncio.gather(*(caller.unary(b"x") for _ in range(3000)))
    assert {answer.size_bytes for answer in answers} == {1}


async def test_more_than_a_message_may_hold_is_refused_by_grpc_itself() -> None:
    async with serving(Echo(), max_message_bytes=1000) as (_, target), calling(target) as caller:
        with pytest.raises(errors.ResourceExhausted):
            await caller.unary(b"x" * 2000)
        assert (await caller.unary(b"x" * 500)).size_bytes == 500
