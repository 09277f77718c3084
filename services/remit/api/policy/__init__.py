"""Generated from protos/remit/api/policy by `make protos`; never edited."""
