"""The agent service: runs agents as durable, journalled runs.

Owns runs, their journal and the agent definitions. A run is a fold over its journal, so any replica
can go on where another died: a worker holds a run by a lease with a fencing token, and journals a
call before it asks for it.

It must never perform an effect itself: models are called by the inference service and tools by the
tools service, both through their gates, under the remit of the run. It holds no provider key and no
egress, and it keeps no client's remit.
"""
