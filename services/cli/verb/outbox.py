"""`omnibridge outbox`: who consumes the outbox, and what is in it."""

from __future__ import annotations

from typing import Annotated

import typer

from omninode.bridge.store.v1 import store_pb2
from omninode.bridge.store.v1.store_pb2_grpc import StoreServiceStub
from services.cli import console, interruption, listing, store_report, watch
from services.cli.following import Patience
from services.cli.option import AsJson, Consumer, Count, Cursor, FromBeginning
from services.cli.target import STORE, StoreTarget

app = typer.Typer(add_completion=False, help="Show who consumes the outbox, and follow it.")


@app.command()
def consumers(
    partitions: Annotated[bool, typer.Option("--partitions", help="Show a row for each partition.")] = False,
    as_json: AsJson = False,
    store: StoreTarget = STORE.default,
) -> None:
    """List the registered consumers, with how far behind they are."""
    interruption.run(
        listing.show(
            STORE,
            store,
            lambda stub: stub.ListConsumers,
            store_pb2.ListConsumersRequest(),
            items=lambda page: page.consumers,
            table=store_report.consumer_partitions if partitions else store_report.consumers,
            what="consumer",
            as_json=as_json,
        )
    )


@app.command(name="watch")
def watch_(
    consumer: Consumer,
    *,
    partition: Annotated[int, typer.Option(min=0, metavar="N", help="The partition.", show_default=False)],
    from_beginning: FromBeginning = False,
    cursor: Cursor = "",
    ack: Annotated[bool, typer.Option("--ack", help="Acknowledge what was printed.")] = False,
    count: Count = None,
    as_json: AsJson = False,
    store: StoreTarget = STORE.default,
) -> None:
    """Follow the events of one partition as a consumer, a line each, until Ctrl-C.

    It begins behind what the consumer acknowledged last; a new consumer begins now.

    A new one is registered: no event is dropped that it has not acknowledged, in any partition, until `outbox forget`.

    It reconnects by itself while the node is away, and at its end it says the cursor to go on from.
    """
    request = store_pb2.WatchOutboxRequest(
        consumer=consumer, partition=partition, cursor=cursor, from_beginning=from_beginning
    )

    acknowledged = 0

    async def acknowledge(
        stub: StoreServiceStub, patience: Patience, response: store_pb2.WatchOutboxResponse, printed: int
    ) -> None:
        nonlocal acknowledged
        is_whole = printed == len(response.items)
        next_offset = response.next_offset if is_whole else response.items[printed].offset
        if ack and next_offset > acknowledged:
            done = store_pb2.AckOutboxRequest(consumer=consumer, partition=partition, offset=next_offset - 1)
            await patience.through(lambda: stub.AckOutbox(done))
            acknowledged = next_offset

    interruption.run(
        watch.watch(
            STORE,
            store,
            lambda stub: stub.WatchOutbox,
            request,
            store_report.event,
            as_json=as_json,
            count=count,
            settle=acknowledge,
        )
    )


@app.command()
def forget(consumer: Consumer, store: StoreTarget = STORE.default) -> None:
    """Forget a consumer: its unread events are kept no longer than any others."""
    interruption.run(_forget(consumer, store))


async def _forget(consumer: str, target: str) -> None:
    async with STORE.at(target) as stub:
        await stub.DeleteConsumer(store_pb2.DeleteConsumerRequest(consumer=consumer))
    console.say(f"forgot {consumer}")
