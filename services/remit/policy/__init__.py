"""Policy: decides who may do what, and issues the remits that carry a subject through the mesh.

It owns principals, API keys, the Cedar policies and their epochs, the keys that sign remits, and
what each run was registered with. It denies by default; whatever it cannot decide is denied.
It must never perform an effect, never trust a subject named in a request's field (subjects come
from verified credentials alone), and never answer from a cache where a run's fencing token is at
stake.
"""
