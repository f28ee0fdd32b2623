from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.chassis.errors import BridgeError
from services.reducer.aggregation import request
from services.reducer.aggregation.config import SECOND, Config, Gap, Hopping, Strategy, Tumbling
from services.reducer.aggregation.error import SessionConfigDiffers

NOW = 1_800_000_000 * SECOND
DEFAULTS = Config(
    strategies=(Strategy.NAMESPACE_GROUPING,),
    by_namespace=False,
    window=Tumbling(5 * SECOND),
    watermark_delay=0,
    allowed_lateness=10 * SECOND,
    early_period=SECOND,
    retention=3600 * SECOND,
    max_wait=SECOND // 10,
    size_bounds=(1024,),
    custom_fold="",
    exact_distinct=256,
)


def config_of(**fields: Any) -> pb.AggregationConfig:
    return ParseDict(fields, pb.AggregationConfig())


def columns_of(count: int = 3, **fields: Any) -> pb.ItemColumns:
    return pb.ItemColumns(**{"first_offset": 1, "event_times_us": [NOW] * count, **fields})


def batch_of(message: pb.ItemBatch | pb.ItemColumns, *, payloads: bool = False) -> request.Batch:
    return request.to_batch(message, limit=10_000, latest=NOW + 60 * SECOND, payloads=payloads)


def item(**fields: Any) -> pb.Item:
    made = pb.Item(**fields)
    made.event_time.FromSeconds(NOW // SECOND)
    return made


def at(second: int) -> pb.Item:
    made = pb.Item()
    made.event_time.seconds = second
    return made


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"strategies": [0]}, "open.config.strategies[0]"),
        ({"strategies": [1, 99]}, "open.config.strategies[1]"),
        ({"strategies": [1, 1]}, "open.config.strategies[1]"),
        ({"strategies": [6]}, "open.config.custom_fold"),
        ({"custom_fold": "size_histogram"}, "open.config.custom_fold"),
        ({"tumbling": {}}, "open.config.tumbling.size"),
        ({"tumbling": {"size": "0s"}}, "open.config.tumbling.size"),
        ({"tumbling": {"size": "-1s"}}, "open.config.tumbling.size"),
        ({"tumbling": {"size": "2678401s"}}, "open.config.tumbling.size"),
        ({"hopping": {"size": "5s"}}, "open.config.hopping.hop"),
        ({"hopping": {"size": "5s", "hop": "6s"}}, "open.config.hopping.hop"),
        ({"hopping": {"size": "101s", "hop": "1s"}}, "open.config.hopping.hop"),
        ({"session_window": {"gap": "0s"}}, "open.config.session_window.gap"),
        ({"allowed_lateness": "-1s"}, "open.config.allowed_lateness"),
        ({"watermark_delay": "-0.001s"}, "open.config.watermark_delay"),
        ({"early_period": "-1s"}, "open.config.early_period"),
        ({"retention": "2678401s"}, "open.config.retention"),
        ({"tumbling": {"size": "1s"}, "retention": "10001s"}, "open.config.retention"),
        ({"max_wait": "11s"}, "open.config.max_wait"),
        ({"size_bounds": [10, 10]}, "open.config.size_bounds[1]"),
        ({"size_bounds": [0]}, "open.config.size_bounds[0]"),
        ({"size_bounds": list(range(1, 66))}, "open.config.size_bounds"),
        ({"exact_distinct": 10_001}, "open.config.exact_distinct"),
        ({"exact_distinct": -1}, "open.config.exact_distinct"),
    ],
    ids=str,
)
def test_a_configuration_at_fault_is_refused_with_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BridgeError) as refused:
        request.to_config(config_of(**fields), DEFAULTS)
    assert refused.value.reason == errors_pb2.ERROR_REASON_INVALID_FIELD
    assert [violation.field for violation in refused.value.violations] == [field]


def test_what_a_configuration_leaves_out_is_as_the_contract_says() -> None:
    assert request.to_config(pb.AggregationConfig(), DEFAULTS) == DEFAULTS


