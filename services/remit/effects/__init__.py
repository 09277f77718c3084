"""The gate that every effect passes: no effect without permission, budget and a provable record.

An effect is a model call or a tool call. The inference and tools services are the two enforcement
points; each keeps the claims of its effects in its own database and performs effects only through
`EffectGate.perform`:

    verify the remit (the server's guard did)
    CLAIMED   committed; then in parallel: permission, budget, intent in the log
    STARTED   committed with decision, reservation and intent leaf, none of them null; then the I/O
    DONE      committed with the result; the caller is answered
    CLOSED    settled, and its outcome in the log

The claim alone says an effect's state. Every transition is a compare-and-set on (attempt, state).
Whoever does not own a claim releases nothing; only sweepers close what died.
"""

from remit.effects.claims import Ended, Outcome, State
from remit.effects.effect import (
    Callers,
    EffectOutcome,
    EffectRequest,
    EffectResult,
    Hold,
    Permit,
)
from remit.effects.gate import EffectGate
from remit.effects.metrics import standing_effects
from remit.effects.opening import open_gate
from remit.effects.settings import EffectSettings

__all__ = [
    "Callers",
    "EffectGate",
    "EffectOutcome",
    "EffectRequest",
    "EffectResult",
    "EffectSettings",
    "Ended",
    "Hold",
    "Outcome",
    "Permit",
    "State",
    "open_gate",
    "standing_effects",
]
