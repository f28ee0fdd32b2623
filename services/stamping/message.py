"""The ledger's values as the contract's messages. Pure; no rule is made here."""

from __future__ import annotations

from omninode.bridge.stamping.v1 import stamping_pb2
from services.chassis import timestamp
from services.chassis.json_struct import to_struct
from services.stamping import embedding
from services.stamping.domain import METADATA_VERSION, PROTOCOL_VERSION, Stamp, Verdict
from services.stamping.event import EventKind, StampEvent

FORMS = {
    embedding.Form.BLOCK: stamping_pb2.STAMP_FORM_BLOCK,
    embedding.Form.LIGHTWEIGHT: stamping_pb2.STAMP_FORM_LIGHTWEIGHT,
    embedding.Form.RICH: stamping_pb2.STAMP_FORM_RICH,
}
_RULES = {
    embedding.DigestRule.RAW: stamping_pb2.DIGEST_RULE_RAW,
    embedding.DigestRule.NORMALIZED: stamping_pb2.DIGEST_RULE_NORMALIZED_TEXT,
}
KINDS = {
    EventKind.CREATED: stamping_pb2.STAMP_EVENT_KIND_CREATED,
    EventKind.REVOKED: stamping_pb2.STAMP_EVENT_KIND_REVOKED,
    EventKind.VALIDATED: stamping_pb2.STAMP_EVENT_KIND_VALIDATED,
    EventKind.BATCH_PROCESSED: stamping_pb2.STAMP_EVENT_KIND_BATCH_PROCESSED,
}


def of_stamp(stamp: Stamp) -> stamping_pb2.Stamp:
    """A message of the stamp."""
    message = stamping_pb2.Stamp()
    fill(message, stamp)
    return message


def fill(message: stamping_pb2.Stamp, stamp: Stamp) -> None:
    """Sets the message to the stamp, in its place."""
    message.stamp_id = str(stamp.stamp_id)
    message.digest = stamp.digest.hex()
    message.namespace = stamp.namespace
    message.op_id = str(stamp.op_id)
    message.version = stamp.version
    message.metadata_version = METADATA_VERSION
    message.protocol_version = PROTOCOL_VERSION
    message.content_type = stamp.content_type
    message.size_bytes = stamp.size_bytes
    message.file_path = stamp.file_path
    timestamp.fill(message.create_time, stamp.created_at)
    if stamp.revoked_at:
        timestamp.fill(message.revoke_time, stamp.revoked_at)
    if stamp.intelligence_data != "{}":
        message.intelligence_data.CopyFrom(to_struct(stamp.intelligence_data))


def of_event(event: StampEvent) -> stamping_pb2.StampEvent:
    """A message of the event."""
    message = stamping_pb2.StampEvent(
        kind=KINDS[event.kind],
        namespace=event.namespace,
        reason=event.reason,
        stamped_count=event.stamped_count,
        refused_count=event.refused_count,
    )
    timestamp.fill(message.occur_time, event.occurred_at)
    if event.stamp is not None:
        fill(message.stamp, event.stamp)
    return message


def of_verdict(verdict: Verdict) -> stamping_pb2.EmbeddedStamp:
    """A message of the verdict and of the stamp that it is on."""
    stamp = verdict.stamp
    return stamping_pb2.EmbeddedStamp(
        form=FORMS[stamp.form],
        found_digest=stamp.digest,
        current_digest=verdict.current_digest,
        digest_rule=_RULES[stamp.rule],
        valid=not verdict.reason,
        invalid_reason=verdict.reason,
        fields=stamp.fields,
        line=stamp.line,
    )
