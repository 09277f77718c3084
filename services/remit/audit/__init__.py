"""Audit: the record that proves itself.

Why it exists: nobody should have to believe an operator about what an agent did. Every effect has
an intent here before it starts and an outcome after it ends, in an append-only Merkle log (RFC
6962) whose signed checkpoints let an outsider with a public key detect any change, deletion or
reordering.

It owns the log, its Merkle tree and its checkpoints (database ``remit_audit``) and the keys under
which each subject's details are encrypted (database ``remit_audit_keys``, on its own, so that a
backup of the log holds no key).

It must never change or delete an event, acknowledge one that is not durable, write a subject's name
or a detail in clear text, or sign a checkpoint that does not extend the last one.
"""
