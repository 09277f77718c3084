"""The gateway's control plane: what Envoy must do, derived from the contracts and a topology.

It owns the translation of every RPC's contract (deadline, attempts, capacity, callers) and of a
topology file (which replicas, where) into Envoy's configuration, as typed messages. It never states
a fact about an RPC of its own, never carries a request, and never reads a service's code.
"""
