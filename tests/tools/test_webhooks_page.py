"""What docs/WEBHOOKS.md shows is run: its receiver verifies a real message, its rule is a rule."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from remit.agent.settings import AgentSettings
from remit.tools.settings import ToolsSettings
from remit.tools.webhook_keys import WebhookKeys

PAGE = (Path(__file__).parents[2] / "docs" / "WEBHOOKS.md").read_text(encoding="utf-8")
ORG, BODY = "orgs/acme", b'{"type":"run.ended"}'


def example() -> Any:
    [code] = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(code, namespace)  # noqa: S102 - the page's own
    return namespace["is_genuine"]


def message(keys: WebhookKeys, *, sent: float | None = None) -> dict[str, str]:
    timestamp_s = int(time.time() if sent is None else sent)
    return {
        "webhook-id": "run_ended_1",
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": keys.signature(ORG, "run_ended_1", timestamp_s, BODY),
    }


def test_the_pages_receiver_takes_what_is_signed_and_nothing_else() -> None:
    is_genuine = example()
    old, new = b"o" * 32, b"n" * 32
    keys, other = WebhookKeys([old]), WebhookKeys([new])
    headers, public = message(keys), keys.public(ORG)
    assert is_genuine(headers, BODY, public)
    assert not is_genuine(headers, BODY + b" ", public)
    assert not is_genuine(headers | {"webhook-id": "run_ended_2"}, BODY, public)
    assert not is_genuine(headers, BODY, other.public(ORG))
    assert not is_genuine(headers, BODY, keys.public("orgs/globex"))
    assert not is_genuine(message(keys, sent=time.time() - 3600), BODY, public)
    assert not is_genuine(headers | {"webhook-signature": "v1,abc v2,x"}, BODY, public)
    both = message(WebhookKeys([new, old]))
    assert is_genuine(both, BODY, public)
    assert is_genuine(both, BODY, other.public(ORG))


def test_every_setting_of_the_page_exists() -> None:
    known = {f"REMIT_TOOLS_{name.upper()}" for name in ToolsSettings.model_fields}
    known |= {f"REMIT_AGENT_{name.upper()}" for name in AgentSettings.model_fields}
    named = set(re.findall(r"REMIT_[A-Z_]+[A-Z]", PAGE))
    assert named
    assert named <= known
