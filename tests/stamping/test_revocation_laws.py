"""What holds after any order of creations and revocations of a few requests for one content."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omninode.bridge.errors.v1 import errors_pb2
from omninode.bridge.stamping.v1 import stamping_pb2 as pb
from services.chassis.errors import FailedPrecondition
from tests.stamping.node import stamping_stub
from tests.stamping.sample import creation, revocation

REQUESTS = ("a", "b", "c", "d")
Step = tuple[str, str]

steps = st.tuples(st.sampled_from(["create", "revoke"]), st.sampled_from(REQUESTS))


@pytest.fixture(scope="module")
def ledger_url(postgres_server: str, migrated_template: str) -> str:
    """A database for all examples: each has a namespace of its own. It goes with the server."""
    name = f"test_{uuid.uuid4().hex}"

    async def make() -> None:
        connection = await asyncpg.connect(postgres_server)
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
        await connection.close()

    asyncio.run(make())
    return urlunsplit(urlsplit(postgres_server)._replace(path=f"/{name}"))


class Model:
    """The ledger of one content, as it should be."""

    def __init__(self) -> None:
        self.version = 0
        self.standing: set[str] = set()
        """The unreleased claims on the current version."""
        self.released: set[str] = set()
        """Requests that were revoked, before or after they came."""

    def create(self, request: str) -> int | None:
        """The version that the request is given; None where it is refused."""
        if request in self.released:
            return None
        if not self.standing:
            self.version += 1
        self.standing.add(request)
        return self.version

    def revoke(self, request: str) -> bool:
        """Whether this revokes the stamp."""
        last = self.standing == {request}
        self.standing.discard(request)
        self.released.add(request)
        return last


@settings(max_examples=40)
@given(order=st.lists(steps, min_size=1, max_size=14))
def test_any_order_of_creations_and_revocations_does_what_the_model_does(ledger_url: str, order: list[Step]) -> None:
    asyncio.run(_in_order(ledger_url, order))


async def _in_order(url: str, order: Sequence[Step]) -> None:
    model, namespace = Model(), uuid.uuid4().hex
    async with stamping_stub(url) as stub:
        for verb, request in order:
            if verb == "create":
                version = model.create(request)
                if version is None:
                    with pytest.raises(FailedPrecondition) as caught:
                        await stub.CreateStamp(creation(request_id=request, namespace=namespace))
                    assert caught.value.reason == errors_pb2.ERROR_REASON_STAMP_REQUEST_REVOKED
                else:
                    stamp = (await stub.CreateStamp(creation(request_id=request, namespace=namespace))).stamp
                    assert (stamp.version, stamp.HasField("revoke_time")) == (version, False)
            else:
                came = request in model.standing
                revokes = model.revoke(request)
                answer = await stub.RevokeStamp(revocation(request, namespace=namespace))
                assert answer.revoked == revokes
                if came:
                    assert answer.remaining_claim_count == len(model.standing)
        page = await stub.ListStamps(pb.ListStampsRequest(namespace=namespace))
    versions = [stamp.version for stamp in page.stamps]
    assert versions == list(range(model.version, 0, -1))
    assert [stamp.version for stamp in page.stamps if not stamp.HasField("revoke_time")] == (
        [model.version] if model.standing else []
    )


@settings(max_examples=15)
@given(script=st.lists(steps, min_size=2, max_size=16))
def test_at_once_a_stamp_stands_where_a_claim_stands_and_versions_have_no_gap(
    ledger_url: str, script: list[Step]
) -> None:
    asyncio.run(_at_once(ledger_url, script))


async def _at_once(url: str, script: Sequence[Step]) -> None:
    namespace = uuid.uuid4().hex
    async with stamping_stub(url) as one, stamping_stub(url) as two:
        answers = await asyncio.gather(
            *(
                replica.CreateStamp(creation(request_id=request, namespace=namespace))
                if verb == "create"
                else replica.RevokeStamp(revocation(request, namespace=namespace))
                for (verb, request), replica in zip(script, [one, two] * len(script), strict=False)
            ),
            return_exceptions=True,
        )
        page = await one.ListStamps(pb.ListStampsRequest(namespace=namespace))
    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    assert all(isinstance(failure, FailedPrecondition) for failure in failures), failures
    # The list is in the order of the ids, which two replicas make before either has the version.
    newest_first = sorted(page.stamps, key=lambda stamp: -stamp.version)
    standing = [stamp for stamp in newest_first if not stamp.HasField("revoke_time")]
    assert [stamp.version for stamp in newest_first] == list(range(len(newest_first), 0, -1))
    # Who was created and never revoked claims a stamp that stands; of all others the claims are released.
    revoked = {request for verb, request in script if verb == "revoke"}
    claims = {request for verb, request in script if verb == "create"} - revoked
    assert len(standing) == (1 if claims else 0)
    assert standing == newest_first[: len(standing)]
    revocations = [answer for answer in answers if isinstance(answer, pb.RevokeStampResponse) and answer.revoked]
    assert len(revocations) == len(page.stamps) - len(standing)
