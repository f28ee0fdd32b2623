"""A stamping node for the command's tests: it answers by the contract, keeps its ledger in memory, and refuses when it is told to.

The other nodes' fakes are in modules of their own; how a fake is served is here for all.

Its stamp is its own: a first line `# stamp <digest>`, in whatever is no JSON and holds no NUL.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import grpc
from blake3 import blake3
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.stamping.v1 import stamping_pb2 as pb
from services.chassis.errors import BridgeError, InvalidArgument, NotFound, to_message
from services.chassis.identity import op_id
from services.chassis.status import CODES, to_trailers

LIMIT = 10 * 1024 * 1024
MARK = b"# stamp "


class Fake(Protocol):
    """A servicer for threads."""

    service: ServiceDescriptor


class FakeFeed:
    """A feed that a test writes: what is answered to each call of it, one after another; to a later call nothing, for long."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self._scripts: deque[tuple[Message | BridgeError | Callable[[], object], ...]] = deque()

    def then(self, *script: Message | BridgeError | Callable[[], object]) -> FakeFeed:
        """One more call: messages are sent, an error ends it, anything else is called; after its last it is silent."""
        self._scripts.append(script)
        return self

    def answer(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self.requests.append(request)
        gone = threading.Event()
        if not context.add_callback(gone.set):
            return
        for step in self._scripts.popleft() if self._scripts else ():
            if isinstance(step, BridgeError):
                abort(context, step)
            elif isinstance(step, Message):
                yield step
            elif step() is END:
                return
        gone.wait(30)


END = object()
"""What a step of a script returns to end the stream."""


class FakeStamping:
    """The methods that the command calls, for threads. It records what it is asked."""

    service = pb.DESCRIPTOR.services_by_name["StampingService"]

    def __init__(self) -> None:
        self.refusals: dict[str, BridgeError] = {}
        """By method, what it answers with instead."""
        self.item_refusals: dict[str, BridgeError] = {}
        """By file_path."""
        self.batches: list[pb.BatchCreateStampsRequest] = []
        self.streams: list[tuple[pb.CreateStampHeader, list[int]]] = []
        self.listed: list[pb.ListStampsRequest] = []
        self.ledger: dict[tuple[str, str], pb.Stamp] = {}
        self.on_batch: Callable[[], object] = lambda: None
        self.feed = FakeFeed()
        self.revocations: list[pb.RevokeStampRequest] = []
        self.revocation = pb.RevokeStampResponse()
        """What it answers to each."""
        self._lock = threading.Lock()

    def BatchCreateStamps(
        self, request: pb.BatchCreateStampsRequest, context: grpc.ServicerContext
    ) -> pb.BatchCreateStampsResponse:
        self._refuse("BatchCreateStamps", context)
        with self._lock:
            self.batches.append(request)
        self.on_batch()
        return pb.BatchCreateStampsResponse(results=[self._item(item) for item in request.items])

    def CreateStampStream(
        self, request_iterator: Iterator[pb.CreateStampStreamRequest], context: grpc.ServicerContext
    ) -> pb.CreateStampStreamResponse:
        self._refuse("CreateStampStream", context)
        header = next(request_iterator).header
        chunks = [frame.chunk for frame in request_iterator]
        if not context.is_active():
            # grpcio may report a stream that was cut as one that ended.
            raise ConnectionAbortedError
        content = b"".join(chunks)
        with self._lock:
            self.streams.append((header, [len(chunk) for chunk in chunks]))
        stamp, created = self.record(header.request_id, header.namespace, header.file_path, content)
        return pb.CreateStampStreamResponse(stamp=stamp, created=created)

    def HashStream(
        self, request_iterator: Iterator[pb.HashStreamRequest], context: grpc.ServicerContext
    ) -> pb.HashStreamResponse:
        content = b"".join(request.chunk for request in request_iterator)
        return pb.HashStreamResponse(digest=blake3(content).hexdigest(), size_bytes=len(content))

    def ValidateStamp(
        self, request: pb.ValidateStampRequest, context: grpc.ServicerContext
    ) -> pb.ValidateStampResponse:
        self._refuse("ValidateStamp", context)
        stamp, content = split(request.content)
        if len(content) > LIMIT:
            abort(context, too_large())
        digest = blake3(content).hexdigest()
        response = pb.ValidateStampResponse(digest=digest)
        if stamp:
            found = stamp.removeprefix(MARK).strip().decode()
            valid = found == digest
            reason = "" if valid else "the content was changed"
            response.stamps.add(
                form=pb.STAMP_FORM_BLOCK,
                found_digest=found,
                current_digest=digest,
                valid=valid,
                invalid_reason=reason,
                line=1,
            )
            response.valid = valid
        if b"=== foreign" in content:
            response.foreign.add(line=2)
        if (request.namespace, digest) in self.ledger:
            response.ledger_stamp.CopyFrom(self.ledger[request.namespace, digest])
        return response

    def GetStamp(self, request: pb.GetStampRequest, context: grpc.ServicerContext) -> pb.GetStampResponse:
        self._refuse("GetStamp", context)
        stamp = self.ledger.get((request.namespace, request.digest))
        if stamp is None:
            reason = errors_pb2.ERROR_REASON_STAMP_NOT_FOUND
            abort(context, NotFound("there is no such stamp", reason=reason, metadata={"digest": request.digest}))
        return pb.GetStampResponse(stamp=stamp)

    def ListStamps(self, request: pb.ListStampsRequest, context: grpc.ServicerContext) -> pb.ListStampsResponse:
        self._refuse("ListStamps", context)
        self.listed.append(pb.ListStampsRequest.FromString(request.SerializeToString()))
        stamps = list(self.ledger.values())[::-1]
        begin = int(request.page_token or 0)
        end = begin + request.page_size
        token = str(end) if end < len(stamps) else ""
        return pb.ListStampsResponse(stamps=stamps[begin:end], next_page_token=token)

    def RevokeStamp(self, request: pb.RevokeStampRequest, context: grpc.ServicerContext) -> pb.RevokeStampResponse:
        self._refuse("RevokeStamp", context)
        self.revocations.append(request)
        return self.revocation

    def WatchStamps(
        self, request: pb.WatchStampsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchStampsResponse]:
        yield from self.feed.answer(request, context)

    def add(self, content: bytes, file_path: str, namespace: str = "omninode.services.metadata") -> pb.Stamp:
        """Put a stamp into the ledger."""
        return self.record("another", namespace, file_path, content)[0]

    def _item(self, item: pb.CreateStampRequest) -> pb.BatchCreateStampsResult:
        refusal = self.item_refusals.get(item.file_path)
        _, content = split(item.content)
        if len(content) > LIMIT:
            refusal = too_large()
        if refusal:
            return pb.BatchCreateStampsResult(error=to_message(refusal))
        stamp, created = self.record(item.request_id, item.namespace, item.file_path, content)
        response = pb.CreateStampResponse(stamp=stamp, created=created)
        if item.embed and not item.file_path.endswith(".json") and b"\0" not in content:
            response.stamped_content = MARK + stamp.digest.encode() + b"\n" + content
        return pb.BatchCreateStampsResult(stamped=response)

    def record(self, request_id: str, namespace: str, file_path: str, content: bytes) -> tuple[pb.Stamp, bool]:
        """The stamp of a content without its stamp, and whether this made it."""
        digest = blake3(content).hexdigest()
        content_type = "application/json" if file_path.endswith(".json") else "text/plain"
        with self._lock:
            if known := self.ledger.get((namespace, digest)):
                return known, False
            stamp = pb.Stamp(
                stamp_id=f"id-{len(self.ledger)}",
                digest=digest,
                namespace=namespace,
                op_id=str(op_id(request_id)),
                version=1,
                content_type=content_type,
                size_bytes=len(content),
                file_path=file_path,
            )
            stamp.create_time.FromSeconds(1_700_000_000)
            self.ledger[namespace, digest] = stamp
            return stamp, True

    def _refuse(self, method: str, context: grpc.ServicerContext) -> None:
        if method in self.refusals:
            abort(context, self.refusals[method])


def split(content: bytes) -> tuple[bytes, bytes]:
    """The fake's stamp line of a content (empty where there is none), and the rest."""
    if not content.startswith(MARK):
        return b"", content
    line, _, rest = content.partition(b"\n")
    return line + b"\n", rest


def too_large() -> InvalidArgument:
    """The refusal of more than 10 MiB."""
    return InvalidArgument("content is too large", reason=errors_pb2.ERROR_REASON_CONTENT_TOO_LARGE)


def abort(context: grpc.ServicerContext, error: BridgeError) -> None:
    """Refuse as a node does."""
    context.set_trailing_metadata(to_trailers(error))
    context.abort(CODES[error.code], error.message)


_SHAPES = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _handlers(servicer: Fake) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """The generated registration is for servers of grpc.aio; this one is for threads."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in servicer.service.methods:
        shape = _SHAPES[method.client_streaming, method.server_streaming]
        if behavior := getattr(servicer, method.name, None):
            request = GetMessageClass(method.input_type)
            handlers[method.name] = shape(behavior, request.FromString, lambda response: response.SerializeToString())
    return handlers


@contextmanager
def serving(servicer: Fake, port: int = 0) -> Iterator[str]:
    """The fake on `port`, or on a free one, on threads: the command has the main thread and its event loop to itself."""
    size = 16 * 1024 * 1024
    options = [
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", size),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.server(ThreadPoolExecutor(16), options=options)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(servicer.service.full_name, _handlers(servicer)),)
    )
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
