"""How services of the mesh talk to each other and to clients.

One server builder, typed clients, one error type, the contract of every RPC read from its
descriptor, the identity of a caller from its certificate, and remits that anybody verifies
offline. It knows nothing of any area.
"""
