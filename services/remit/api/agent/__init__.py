"""Generated from protos/remit/api/agent by `make protos`; never edited."""
