"""Names of keys: one hash tag for each session and tenant, whatever an id or a tenant holds."""

import pytest
from redis.crc import key_slot

from adamd_service.store.keys import IndexKeys, SessionKeys


def test_the_default_tenants_keys_are_what_they_were():
    keys = IndexKeys("default")
    assert keys.names == "adamd:{index.default}:names"
    assert keys.sessions == "adamd:{index.default}:sessions"
    assert keys.deleted == "adamd:{index.default}:deleted"
    assert keys.littered == "adamd:{index.default}:littered"
    assert keys.claim("s_1") == "adamd:{index.default}:claim:s_1"
    assert keys.former("run-7") == "adamd:{index.default}:former:run-7"


@pytest.mark.parametrize("tenant", ["}", "a}b", "a%7Db", "{", "default}:names", ""])
def test_all_keys_of_a_tenant_lie_in_one_slot(tenant):
    keys = IndexKeys(tenant)
    all_keys = [keys.names, keys.sessions, keys.deleted, keys.claim("s_1"), keys.former("n}"), keys.idempotency("k")]
    assert len({key_slot(key.encode()) for key in all_keys}) == 1
    assert len(set(all_keys)) == len(all_keys)


def test_two_tenants_never_share_a_key():
    tenants = ["default", "default}:names", "default%7D:names", "default%257D:names", "}", "%7D", ""]
    assert len({IndexKeys(tenant).names for tenant in tenants}) == len(tenants)
    assert IndexKeys("}").names != IndexKeys("").names


@pytest.mark.parametrize("session_id", ["}", "a}b", "%7D", "%", ""])
def test_all_keys_of_a_session_lie_in_one_slot(session_id):
    keys = SessionKeys(session_id)
    all_keys = [keys.head, keys.ring, keys.garbage, keys.record(1), keys.chunk("a", 0), keys.fence("a")]
    assert len({key_slot(key.encode()) for key in all_keys}) == 1
