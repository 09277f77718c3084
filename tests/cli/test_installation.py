"""What an operator does before anything runs: secrets, certificates, databases, the first key."""

from __future__ import annotations

import base64
import http.server
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from remit.cli import main
from remit.local.databases import FURTHER
from remit.local.installation import Installation
from remit.postgres import DATABASES
from remit.rpc.contracts import AREAS
from remit.rpc.identity import TlsIdentity
from remit.secret_files import read_secret
from remit.settings import SECRETS_VARIABLE
from tests.conftest import OpenDatabase


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "installation"


def make_secrets(folder: Path, *more: str) -> None:
    assert main.run(["secrets", "make", str(folder), "--database", "db:5432", *more]) == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_each_area_gets_its_own_secrets_and_nobody_elses(folder: Path) -> None:
    make_secrets(folder)
    further = {"REMIT_AUDIT_KEYS_ERASER_DSN", "REMIT_AUDIT_ARCHIVER_DSN"}
    for area in AREAS:
        dsns = sorted(f.name for f in (folder / area / "secrets").glob("*DSN"))
        own = {f"REMIT_{area.upper()}_DSN"}
        if area == "audit":
            own |= {"REMIT_AUDIT_KEYS_DSN", *further}
        assert set(dsns) == own
    setup = {f.name for f in (folder / "setup" / "secrets").iterdir()}
    assert (
        setup
        == {f"REMIT_{name.upper()}_{kind}" for name in DATABASES for kind in ("DSN", "OWNER_DSN")}
        | further
    )
    assert not (folder / "postgres").exists()
    read_secret(folder / "policy" / "secrets" / "api-keys.pepper")
    for file in folder.rglob("*"):
        if file.is_file() and file.name != "log.pub":
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_secrets_are_made_once(folder: Path) -> None:
    make_secrets(folder, "--superuser")
    before = contents(folder)
    passwords = [data for name, data in before.items() if name.endswith("_DSN")]
    make_secrets(folder, "--superuser")
    assert contents(folder) == before
    assert len(set(passwords)) == 2 * len(DATABASES) + len(FURTHER) + 1


def test_connections_are_secured_as_asked(folder: Path) -> None:
    main.run(["certificates", "make", str(folder)])
    authority = folder / "ca" / "ca.pem"
    make_secrets(folder, "--sslmode", "verify-full", "--sslrootcert", str(authority))
    for party in (*AREAS, "setup"):
        secrets = folder / party / "secrets"
        assert (secrets / "postgres-ca.pem").read_bytes() == authority.read_bytes()
        [dsn, *_] = (f.read_text() for f in secrets.glob("*DSN"))
        assert dsn.strip().endswith(
            "?sslmode=verify-full&sslrootcert=%2Fetc%2Fremit%2Fsecrets%2Fpostgres-ca.pem"
        )


@pytest.mark.parametrize(
    "words",
    [
        ("--sslmode", "verify-full"),
        ("--sslmode", "verify-ca"),
        ("--sslmode", "require", "--sslrootcert", __file__),
        ("--sslmode", "verify-ca", "--sslrootcert", __file__),
    ],
)
def test_what_cannot_be_verified_is_refused(
    folder: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["secrets", "make", str(folder), "--database", "db:5432", *words]) == 2
    assert "sslrootcert" in capsys.readouterr().err
    assert not folder.exists()


def test_lost_log_keys_are_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_secrets(folder)
    (folder / "audit" / "secrets" / "log.key").unlink()
    assert main.run(["secrets", "make", str(folder), "--database", "db:5432"]) == 7
    assert "log.key" in capsys.readouterr().err
    assert not (folder / "audit" / "secrets" / "log.key").exists()


def test_certificates_name_their_parties_and_are_made_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["certificates", "make", str(folder)]) == 0
    assert "gateway" not in capsys.readouterr().out
    for party, place in Installation(folder).tls_folders().items():
        TlsIdentity.load(place).server_credentials()
        leaf = x509.load_pem_x509_certificate((place / "cert.pem").read_bytes())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
            f"spiffe://remit.internal/{party}"
        ]
    before = contents(folder)
    assert main.run(["certificates", "make", str(folder)]) == 0
    assert "every certificate is good" in capsys.readouterr().out
    assert contents(folder) == before


