"""Wiring: the service opens on a good installation and names what is wrong with a bad one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.policy.api_keys import Pepper
from remit.policy.bootstrap import bootstrap_admin
from remit.policy.key_files import make_keys, make_pepper
from remit.policy.main import open_service
from remit.policy.settings import PolicySettings
from remit.postgres import Database
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from remit.rpc.mesh import Mesh
from remit.secret_files import read_secret
from tests.policy.world import ALICE, ORG


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh.connect("127.0.0.1:1", None) as mesh:  # nothing is called while opening
        yield mesh


def installation(database: Database, folder: Path, **changes: Any) -> PolicySettings:
    folder.mkdir(exist_ok=True)
    given = {
        "dsn": database.dsn,
        "pepper_file": make_pepper(folder),
        "signing_key_file": make_keys(folder),
    }
    return PolicySettings.load(**given | changes)


async def opened(settings: PolicySettings, mesh: Mesh) -> None:
    async with open_service(settings, mesh, clock=SystemClock(), ids=SystemIds()) as service:
        assert service.area == "policy"
        assert len(service.servicers) == 10
        for check in service.ready:
            await check()


async def test_the_service_opens_again_and_again_on_the_same_installation(
    policy_database: Database, tmp_path: Path, mesh: Mesh
) -> None:
    settings = installation(policy_database, tmp_path)
    for _ in range(2):
        await opened(settings, mesh)
    assert await policy_database.fetchval("SELECT count(*) FROM signing_keys") == 1
    assert await policy_database.fetchval("SELECT max(epoch) FROM policy_sets") == 1


async def test_another_pepper_or_seal_than_the_databases_stops_the_start(
    policy_database: Database, tmp_path: Path, mesh: Mesh
) -> None:
    settings = installation(policy_database, tmp_path)
    await opened(settings, mesh)
    await bootstrap_admin(policy_database, Pepper(read_secret(settings.pepper_file)), ORG, ALICE)
    await opened(settings, mesh)
    other = installation(policy_database, tmp_path / "other")
    for change, variable in (
        ({"pepper_file": other.pepper_file}, "REMIT_POLICY_PEPPER_FILE"),
        ({"signing_key_file": other.signing_key_file}, "REMIT_POLICY_SIGNING_KEY_FILE"),
    ):
        with pytest.raises(RemitError, match=variable) as refused:
            await opened(installation(policy_database, tmp_path, **change), mesh)
        assert refused.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID


async def test_a_policy_that_does_not_fit_stops_the_start_by_name(
    policy_database: Database, tmp_path: Path, mesh: Mesh
) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "mine.cedar").write_text(
        '@id("typo") permit(principal, action == Action::"runs.craete", resource);'
    )
    settings = installation(policy_database, tmp_path, policies_dir=policies)
    with pytest.raises(RemitError, match=r"mine\.cedar:1: policy typo") as refused:
        await opened(settings, mesh)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("remit_lifetime_s", 60),
        ("remit_lifetime_s", 3600),
        ("edge_cache_s", -1),
        ("decision_valid_s", 0),
        ("refresh_s", 0),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(RemitError, match=f"REMIT_POLICY_{name.upper()}"):
        PolicySettings.load(**{name: value})


def test_every_setting_is_described() -> None:
    assert all(field.description for field in PolicySettings.model_fields.values())
