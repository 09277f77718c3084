"""Generated from protos/remit/api/policy/v1 by `make protos`; never edited."""