def test_manifests_hold_the_files_but_never_the_authoritys_key(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_secrets(folder)
    main.run(["certificates", "make", str(folder)])
    capsys.readouterr()
    assert main.run(["secrets", "manifests", str(folder), "--namespace", "other"]) == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    assert {m["metadata"]["namespace"] for m in printed} == {"other"}
    values = {base64.b64decode(v) for m in printed for v in m["data"].values()}
    assert (folder / "cost" / "tls" / "key.pem").read_bytes() in values
    assert (folder / "ca" / "key.pem").read_bytes() not in values
    assert main.run(["certificates", "manifests", str(folder)]) == 0
    only_tls = list(yaml.safe_load_all(capsys.readouterr().out))
    assert {tuple(m["data"]) for m in only_tls} == {("ca.pem", "cert.pem", "key.pem")}


def test_an_empty_folder_has_no_manifests(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["secrets", "manifests", str(folder)]) == 1
    assert "make it with `make` first" in capsys.readouterr().err


def test_migrations_need_an_owner(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SECRETS_VARIABLE, raising=False)
    assert main.run(["migrate", "cost"]) == 2
    assert "REMIT_COST_OWNER_DSN" in capsys.readouterr().err


def test_a_secrets_folder_that_is_none_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRETS_VARIABLE, str(folder / "nowhere"))
    assert main.run(["migrate", "cost"]) == 7
    assert SECRETS_VARIABLE in capsys.readouterr().err


@pytest.mark.parametrize("dsn", ["postgresql://remit_cost@db/remit_cost", "nonsense"])
def test_databases_need_passwords(
    dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in DATABASES:
        for kind in ("DSN", "OWNER_DSN"):
            monkeypatch.setenv(f"REMIT_{name.upper()}_{kind}", dsn)
    assert main.run(["databases", "make", "--admin-dsn", "postgresql://x@db/postgres"]) == 7
    assert "OWNER_DSN must be a DSN with a password" in capsys.readouterr().err


# ------------------------------------------------------------------------------- first key


async def test_the_first_key_is_the_same_each_time_and_stored_nowhere(
    folder: Path, database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from remit.cli.keys import _bootstrap  # noqa: PLC0415 - the command runs a loop of its own

    make_secrets(folder)
    policy = await database("policy")
    monkeypatch.setenv("REMIT_POLICY_DSN", policy.dsn)
    pepper = folder / "policy" / "secrets" / "api-keys.pepper"
    monkeypatch.setenv("REMIT_POLICY_PEPPER_FILE", str(pepper))
    user = "orgs/acme/users/alice"
    key = await _bootstrap(user)
    assert await _bootstrap(user) == key
    rows = await policy.fetch("SELECT * FROM api_keys")
    assert [(row["subject"], row["roles"]) for row in rows] == [(user, ["admin"])]
    assert key not in str(rows)


def test_the_first_key_needs_a_user(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.run(["keys", "bootstrap", "--user", "orgs/acme"]) == 2
    assert "user" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- probe


@pytest.fixture
def ready() -> Iterator[tuple[int, list[int]]]:
    """A server whose answer to /ready is the last status in a list."""
    statuses = [200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[-1] if self.path == "/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], statuses
    server.shutdown()
    server.server_close()


def test_a_probe_asks_what_this_environment_configures(
    ready: tuple[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, statuses = ready
    assert main.run(["probe"]) == 0
    monkeypatch.setenv("REMIT_COST_HTTP_PORT", str(port))
    assert main.run(["probe"]) == 0
    statuses.append(503)
    assert main.run(["probe"]) == 1
    assert main.run(["probe", str(port)]) == 1


def test_a_probe_of_nothing_fails_and_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMIT_COST_HTTP_PORT", "1")
    assert main.run(["probe"]) == 1
    assert "port 1" in capsys.readouterr().err
    monkeypatch.setenv("REMIT_COST_HTTP_PORT", "one")
    assert main.run(["probe"]) == 2
