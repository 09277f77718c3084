"""Remit: a gRPC mesh that runs AI agents in production.

No effect without permission, budget and a provable record, exactly once, even when anything dies.
"""
