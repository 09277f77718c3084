"""Generated from protos/remit/api/agent/v1 by `make protos`; never edited."""