def test_a_configuration_may_say_everything() -> None:
    asked = config_of(
        strategies=[4, 6],
        by_namespace=True,
        hopping={"size": "10s", "hop": "3s"},
        watermark_delay="1s",
        allowed_lateness="0s",
        early_period="0s",
        retention="60s",
        max_wait="0s",
        size_bounds=[5, 7],
        custom_fold="size_histogram",
        exact_distinct=0,
    )
    assert request.to_config(asked, DEFAULTS) == Config(
        (Strategy.SIZE_BUCKETS, Strategy.CUSTOM),
        True,
        Hopping(10 * SECOND, 3 * SECOND),
        SECOND,
        0,
        0,
        60 * SECOND,
        0,
        (5, 7),
        "size_histogram",
        0,
    )
    short = request.to_config(config_of(session_window={"gap": "0.001s"}), DEFAULTS)
    assert (short.window, short.retention) == (Gap(1000), 10 * SECOND)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"strategies": [2]}, "open.config.strategies"),
        ({"tumbling": {"size": "6s"}}, "open.config.tumbling"),
        ({"session_window": {"gap": "5s"}}, "open.config.session_window"),
        ({"allowed_lateness": "1s"}, "open.config.allowed_lateness"),
        ({"by_namespace": True}, "open.config.by_namespace"),
    ],
    ids=str,
)
def test_another_configuration_of_a_session_is_refused_with_the_field_that_differs(
    fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(SessionConfigDiffers) as refused:
        request.check_config("uploads", config_of(**fields), DEFAULTS)
    assert refused.value.metadata == {"session": "uploads", "field": field}


def test_a_session_is_resumed_with_its_own_configuration_or_with_none() -> None:
    request.check_config("uploads", pb.AggregationConfig(), DEFAULTS)
    request.check_config("uploads", config_of(strategies=[1], tumbling={"size": "5s"}), DEFAULTS)


def test_items_and_columns_say_the_same() -> None:
    items = pb.ItemBatch(
        first_offset=7,
        items=[item(namespace="a", file_type="text", workflow_id="w1", workflow_state="FAILED", size_bytes=5), item()],
    )
    columns = columns_of(
        2,
        first_offset=7,
        sizes_bytes=[5, 0],
        texts=["a", "text", "w1", "FAILED", ""],
        namespaces=[0, 4],
        file_types=[1, 4],
        workflow_ids=[2, 4],
        workflow_states=[3, 4],
    )
    assert batch_of(items).columns == batch_of(columns).columns
    assert list(batch_of(items).offsets) == list(batch_of(columns).offsets) == [7, 8]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.ItemBatch(first_offset=1), "items.items"),
        (pb.ItemBatch(items=[item()]), "items.first_offset"),
        (pb.ItemBatch(first_offset=-4, items=[item()]), "items.first_offset"),
        (pb.ItemBatch(first_offset=1, items=[item()] * 10_001), "items.items"),
        (columns_of(10_001), "columns.event_times_us"),
        (columns_of(0), "columns.event_times_us"),
        (columns_of(sizes_bytes=[1]), "columns.sizes_bytes"),
        (columns_of(texts=["a"], namespaces=[0, 0]), "columns.namespaces"),
        (columns_of(texts=["a"], file_types=[0, 0, 1]), "columns.file_types"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_message_at_fault_is_refused_with_its_field(message: pb.ItemBatch | pb.ItemColumns, field: str) -> None:
    with pytest.raises(BridgeError) as refused:
        batch_of(message)
    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        (pb.Item(), "event_time"),
        (at(NOW // SECOND + 61), "event_time"),
        (at(253_402_300_800), "event_time"),
        (at(-1), "event_time"),
        (item(size_bytes=-1), "size_bytes"),
        (item(namespace="n" * 256), "namespace"),
        (item(file_type="a\0b"), "file_type"),
        (item(workflow_id="n" * 441), "workflow_id"),
        (item(workflow_state="n" * 65), "workflow_state"),
        (item(payload_json="[]"), "payload_json"),
        (item(payload_json="{"), "payload_json"),
        (item(payload_json=f'{{"a":"{"x" * 4096}"}}'), "payload_json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_item_at_fault_is_told_with_its_field_and_passed_over(fault: pb.Item, field: str) -> None:
    batch = batch_of(pb.ItemBatch(first_offset=11, items=[item(), fault, item()]), payloads=True)
    assert [(invalid.offset, invalid.field) for invalid in batch.invalid] == [(12, f"items[1].{field}")]
    assert list(batch.offsets) == [11, 13]
    assert len(batch.columns.times) == 2
    assert batch.last_offset == 13


def test_payloads_that_nobody_reads_are_not_looked_at() -> None:
    assert batch_of(pb.ItemBatch(first_offset=1, items=[item(payload_json="{")])).columns.payloads == [""]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "heartbeat.offset"),
        ({"offset": 1}, "heartbeat.event_time"),
        ({"offset": 1, "event_time": {"seconds": NOW // SECOND + 61}}, "heartbeat.event_time"),
    ],
    ids=str,
)
def test_a_heartbeat_at_fault_is_refused_with_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BridgeError) as refused:
        request.to_heartbeat(pb.Heartbeat(**fields), latest=NOW + 60 * SECOND)
    assert [violation.field for violation in refused.value.violations] == [field]
