"""`remit up`: the whole mesh on one machine, supervised.

It owns the state directory and what is made there for a laptop: a certificate authority, an
embedded PostgreSQL, the first API key, and the processes themselves. It never runs in a cluster,
where each of these has a proper owner, and it never deletes anything that was recorded.
"""
