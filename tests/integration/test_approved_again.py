"""What was approved and stopped before it took effect happens once, by the same approval.

The agent dies while the mail server keeps an approved mail waiting: the attempt ends with nothing
done, and the run's next worker calls the tool again.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.integration.petition_reckoning import reckon_petitions
from tests.integration.petitions import Fate, approving
from tests.integration.reckoning import rows
from tests.integration.storming import Crowd, mail_of, storm_world
from tests.waiting import eventually

_BEGUN: Final = """
    SELECT attempt, outcome FROM effect_attempts
    WHERE resource = 'tools/send_email' AND outcome <> 'REFUSED' ORDER BY attempt
"""


@pytest.mark.timeout(150)
async def test_an_approved_mail_that_was_stopped_is_sent_once_by_the_same_approval() -> None:
    async with storm_world() as world:
        mailbox = world.mailbox
        mailbox.hang_at_recipient = True
        crowd = Crowd(world, 0, fates=(Fate.APPROVE,))
        async with approving(world.mesh, mail_of) as approver:
            crowd.begin()
            assert await eventually(lambda: mailbox.asked_recipients, 90)
            world.mesh.kill("agent-0")
            stopped = await eventually(lambda: rows(world.mesh, "remit_tools", _BEGUN), 60)
            assert [outcome for _, outcome in stopped] == ["CANCELLED"]
            mailbox.hang_at_recipient = False
            mailbox.release.set()
            await crowd.leave(120)
        begun = await rows(world.mesh, "remit_tools", _BEGUN)
        assert begun[0] == stopped[0]
        assert {outcome for _, outcome in begun[1:]} == {"SUCCEEDED"}
        assert await reckon_petitions(world, crowd, approver) == {"USED": len(crowd.histories)}
