"""Envoy takes a configuration whose issuers' keys are fetched over TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from remit.gateway.bootstrap import render_binary
from remit.local.certificates import ensure_certificates
from remit.local.envoy_process import find_envoy
from remit.local.state import StateDirectory
from remit.rpc.clock import SystemClock
from tests.gateway.conftest import make_topology
from tests.identity_provider import localhost_tls


@pytest.mark.parametrize("is_private", [True, False])
def test_envoy_takes_issuers_over_tls(tmp_path: Path, *, is_private: bool) -> None:
    _, authority = localhost_tls(tmp_path)
    issuer = {
        "name": "corporate",
        "issuer": "https://login.example.com",
        "audiences": ["remit"],
        "jwks_uri": "https://localhost:1/keys",
        "jwks_ca_file": str(authority) if is_private else "",
        "org": "acme",
    }
    file = tmp_path / "issuers.yaml"
    file.write_text(yaml.safe_dump({"issuers": [issuer]}))
    state = StateDirectory.open(tmp_path / "state")
    ensure_certificates(state, SystemClock())
    rendered = tmp_path / "envoy.pb"
    rendered.write_bytes(render_binary(make_topology(state, {}, oidc_file=str(file))))
    command = [str(find_envoy(None)), "--mode", "validate", "--config-path", str(rendered)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert checked.returncode == 0, checked.stderr
